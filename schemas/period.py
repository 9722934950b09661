"""started_at, interval and time zone → billing cycles; instants ↔ RFC 3339. Pure.

An instant is an int: microseconds since 1970 in UTC. Periods are half-open, [start, end), and each starts where the
one before ends. Cycle n is found from the anchor, the local date and time of the subscription's start, never from cycle
n − 1: after a short month it is back on the anchor's day (31 January, 28 February, 31 March).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

import msgspec
from whenever import Instant, PlainDateTime, ZonedDateTime

BillingInterval = Literal["day", "week", "month", "year"]
UsageWindow = Literal["hour", "day", "month"]

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

_RFC3339 = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ](?P<minute>[0-9]{2}:[0-9]{2}):(?P<second>[0-9]{2})"
    r"(?:\.(?P<fraction>[0-9]+))?(?P<offset>[Zz]|[+-][0-9]{2}:?[0-9]{2})?"
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

    The one reader of instants: events, queries, control API, commands. A leap second (`:60`) is the last second of its
    minute. A space may stand for the T (RFC 3339, 5.6), and the offset may lack its colon (`%z` of strftime).
    """
    parts = _RFC3339.fullmatch(text)
    if parts is None:
        raise InvalidTimestamp("timestamp_invalid", f"no RFC 3339 date and time: {text[:40]!r}")
    if parts["offset"] is None:
        raise InvalidTimestamp("timestamp_missing_offset", f"no offset (Z or +hh:mm) in {text[:40]!r}")
    second = "59" if parts["second"] == "60" else parts["second"]
    fraction = f".{parts['fraction'][:6]}" if parts["fraction"] else ""
    try:
        moment = msgspec.convert(f"{parts['date']}T{parts['minute']}:{second}{fraction}{parts['offset']}", datetime)
        return (moment.astimezone(UTC) - EPOCH) // MICROSECOND
    except (msgspec.ValidationError, OverflowError):  # the latter outside the years 1 to 9999
        raise InvalidTimestamp("timestamp_invalid", f"no such date, time or offset: {text[:40]!r}") from None


def format_rfc3339(us: int) -> str:
    """RFC 3339 in UTC with Z, with as many decimals as are needed: `2026-03-30T12:00:00.25Z`."""
    return _instant(us).format_iso()


def format_local_date(us: int, zone: str) -> str:
    """The zone's calendar date at that instant: `2026-03-30`."""
    return _local(us, zone).date().format_iso()


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


