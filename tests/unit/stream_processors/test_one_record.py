"""A subscription without a calendar is one customer's problem: totals, alerts and repairs of all others go on."""

from __future__ import annotations

import pytest

from catalog.view import CatalogView
from runtime.one_by_one import OneByOne
from schemas.alert_rule import AlertKind
from schemas.period import Cycle
from schemas.totals import UsageTotal, total_key
from stream_processors import alerts as alerts_module
from stream_processors.alerts import AlertBook
from stream_processors.live_totals import LiveSnapshot
from stream_processors.moments import Seen
from stream_processors.reconcile import wanted_totals
from stream_processors.state import PartitionState
from stream_processors.tiles import Tiles
from stream_processors.totals import Series, Total
from tests.unit.stream_processors.facts import (
    ORG,
    batch,
    customer,
    meter,
    product,
    rule,
    subscription,
    us,
    view_of,
)
from warehouse.used import UsedMonth

MARCH = Cycle(us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"))
MID_MARCH = us("2026-03-15T00:00:00Z")


def view() -> CatalogView:
    """`odd` is subscribed from a time on that no calendar has; `even` from March on."""
    odd = subscription("odd", "odd", "p", "2026-03-01T00:00:00Z").model_copy(update={"started_at": -(10**17)})
    return view_of(
        meter("calls"), customer("odd"), customer("even"), product("p", "calls"), odd,
        subscription("even", "even", "p", "2026-03-01T00:00:00Z"),
        rule("amount", "calls", "5", kind=AlertKind.AMOUNT), rule("quantity", "calls", "5"),
    )  # fmt: skip


def total(of: str) -> Total:
    made = Series(ORG, of, "calls").total(MARCH)
    made.sum = 10 * 10**9
    return made


def test_usage_of_the_others_counts() -> None:
    state = PartitionState(0, "topic", Tiles(view()), horizon_us=1, ids_max=10)
    state.apply([(0, batch([("odd", "calls", MID_MARCH, "1", ""), ("even", "calls", MID_MARCH, "2", "")]))])
    assert {(each.series.customer_id, each.sum, each.cycle) for each in state.totals} == {
        ("odd", 10**9, MARCH),  # the calendar month
        ("even", 2 * 10**9, MARCH),
    }


def test_an_organization_in_no_known_time_zone_has_months_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_tile(*_: object) -> None:
        raise ValueError("the zone is unknown")

    monkeypatch.setattr("stream_processors.tiles.tile_at", no_tile)
    assert Tiles(view())(ORG, "odd", "calls", MID_MARCH).cycles == (MARCH,)


def test_alerts_of_the_others_fire() -> None:
    due = AlertBook(view()).due([Seen(total("odd"), None), Seen(total("even"), None)], frozenset(), MID_MARCH)
    assert [(each.rule_id, each.customer_id) for each in due] == [("rule_amount", "even"), ("rule_quantity", "even")]


def test_a_rule_that_can_not_be_read_keeps_no_other_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> None:
        raise ValueError("no threshold")

    monkeypatch.setitem(alerts_module.KINDS, AlertKind.AMOUNT, unreadable)
    due = AlertBook(view()).due([Seen(total("even"), None)], frozenset(), MID_MARCH)
    assert [each.rule_id for each in due] == ["rule_quantity"]


def test_totals_of_the_others_are_compared_and_the_one_is_named() -> None:
    problems: dict[str, str] = {}
    live = {
        total_key(*each.cycle_key): each
        for each in (
            UsageTotal(ORG, of, "calls", MARCH.start_us, MARCH.end_us, "1", 1, None, "topic", 0, 0, 1, 1)
            for of in ("odd", "even")
        )
    }
    used = [UsedMonth((ORG, of, "calls"), MARCH.start_us, MARCH.end_us) for of in ("odd", "even")]
    wanted = wanted_totals(
        view(), LiveSnapshot(0, None, live), used, None, OneByOne("test", lambda _: False, problems.__setitem__)
    )
    assert [each.series[1] for each in wanted] == ["even"]
    assert problems == {f"calls of customer odd of {ORG}": "ValueError: value or calculation out of range"}
