"""What the commands that import files share: the file itself, and how its errors are told."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj

from usage_billing.console import errors, wrong_usage
from usage_billing.importing.check import LineError
from usage_billing.importing.tables import UnreadableTable

_ERRORS_PRINTED_MAX = 20


@contextmanager
def readable_file(path: Path) -> Generator[Path]:
    """The file itself, or a copy of standard input, since a file is read twice."""
    if str(path) != "-":
        if not path.is_file():
            wrong_usage(f"there is no file {path}")
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="usage-import-") as copy:
        copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def report_errors(path: Path, found: Sequence[LineError], errors_to: Path | None) -> None:
    """Print the first errors, and write all of them where they are wanted."""
    if errors_to is not None:
        with errors_to.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("line", "column", "code", "message"))
            writer.writerows((error.line, error.column, error.code, error.message) for error in found)
    for error in found[:_ERRORS_PRINTED_MAX]:
        place = "" if error.line is None else f", line {error.line}"
        column = "" if error.column is None else f", column {error.column}"
        errors.print(f"{path}{place}{column}: {error.message}", markup=False, soft_wrap=True)
    if len(found) > _ERRORS_PRINTED_MAX:
        rest = f"and {len(found) - _ERRORS_PRINTED_MAX} more"
        errors.print(rest if errors_to else f"{rest}; --errors-to FILE writes them all", markup=False)


def located(path: Path, reason: Exception) -> str:
    """The reason with the file, and its line where it has one."""
    line = reason.line if isinstance(reason, UnreadableTable) else None
    return f"{path}: {reason}" if line is None else f"{path}, line {line}: {reason}"


def counted(number: int, noun: str) -> str:
    """1 event, 2,000 events."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
