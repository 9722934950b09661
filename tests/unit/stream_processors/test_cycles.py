"""In which cycles an event counts: tables of subscriptions, zones and times."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.cycles import UNCOUNTED, Affected, affected_by, meter_reads, tile_at
from catalog.view import CatalogView
from schemas.period import Cycle
from schemas.subscription import ProductChange
from tests.unit.stream_processors.facts import (
    ORG,
    customer,
    meter,
    organization,
    product,
    put,
    rule,
    subscription,
    us,
    view_of,
)

MARCH = Cycle(us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"))


def cycle(start: str, end: str) -> Cycle:
    return Cycle(us(start), us(end))


def asked(view: CatalogView, t: str, customer_id: str = "c", event_name: str = "calls") -> tuple[Cycle, ...]:
    return tile_at(view, ORG, customer_id, event_name, us(t)).cycles


@pytest.mark.parametrize(
    ("zone", "t", "start", "end"),
    [
        (None, "2026-03-15T12:00:00Z", "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"),
        ("UTC", "2026-04-01T00:00:00Z", "2026-04-01T00:00:00Z", "2026-05-01T00:00:00Z"),
        ("America/New_York", "2013-03-01T04:59:59Z", "2013-02-01T05:00:00Z", "2013-03-01T05:00:00Z"),
        ("America/New_York", "2013-03-31T12:00:00Z", "2013-03-01T05:00:00Z", "2013-04-01T04:00:00Z"),
    ],
)
def test_calendar_month_without_a_subscription(zone: str | None, t: str, start: str, end: str) -> None:
    view = view_of(*([organization(zone)] if zone else []), meter("calls"), customer("c"))
    assert asked(view, t) == (cycle(start, end),)


def test_what_the_catalog_does_not_know_counts_in_no_cycle() -> None:
    view = view_of(meter("calls"), customer("c"))
    for unknown in (("nobody", "calls"), ("c", "unread")):
        assert tile_at(view, ORG, *unknown, MARCH.start_us) is UNCOUNTED
    for gone in (customer("c"), meter("calls")):
        put(view, gone.model_copy(update={"archived": True}))
    assert asked(view, "2026-03-15T12:00:00Z") == (MARCH,), "it was known, and late usage of it counts"


ONE = (
    meter("calls"),
    customer("c"),
    product("p", "calls"),
    subscription("s", "c", "p", "2026-03-15T10:00:00Z", "2026-05-20T00:00:00Z"),
)


@pytest.mark.parametrize(
    ("t", "start", "end"),
    [
        ("2026-03-15T09:59:59.999999Z", "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"),  # before it starts
        ("2026-03-15T10:00:00Z", "2026-03-15T10:00:00Z", "2026-04-15T10:00:00Z"),
        ("2026-04-15T09:59:59.999999Z", "2026-03-15T10:00:00Z", "2026-04-15T10:00:00Z"),
        ("2026-04-15T10:00:00Z", "2026-04-15T10:00:00Z", "2026-05-15T10:00:00Z"),
        ("2026-05-19T23:59:59Z", "2026-05-15T10:00:00Z", "2026-06-15T10:00:00Z"),  # the last cycle keeps its length
        ("2026-05-20T00:00:00Z", "2026-05-01T00:00:00Z", "2026-06-01T00:00:00Z"),  # after its end
    ],
)
def test_cycle_of_the_subscription_that_prices_the_meter(t: str, start: str, end: str) -> None:
    view = view_of(*ONE)
    assert asked(view, t) == (cycle(start, end),)
    assert asked(view, t, "another") == asked(view_of(), t)
    assert asked(view, t, "c", "unpriced") == asked(view_of(), t)


def test_what_is_not_billed_counts_as_without_a_subscription() -> None:
    billed_from = us("2026-04-15T10:00:00Z")
    view = view_of(*ONE[:3], subscription("s", "c", "p", "2026-03-15T10:00:00Z", billed_from=billed_from))
    assert asked(view, "2026-04-15T09:59:59Z") == (cycle("2026-04-01T00:00:00Z", "2026-05-01T00:00:00Z"),)
    assert asked(view, "2026-04-15T10:00:00Z") == (cycle("2026-04-15T10:00:00Z", "2026-05-15T10:00:00Z"),)


def test_meters_of_one_event_name_may_have_different_cycles() -> None:
    view = view_of(
        meter("calls"),
        meter("peak"),
        meter("free"),
        customer("c"),
        product("monthly", "calls"),
        product("weekly", "peak"),
        subscription("m", "c", "monthly", "2026-03-01T00:00:00Z"),
        subscription("w", "c", "weekly", "2026-03-01T00:00:00Z", billing_interval="week"),
    )
    week = cycle("2026-03-08T00:00:00Z", "2026-03-15T00:00:00Z")
    # The month of the subscription is the calendar month of the unpriced meter: one cycle, and the event counts once.
    assert asked(view, "2026-03-09T00:00:00Z") == (MARCH, week)
    assert meter_reads(view, ORG, "c", "mtr_calls", MARCH)
    assert not meter_reads(view, ORG, "c", "mtr_calls", week)
    assert meter_reads(view, ORG, "c", "mtr_peak", week)
    assert not meter_reads(view, ORG, "c", "mtr_peak", MARCH)
    assert meter_reads(view, ORG, "c", "mtr_free", MARCH)


def test_a_product_prices_from_its_cycle_on() -> None:
    free = product("free")
    change = ProductChange(product_id="prod_p", from_us=us("2026-04-10T00:00:00Z"))
    started = subscription("s", "c", "free", "2026-03-10T00:00:00Z", changes=(change,))
    view = view_of(meter("calls"), customer("c"), free, product("p", "calls"), started)
    assert asked(view, "2026-04-09T00:00:00Z") == (cycle("2026-04-01T00:00:00Z", "2026-05-01T00:00:00Z"),)
    assert asked(view, "2026-04-10T00:00:00Z") == (cycle("2026-04-10T00:00:00Z", "2026-05-10T00:00:00Z"),)


@settings(deadline=None)
@given(st.integers(us("2026-02-01T00:00:00Z"), us("2026-07-01T00:00:00Z")))
def test_tiles_join_without_a_gap_and_are_the_same_from_anywhere_within(t: int) -> None:
    view = view_of(
        *ONE,
        meter("peak"),
        product("q", "peak"),
        subscription("q", "c", "q", "2026-04-02T00:00:00Z", "2026-04-30T00:00:00Z", billing_interval="week"),
        subscription("later", "c", "p", "2026-06-03T00:00:00Z"),
    )
    tile = tile_at(view, ORG, "c", "calls", t)
    assert tile.from_us <= t < tile.until_us
    assert all(cycle.start_us <= tile.from_us and tile.until_us <= cycle.end_us for cycle in tile.cycles)
    for other in (tile.from_us, tile.until_us - 1):
        assert tile_at(view, ORG, "c", "calls", other) == tile
    neighbours = [tile_at(view, ORG, "c", "calls", at) for at in (tile.from_us - 1, t, tile.until_us)]
    assert all(before.until_us == after.from_us for before, after in pairwise(neighbours))


def test_what_a_change_of_the_catalog_affects() -> None:
    view = view_of(*ONE)
    assert affected_by(put(view, organization("Europe/Berlin"))) == Affected(ORG)
    assert affected_by(put(view, meter("peak"))) == Affected(ORG, event_name="calls")
    assert affected_by(put(view, subscription("t", "c", "p", "2026-06-01T00:00:00Z"))) == Affected(ORG, customer_id="c")
    assert affected_by(put(view, customer("new"))) == Affected(ORG, customer_id="new")
    assert affected_by(put(view, customer("new"))) is None, "only its first record makes it known"
    assert affected_by(put(view, product("q", "peak"))) is None
    assert affected_by(put(view, rule("r", "calls", "1"))) is None