@lru_cache(maxsize=65_536)  # many subscriptions begin with a month
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
    """About the greatest n whose cycle starts at or before t: the calendar brings it within one of the right one."""
    local = _local(t_us, zone).to_plain()
    months = (local.year - anchor.year) * 12 + local.month - anchor.month
    days = (local.date().to_stdlib() - anchor.date().to_stdlib()).days
    return {"day": days, "week": days // 7, "month": months, "year": months // 12}[interval]


@lru_cache(maxsize=65_536)
def _anchor(started_at_us: int, zone: str) -> PlainDateTime:
    return _local(started_at_us, zone).to_plain()


_Regime = tuple[int, str]
"""(first n, zone): from start n on, until the next regime's, starts are local times of the zone."""
_BEFORE_ALL = -(2**63)


@dataclass(frozen=True, slots=True)
class BillingCalendar:
    """When the cycles of a subscription start.

    started_at_us: the anchor, µs. zone: IANA name; anchor and starts are local times of it. later_zones: (when the zone
    was changed, µs, the new zone), ascending. The cycle in progress then keeps its end; what comes after it ends at the
    anchor's local times in the new zone.
    """

    started_at_us: int
    interval: BillingInterval
    zone: str
    later_zones: tuple[tuple[int, str], ...] = ()

    def containing(self, t_us: int) -> Cycle:
        """The cycle in which t lies. Raises BeforeFirstCycle."""
        starts = self._starts(t_us)
        return Cycle(next(starts), next(starts))

    def between(self, from_us: int, until_us: int) -> Iterator[Cycle]:
        """Cycles that have an instant in common with [from, until), in order; from before the first is no error."""
        starts = self._starts(max(from_us, self.started_at_us))
        start = next(starts)
        while start < until_us:
            end = next(starts)
            yield Cycle(start, end)
            start = end

    def before(self, until_us: int) -> Iterator[Cycle]:
        """All cycles that start before `until`, from the first one; the last may end after it."""
        return self.between(self.started_at_us, until_us)

    def zone_at(self, t_us: int) -> str:
        """The zone in which the cycle that contains t ends."""
        if not self.later_zones:
            return self.zone
        regimes = self._regimes()
        return _zone_of(regimes, self._place(regimes, t_us) + 1)

    def _regimes(self) -> list[_Regime]:
        found: list[_Regime] = [(_BEFORE_ALL, self.zone)]
        for changed_at, zone in self.later_zones:
            found.append((self._place(found, changed_at) + 2, zone))  # start n + 1 ends the cycle in progress
        return found

    def _start_of(self, regimes: Sequence[_Regime], n: int) -> int:
        return _start(_anchor(self.started_at_us, self.zone), self.interval, _zone_of(regimes, n), n)

    def _place(self, regimes: Sequence[_Regime], t_us: int) -> int:
        """Greatest n whose cycle starts at or before t; -1 before the first."""
        if t_us < self.started_at_us:
            return -1
        n = _index(_anchor(self.started_at_us, self.zone), self.interval, regimes[-1][1], t_us)
        # Day of month and time of day decide. It may be one more where a clock goes back over midnight: it is
        # yesterday's evening once again, and today's cycle has already begun.
        n += 1
        while self._start_of(regimes, n) > t_us:
            n -= 1
        while len(regimes) > 1 and self._start_of(regimes, n + 1) <= t_us:
            n += 1
        return n

    def _starts(self, from_us: int) -> Iterator[int]:
        """Starts of cycles, ascending without end, from that of the cycle that contains from_us."""
        first = self.started_at_us
        if from_us < first:
            raise BeforeFirstCycle(f"{format_rfc3339(from_us)} is before the first cycle, {format_rfc3339(first)}")
        regimes = self._regimes()
        n = self._place(regimes, from_us)
        # The first cycle starts where it is said to, also where the anchor's local time comes twice.
        start = max(first, self._start_of(regimes, n))
        yield start
        while True:
            n += 1
            following = self._start_of(regimes, n)
            # Where a zone skips a whole day, two local starts are one instant and one cycle is none.
            if following > start:
                yield following
                start = following


def _zone_of(regimes: Sequence[_Regime], n: int) -> str:
    if len(regimes) == 1:
        return regimes[0][1]
    return next(zone for first, zone in reversed(regimes) if first <= n)


def cycle_containing(started_at_us: int, interval: BillingInterval, zone: str, t_us: int) -> Cycle:
    """`BillingCalendar.containing`, of a zone that was never changed. Raises BeforeFirstCycle."""
    return BillingCalendar(started_at_us, interval, zone).containing(t_us)


def cycles_between(
    started_at_us: int, interval: BillingInterval, zone: str, from_us: int, until_us: int
) -> Iterator[Cycle]:
    """`BillingCalendar.between`, of a zone that was never changed."""
    return BillingCalendar(started_at_us, interval, zone).between(from_us, until_us)


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


def calendar_month(zone: str, year: int, month: int) -> Cycle:
    """That month of the zone's calendar."""
    return calendar_month_containing(zone, _us(PlainDateTime(year, month, 15).assume_tz(zone)))


def calendar_month_containing(zone: str, t_us: int) -> Cycle:
    """The zone's calendar month in which t lies: the cycle of usage without a subscription."""
    return window_containing(zone, "month", t_us)
