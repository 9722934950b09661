"""rows → CSV (RFC 4180) that a spreadsheet shows and does not run. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(text: str) -> str:
    """Text that a spreadsheet would run as a formula, made text for it too."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def csv_rows(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV. Text from outside goes through safe_cell first."""
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()
