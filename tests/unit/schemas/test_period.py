"""Billing cycles and calendar windows: a row a case; local times are written with their offset."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.period import (
    BeforeFirstCycle,
    BillingCalendar,
    Cycle,
    InvalidTimestamp,
    calendar_month_containing,
    cycle_containing,
    format_rfc3339,
    parse_rfc3339,
    window_containing,
    windows_between,
)

us = parse_rfc3339
NEW_YORK, BERLIN, APIA, LORD_HOWE = "America/New_York", "Europe/Berlin", "Pacific/Apia", "Australia/Lord_Howe"
FAR = us("2100-01-01T00:00:00Z")

# fmt: off
STARTS = [
    # Stripe, "Set the subscription billing renewal date": September 2 bills on the 2nd; January 31 bills the last day of
    # the month closest to the anchor; Friday, June 3 bills every Friday.
    ("month", "UTC",    ["2022-09-02T00:00:00Z", "2022-10-02T00:00:00Z", "2022-11-02T00:00:00Z"]),
    ("month", "UTC",    ["2023-01-31T09:00:00Z", "2023-02-28T09:00:00Z", "2023-03-31T09:00:00Z", "2023-04-30T09:00:00Z", "2023-05-31T09:00:00Z"]),
    ("month", "UTC",    ["2024-01-31T09:00:00Z", "2024-02-29T09:00:00Z", "2024-03-31T09:00:00Z"]),
    ("week",  "UTC",    ["2022-06-03T08:00:00Z", "2022-06-10T08:00:00Z", "2022-06-17T08:00:00Z"]),
    # No drift: day 30 and 29 come back after February.
    ("month", "UTC",    ["2023-12-30T00:00:00Z", "2024-01-30T00:00:00Z", "2024-02-29T00:00:00Z", "2024-03-30T00:00:00Z"]),
    ("month", "UTC",    ["2023-01-29T00:00:00Z", "2023-02-28T00:00:00Z", "2023-03-29T00:00:00Z"]),
    ("month", "UTC",    ["2023-11-15T23:59:59.999999Z", "2023-12-15T23:59:59.999999Z", "2024-01-15T23:59:59.999999Z"]),
    # Leap years.
    ("year",  "UTC",    ["2020-02-29T12:00:00Z", "2021-02-28T12:00:00Z", "2022-02-28T12:00:00Z", "2023-02-28T12:00:00Z", "2024-02-29T12:00:00Z"]),
    ("year",  "UTC",    ["2023-03-01T00:00:00Z", "2024-03-01T00:00:00Z", "2025-03-01T00:00:00Z"]),
    ("day",   "UTC",    ["2024-02-28T06:00:00Z", "2024-02-29T06:00:00Z", "2024-03-01T06:00:00Z"]),
    # The anchor's day is the local one: it is still 31 January in New York.
    ("month", NEW_YORK, ["2023-01-31T22:00:00-05:00", "2023-02-28T22:00:00-05:00", "2023-03-31T22:00:00-04:00"]),
    # The local time stays over a clock change.
    ("day",   BERLIN,   ["2024-03-30T12:00:00+01:00", "2024-03-31T12:00:00+02:00", "2024-04-01T12:00:00+02:00"]),
    ("week",  NEW_YORK, ["2024-10-31T09:00:00-04:00", "2024-11-07T09:00:00-05:00", "2024-11-14T09:00:00-05:00"]),
    # A local time that does not exist moves forward, for that cycle only.
    ("day",   NEW_YORK, ["2013-03-09T02:30:00-05:00", "2013-03-10T03:30:00-04:00", "2013-03-11T02:30:00-04:00"]),
    ("day",   BERLIN,   ["2024-03-30T02:30:00+01:00", "2024-03-31T03:30:00+02:00", "2024-04-01T02:30:00+02:00"]),
    ("month", BERLIN,   ["2024-02-29T02:30:00+01:00", "2024-03-29T02:30:00+01:00", "2024-04-29T02:30:00+02:00"]),
    # A local time that comes twice is the first one ...
    ("day",   NEW_YORK, ["2013-11-02T01:30:00-04:00", "2013-11-03T01:30:00-04:00", "2013-11-04T01:30:00-05:00"]),
    ("day",   BERLIN,   ["2024-10-26T02:30:00+02:00", "2024-10-27T02:30:00+02:00", "2024-10-28T02:30:00+01:00"]),
    # ... but a subscription that started in the second starts there.
    ("day",   NEW_YORK, ["2013-11-03T01:30:00-05:00", "2013-11-04T01:30:00-05:00", "2013-11-05T01:30:00-05:00"]),
    ("month", BERLIN,   ["2024-10-27T02:30:00+01:00", "2024-11-27T02:30:00+01:00", "2024-12-27T02:30:00+01:00"]),
    # Samoa left 30 December 2011 out: that cycle is none, and no start comes twice.
    ("day",   APIA,     ["2011-12-28T10:00:00-10:00", "2011-12-29T10:00:00-10:00", "2011-12-31T10:00:00+14:00", "2012-01-01T10:00:00+14:00"]),
    ("month", APIA,     ["2011-11-30T10:00:00-10:00", "2011-12-31T10:00:00+14:00", "2012-01-30T10:00:00+14:00"]),
]
# fmt: on


@pytest.mark.parametrize(("interval", "zone", "expected"), STARTS)
def test_starts(interval, zone, expected):
    starts = [us(text) for text in expected]
    found = list(islice(BillingCalendar(starts[0], interval, zone).before(FAR), len(starts) - 1))
    assert found == [Cycle(start, end) for start, end in pairwise(starts)]
    for cycle in found:
        for t in (cycle.start_us, (cycle.start_us + cycle.end_us) // 2, cycle.end_us - 1):
            assert cycle_containing(starts[0], interval, zone, t) == cycle


def test_an_evening_that_comes_twice_after_midnight_belongs_to_the_new_day():
    # St. John's went back from 00:01 to 23:01: the second 23:30 of the 28th comes after the 29th has begun.
    started_at, t = us("2006-10-01T00:00:00-02:30"), us("2006-10-28T23:30:00-03:30")
    expected = Cycle(us("2006-10-29T00:00:00-02:30"), us("2006-10-30T00:00:00-03:30"))
    assert cycle_containing(started_at, "day", "America/St_Johns", t) == expected
    assert window_containing("America/St_Johns", "day", t) == expected


def test_twelve_months_of_2013_in_new_york():
    start, end = us("2013-01-01T00:00:00-05:00"), us("2014-01-01T00:00:00-05:00")
    months = list(BillingCalendar(start, "month", NEW_YORK).before(end))
    assert [cycle.start for cycle in months] == [
        f"2013-{month:02}-01T{4 if 4 <= month <= 11 else 5:02}:00:00Z" for month in range(1, 13)
    ]
    assert months[-1].end == "2014-01-01T05:00:00Z"
    assert months == [calendar_month_containing(NEW_YORK, cycle.start_us) for cycle in months]
    assert months == list(windows_between(NEW_YORK, "month", start, end))


def test_nothing_before_the_first_cycle():
    start = us("2024-01-31T09:00:00Z")
    with pytest.raises(BeforeFirstCycle, match=r"2024-01-31T08:59:59\.999999Z is before the first cycle"):
        cycle_containing(start, "month", "UTC", start - 1)
    assert list(BillingCalendar(start, "month", "UTC").before(start)) == []


def test_cycles_between_takes_those_that_overlap():
    start = us("2024-01-01T00:00:00Z")
    day = 86_400_000_000
    calendar = BillingCalendar(start, "day", "UTC")
    found = list(calendar.between(start + day // 2, start + 2 * day))
    assert found == [Cycle(start, start + day), Cycle(start + day, start + 2 * day)]
    assert list(calendar.between(0, start + 1)) == [Cycle(start, start + day)]
    assert list(calendar.between(0, start)) == []


def test_a_cycle_is_half_open_and_never_empty():
    assert [t in Cycle(10, 20) for t in (9, 10, 19, 20)] == [False, True, True, False]
    with pytest.raises(ValueError, match="must end after its start"):
        Cycle(10, 10)


ZONES = st.sampled_from(["UTC", NEW_YORK, BERLIN, APIA, LORD_HOWE, "America/St_Johns", "America/Havana", "Asia/Gaza"])
INSTANTS = st.integers(0, us("2060-01-01T00:00:00Z"))


CHANGES = st.lists(st.tuples(st.integers(0, 400 * 86_400_000_000), ZONES), max_size=3)


@given(
    INSTANTS, st.sampled_from(["day", "week", "month", "year"]), ZONES, st.integers(0, 400 * 86_400_000_000), CHANGES
)
def test_cycles_leave_no_gap_and_agree_with_look_up(started_at, interval, zone, later, changes):
    later_zones = tuple(sorted((started_at + offset, zone) for offset, zone in changes))
    calendar = BillingCalendar(started_at, interval, zone, later_zones)
    found = list(islice(calendar.before(FAR), 6))
    assert found[0].start_us == started_at
    assert all(before.end_us == after.start_us for before, after in pairwise(found))
    t = started_at + later
    cycle = calendar.containing(t)
    assert t in cycle
    assert list(calendar.between(t, t + 1)) == [cycle]
    for each in found:
        assert calendar.containing(each.start_us) == calendar.containing(each.end_us - 1) == each


# fmt: off
ZONE_CHANGES = [
    # interval, zone, started_at, (changed at, new zone) ..., starts
    # New York is 5 hours behind: the cycle in progress keeps its end, the one after it ends at midnight there.
    ("month", "UTC", [("2024-01-15T00:00:00Z", NEW_YORK)],
     ["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T05:00:00Z", "2024-04-01T04:00:00Z"]),
    ("month", NEW_YORK, [("2024-02-01T04:59:59.999999Z", "UTC")],
     ["2024-01-01T05:00:00Z", "2024-02-01T05:00:00Z", "2024-03-01T00:00:00Z"]),
    # At the very start of a cycle, it is that cycle that is in progress.
    ("month", "UTC", [("2024-02-01T00:00:00Z", BERLIN)],
     ["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z", "2024-03-31T22:00:00Z"]),
    # The anchor's local time stays, and so does its day.
    ("month", BERLIN, [("2024-01-15T00:00:00Z", NEW_YORK)],
     ["2023-12-31T12:00:00+01:00", "2024-01-31T12:00:00+01:00", "2024-02-29T12:00:00-05:00", "2024-03-31T12:00:00-04:00"]),
    # Changed before it began: its start is an instant, what follows is in the new zone.
    ("month", "UTC", [("2023-12-01T00:00:00Z", NEW_YORK)],
     ["2024-01-01T00:00:00Z", "2024-02-01T05:00:00Z", "2024-03-01T05:00:00Z"]),
    # Twice, and back within one cycle.
    ("month", "UTC", [("2024-01-10T00:00:00Z", NEW_YORK), ("2024-01-11T00:00:00Z", "UTC")],
     ["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"]),
    ("month", "UTC", [("2024-01-10T00:00:00Z", NEW_YORK), ("2024-03-10T00:00:00Z", "UTC")],
     ["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T05:00:00Z", "2024-04-01T04:00:00Z", "2024-05-01T00:00:00Z"]),
    ("day", "UTC", [("2024-01-01T12:00:00Z", NEW_YORK)],
     ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", "2024-01-03T05:00:00Z", "2024-01-04T05:00:00Z"]),
]
# fmt: on


@pytest.mark.parametrize(("interval", "zone", "changes", "expected"), ZONE_CHANGES)
def test_a_changed_zone_holds_from_the_next_cycle_on(interval, zone, changes, expected):
    starts = [us(text) for text in expected]
    calendar = BillingCalendar(starts[0], interval, zone, tuple((us(at), to) for at, to in changes))
    found = list(islice(calendar.before(FAR), len(starts) - 1))
    assert found == [Cycle(start, end) for start, end in pairwise(starts)]
    assert [calendar.containing(cycle.start_us) for cycle in found] == found
    last = changes[-1][1]
    assert calendar.zone_at(FAR) == last


# fmt: off
WINDOWS = [
    ("hour",  "UTC",          "2024-01-01T10:59:59.999999Z",      "2024-01-01T10:00:00Z",      "2024-01-01T11:00:00Z"),
    ("hour",  "Asia/Kolkata", "2024-01-01T10:15:00+05:30",        "2024-01-01T10:00:00+05:30", "2024-01-01T11:00:00+05:30"),
    ("day",   BERLIN,         "2024-03-31T23:00:00+02:00",        "2024-03-31T00:00:00+01:00", "2024-04-01T00:00:00+02:00"),
    ("day",   NEW_YORK,       "2013-11-03T00:00:00-04:00",        "2013-11-03T00:00:00-04:00", "2013-11-04T00:00:00-05:00"),
    ("month", NEW_YORK,       "2013-03-31T23:59:59.999999-04:00", "2013-03-01T00:00:00-05:00", "2013-04-01T00:00:00-04:00"),
    # An hour that comes twice is two windows; one that does not exist is none.
    ("hour",  NEW_YORK,       "2013-11-03T01:30:00-04:00",        "2013-11-03T01:00:00-04:00", "2013-11-03T01:00:00-05:00"),
    ("hour",  NEW_YORK,       "2013-11-03T01:30:00-05:00",        "2013-11-03T01:00:00-05:00", "2013-11-03T02:00:00-05:00"),
    ("hour",  NEW_YORK,       "2013-03-10T01:30:00-05:00",        "2013-03-10T01:00:00-05:00", "2013-03-10T03:00:00-04:00"),
    ("day",   APIA,           "2011-12-29T12:00:00-10:00",        "2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00"),
    # Midnight does not exist: the day starts when the clock goes on.
    ("day",   "America/Havana", "2024-03-10T12:00:00-04:00",      "2024-03-10T01:00:00-04:00", "2024-03-11T00:00:00-04:00"),
]
# fmt: on


@pytest.mark.parametrize(("window", "zone", "t", "start", "end"), WINDOWS)
def test_windows(window, zone, t, start, end):
    assert window_containing(zone, window, us(t)) == Cycle(us(start), us(end))


@given(INSTANTS, st.sampled_from(["hour", "day", "month"]), ZONES)
def test_windows_leave_no_gap(t, window, zone):
    first, second = islice(windows_between(zone, window, t, FAR), 2)
    assert t in first
    assert first.end_us == second.start_us
    assert window_containing(zone, window, first.end_us - 1) == first


# fmt: off
INSTANTS_READ = [
    ("1970-01-01T00:00:00Z",                  0,                     "1970-01-01T00:00:00Z"),
    ("2026-03-30T12:00:00+02:00",             1_774_864_800_000_000, "2026-03-30T10:00:00Z"),
    ("2026-03-30t12:00:00z",                  1_774_872_000_000_000, "2026-03-30T12:00:00Z"),
    ("2026-03-30T12:00:00.25Z",               1_774_872_000_250_000, "2026-03-30T12:00:00.25Z"),
    ("2026-03-30T12:00:00.000001-00:00",      1_774_872_000_000_001, "2026-03-30T12:00:00.000001Z"),
    ("2026-03-30T12:00:00.123456999999999Z",  1_774_872_000_123_456, "2026-03-30T12:00:00.123456Z"),
    ("1969-12-31T23:59:59.5Z",                -500_000,              "1969-12-31T23:59:59.5Z"),
    ("2016-12-31T23:59:60Z",                  1_483_228_799_000_000, "2016-12-31T23:59:59Z"),
    ("2016-12-31T23:59:60.9999999Z",          1_483_228_799_999_999, "2016-12-31T23:59:59.999999Z"),
    ("2026-03-31T23:59:59.9999999Z",          1_775_001_599_999_999, "2026-03-31T23:59:59.999999Z"),
    ("2026-03-30 12:00:00Z",                  1_774_872_000_000_000, "2026-03-30T12:00:00Z"),
    ("2026-03-30T14:00:00+0200",              1_774_872_000_000_000, "2026-03-30T12:00:00Z"),
]
NOT_INSTANTS = [
    ("2026-03-30T12:00:00",       "timestamp_missing_offset"),
    ("2026-03-30T12:00:00.5",     "timestamp_missing_offset"),
    ("2026-03-30",                "timestamp_invalid"),
    ("2026-02-30T12:00:00Z",      "timestamp_invalid"),
    ("2026-03-30T24:00:00Z",      "timestamp_invalid"),
    ("2026-03-30T12:00:00+02",    "timestamp_invalid"),
    ("2026-03-30T12:00:61Z",      "timestamp_invalid"),
    ("0001-01-01T00:00:00+01:00", "timestamp_invalid"),
    ("9999-12-31T23:59:59-01:00", "timestamp_invalid"),
    ("2026-03-30T12:00:00+25:00", "timestamp_invalid"),
    ("2026-03-30T12:00Z",         "timestamp_invalid"),
    ("2026-03-30T12:00:00.Z",     "timestamp_invalid"),
    ("２026-03-30T12:00:00Z",     "timestamp_invalid"),
    (" 2026-03-30T12:00:00Z",     "timestamp_invalid"),
    ("1774864800",                "timestamp_invalid"),
    ("",                          "timestamp_invalid"),
]
# fmt: on


@pytest.mark.parametrize(("text", "instant", "formatted"), INSTANTS_READ)
def test_rfc3339(text, instant, formatted):
    assert parse_rfc3339(text) == instant
    assert format_rfc3339(instant) == formatted


@pytest.mark.parametrize(("text", "code"), NOT_INSTANTS)
def test_not_rfc3339(text, code):
    with pytest.raises(InvalidTimestamp) as refused:
        parse_rfc3339(text)
    assert refused.value.code == code


@given(st.integers(us("0001-01-02T00:00:00Z"), us("9999-12-30T00:00:00Z")))
def test_rfc3339_round_trip(instant):
    assert parse_rfc3339(format_rfc3339(instant)) == instant
