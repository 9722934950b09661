"""lines of an invoice → the lines that each of its items at Stripe bills. Pure.

The ledger's record keeps every line; only what Stripe gets is grouped. The groups follow from the record alone, so that
every run sends the same items.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.snapshot import InvoiceFixed, Line
from schemas.period import format_local_date

ITEMS_MAX = 250
"""Invoice items on one invoice. Source: Stripe, "Create an invoice item": up to 250 per invoice."""


def line_groups(lines: Sequence[Line], items_max: int) -> tuple[range, ...]:
    """The lines of every item, as indexes: consecutive, each line once, at most items_max groups.

    Within the limit, each line is an item. Above it, the late lines, which come after the lines of the invoice's own
    cycle, share items in groups of one size. Where own lines leave no room, all lines share.
    """
    count = len(lines)
    if count <= items_max:
        return tuple(range(index, index + 1) for index in range(count))
    own = next((index for index, line in enumerate(lines) if line.corrects is not None), count)
    own = own if own < items_max else 0
    size = -(-(count - own) // (items_max - own))  # rounded up
    alone = [range(index, index + 1) for index in range(own)]
    return (*alone, *(range(first, min(first + size, count)) for first in range(own, count, size)))


def item_lines(fixed: InvoiceFixed) -> dict[int, tuple[Line, ...]]:
    """Index of an item, which is that of its first line → the lines that it bills."""
    return {group.start: tuple(fixed.lines[index] for index in group) for group in line_groups(fixed.lines, ITEMS_MAX)}


def is_grouped(fixed: InvoiceFixed) -> bool:
    """Whether some of its items bill several lines."""
    return len(fixed.lines) > ITEMS_MAX


def period_of(fixed: InvoiceFixed, lines: Sequence[Line]) -> tuple[int, int]:
    """(start, end) of the time from the first to the last that the lines bill; µs."""
    periods = _periods(fixed, lines)
    return min(start for start, _ in periods), max(end for _, end in periods)


def description_of(fixed: InvoiceFixed, lines: Sequence[Line]) -> str:
    """A line's own. Of several `Late usage, 2026-03-01 to 2026-03-03 (2 lines, 2 periods)`: second date exclusive."""
    if len(lines) == 1:
        return lines[0].description
    start, end = (format_local_date(instant, fixed.time_zone) for instant in period_of(fixed, lines))
    periods = len(_periods(fixed, lines))
    return f"{_kind(lines)}, {start} to {end} ({len(lines)} lines, {periods} {'period' if periods == 1 else 'periods'})"


def _kind(lines: Sequence[Line]) -> str:
    if any(line.corrects is None for line in lines):
        return "Usage and fees"
    return "Late usage" if sum(line.amount_minor for line in lines) > 0 else "Credit for usage"


def _periods(fixed: InvoiceFixed, lines: Sequence[Line]) -> set[tuple[int, int]]:
    return {
        (
            fixed.cycle_start if line.period_start is None else line.period_start,
            fixed.active_until if line.period_end is None else line.period_end,
        )
        for line in lines
    }
