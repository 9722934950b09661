"""committed, stored and kept offsets of a partition → where the sink starts reading, and what no one can read. Pure."""

from __future__ import annotations

from dataclasses import dataclass


class LogTooShort(Exception):
    """The log ends before what was read from it: it lost its end, or a broker is still catching up."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets [first, after) of a partition that hold no message for us. reason: see warehouse.coverage. epoch: None:
    that of the messages around them."""

    partition: int
    first: int
    after: int
    reason: str
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """at: the offset to read from. missing: [first, after) that the log deleted before it was stored, if any."""

    at: int
    missing: tuple[int, int] | None = None


def starting_place(committed: int | None, covered: int, low: int, high: int, stop: int | None = None) -> Start:
    """The lower of the group's commit (None: none) and ClickHouse's coverage, but not before the log begins.

    low: first offset that the log still has; high: its next one. stop: where a table lacks rows of what is covered.
    Raises LogTooShort.
    """
    start = covered if committed is None else min(committed, covered)
    if max(start, covered) > high:
        raise LogTooShort(f"stored up to offset {covered}, committed {committed}, but the log ends at {high}")
    missing = (covered, low) if covered < low else None
    return Start(max(start if stop is None else min(start, stop), low), missing)
