"""rows → CSV (RFC 4180) that a spreadsheet shows and does not run. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_GUARDED = ("=", "+", "-", "@", "\t", "\r", "'")


def safe_cell(text: str) -> str:
    """The one rule for text cells: a ' goes before text that a spreadsheet would run as a formula.

    Also before text that begins with a ', so that taking one off gives every text back. Numbers, which are not text,
    are written as they are: a customer ID of digits is text, and a negative quantity is a number.
    """
    return f"'{text}" if text.startswith(_GUARDED) else text


def csv_rows(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV. Text from outside goes through safe_cell first."""
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()
