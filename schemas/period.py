"""started_at, interval and time zone → billing cycles; instants ↔ RFC 3339. Pure.

An instant is an int: microseconds since 1970 in UTC. Periods are half-open, [start, end), and each starts where the
one before ends. Cycle n is found from the anchor, the local date and time of the subscription's start, never from cycle
n − 1: after a short month it is back on the anchor's day (31 January, 28 February, 31 March).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from whenever import Instant, OffsetDateTime, PlainDateTime, ZonedDateTime

BillingInterval = Literal["day", "week", "month", "year"]
UsageWindow = Literal["hour", "day", "month"]

SECOND_US = 1_000_000

_RFC3339 = re.compile(
    r"(?P<local>[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.(?P<fraction>[0-9]+))?"
    r"(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})?"
)


class InvalidTimestamp(ValueError):
    """The text is no RFC 3339 instant. code: `timestamp_missing_offset` or `timestamp_invalid`."""

    def __init__(self, code: Literal["timestamp_missing_offset", "timestamp_invalid"], message: str) -> None:
        super().__init__(message)
        self.code = code


class BeforeFirstCycle(ValueError):
    """The instant lies before the first cycle."""


def parse_rfc3339(text: str) -> int:
    """µs since 1970 of an RFC 3339 date-time with offset; what is finer than a µs is cut off. Raises InvalidTimestamp.

    A leap second (`:60`) is taken as the last second of its minute.
    """
    parts = _RFC3339.fullmatch(text)
    if parts is None:
        raise InvalidTimestamp("timestamp_invalid", f"no RFC 3339 date and time: {text[:40]!r}")
    if parts["offset"] is None:
        raise InvalidTimestamp("timestamp_missing_offset", f"no offset (Z or +hh:mm) in {text[:40]!r}")
    try:
        whole = OffsetDateTime.parse_iso((parts["local"] + parts["offset"]).upper())
    except ValueError:
        raise InvalidTimestamp("timestamp_invalid", f"no such date, time or offset: {text[:40]!r}") from None
    return whole.timestamp(unit="second") * SECOND_US + int((parts["fraction"] or "")[:6].ljust(6, "0"))


def format_rfc3339(us: int) -> str:
    """RFC 3339 in UTC with Z, with as many decimals as are needed: `2026-03-30T12:00:00.25Z`."""
    return _instant(us).format_iso()


def _instant(us: int) -> Instant:
    return Instant.from_timestamp(us * 1000, unit="nanosecond")


def _local(us: int, zone: str) -> ZonedDateTime:
    return _instant(us).to_tz(zone)


def _us(moment: Instant | ZonedDateTime) -> int:
    return moment.timestamp(unit="nanosecond") // 1000


@dataclass(frozen=True, slots=True, order=True)
class Cycle:
    """A half-open period [start_us, end_us), µs since 1970. Never empty."""

    start_us: int
    end_us: int

    def __post_init__(self) -> None:
        if self.start_us >= self.end_us:
            raise ValueError(f"a period must end after its start: [{self.start_us}, {self.end_us})")

    def __contains__(self, t_us: int) -> bool:
        return self.start_us <= t_us < self.end_us

    @property
    def start(self) -> str:
        """Start in RFC 3339."""
        return format_rfc3339(self.start_us)

    @property
    def end(self) -> str:
        """End in RFC 3339, exclusive."""
        return format_rfc3339(self.end_us)


# --- Billing cycles ---------------------------------------------------------------------------------------------------


def _start(anchor: PlainDateTime, interval: BillingInterval, zone: str, n: int) -> int:
    """Start of cycle n, n intervals from the anchor, in µs.

    Months and years are counted from the anchor and clamped to the last day of a short month. "compatible" (RFC 5545):
    a local time that does not exist moves forward by the gap, of one that comes twice it is the first.
    """
    match interval:
        case "day":
            local = anchor.add(days=n)
        case "week":
            local = anchor.add(weeks=n)
        case "month":
            local = anchor.add(months=n)
        case "year":
            local = anchor.add(years=n)
    return _us(local.assume_tz(zone, disambiguation="compatible"))


def _index(anchor: PlainDateTime, interval: BillingInterval, zone: str, t_us: int) -> int:
    """Greatest n whose cycle starts at or before t."""
    local = _local(t_us, zone).to_plain()
    months = (local.year - anchor.year) * 12 + local.month - anchor.month
    days = (local.date().to_stdlib() - anchor.date().to_stdlib()).days
    n = {"day": days, "week": days // 7, "month": months, "year": months // 12}[interval]
    # The calendar brings n within one of the right cycle; day of month and time of day decide. It may be one more where
    # a clock goes back over midnight: it is yesterday's evening once again, and today's cycle has already begun.
    n += 1
    while _start(anchor, interval, zone, n) > t_us:
        n -= 1
    return n


@lru_cache(maxsize=65_536)
def _anchor(started_at_us: int, zone: str) -> PlainDateTime:
    return _local(started_at_us, zone).to_plain()


def _starts(
    started_at_us: int, interval: BillingInterval, zone: str, from_us: int, first_start_us: int | None
) -> Iterator[int]:
    """Starts of cycles, ascending without end, from that of the cycle that contains from_us."""
    first = started_at_us if first_start_us is None else first_start_us
    if from_us < first:
        raise BeforeFirstCycle(f"{format_rfc3339(from_us)} is before the first cycle, {format_rfc3339(first)}")
    anchor = _anchor(started_at_us, zone)
    n = _index(anchor, interval, zone, from_us)
    # The first cycle starts where it is said to, even where that is not n intervals from the anchor.
    start = max(first, _start(anchor, interval, zone, n))
    yield start
    while True:
        n += 1
        following = _start(anchor, interval, zone, n)
        if following > start:  # Where a zone skips a whole day, two local starts are one instant and one cycle is none.
            yield following
            start = following


def cycle_containing(
    started_at_us: int, interval: BillingInterval, zone: str, t_us: int, *, first_start_us: int | None = None
) -> Cycle:
    """The billing cycle in which t lies.

    started_at_us: the anchor, µs. zone: IANA name, in which anchor and starts are local times. first_start_us: start of
    the first cycle where it is not the anchor (that cycle then ends at the first anchored start after it).
    Raises BeforeFirstCycle.
    """
    starts = _starts(started_at_us, interval, zone, t_us, first_start_us)
    return Cycle(next(starts), next(starts))


def cycles_between(
    started_at_us: int,
    interval: BillingInterval,
    zone: str,
    from_us: int,
    until_us: int,
    *,
    first_start_us: int | None = None,
) -> Iterator[Cycle]:
    """Cycles that have an instant in common with [from, until), in order; from before the first cycle is no error."""
    first = started_at_us if first_start_us is None else first_start_us
    starts = _starts(started_at_us, interval, zone, max(from_us, first), first_start_us)
    start = next(starts)
    while start < until_us:
        end = next(starts)
        yield Cycle(start, end)
        start = end


def cycles(
    started_at_us: int, interval: BillingInterval, zone: str, until_us: int, *, first_start_us: int | None = None
) -> Iterator[Cycle]:
    """All cycles that start before `until`, from the first one; the last may end after it."""
    first = started_at_us if first_start_us is None else first_start_us
    return cycles_between(started_at_us, interval, zone, first, until_us, first_start_us=first_start_us)


def cycle_boundaries(
    started_at_us: int, interval: BillingInterval, zone: str, until_us: int, *, first_start_us: int | None = None
) -> tuple[int, ...]:
    """Starts of all cycles that start before `until`, and the end of the last: to keep and to bisect, see `cycle_in`.

    Empty where the first cycle starts at or after `until`.
    """
    found = tuple(cycles(started_at_us, interval, zone, until_us, first_start_us=first_start_us))
    return (*(cycle.start_us for cycle in found), found[-1].end_us) if found else ()


def cycle_in(boundaries: Sequence[int], t_us: int) -> Cycle | None:
    """The cycle between two neighbouring boundaries in which t lies; None outside of them all."""
    position = bisect_right(boundaries, t_us)
    if position in (0, len(boundaries)):
        return None
    return Cycle(boundaries[position - 1], boundaries[position])


# --- Calendar windows -------------------------------------------------------------------------------------------------


def window_containing(zone: str, window: UsageWindow, t_us: int) -> Cycle:
    """The zone's calendar hour, day or month in which t lies. An hour that a clock change repeats is two windows."""
    local = _local(t_us, zone)
    # end_of is the last nanosecond: rounded down to µs it is one µs before the next start.
    return Cycle(_us(local.start_of(window)), _us(local.end_of(window)) + 1)


def windows_between(zone: str, window: UsageWindow, from_us: int, until_us: int) -> Iterator[Cycle]:
    """Windows that have an instant in common with [from, until), in order."""
    while from_us < until_us:
        found = window_containing(zone, window, from_us)
        yield found
        from_us = found.end_us


def calendar_month_containing(zone: str, t_us: int) -> Cycle:
    """The zone's calendar month in which t lies: the cycle of usage without a subscription."""
    return window_containing(zone, "month", t_us)
