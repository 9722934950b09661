"""totals × rules → alerts: thresholds at their edge, once each, for whom and in which cycle."""

from __future__ import annotations

import pytest

from catalog.view import CatalogView
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, AlertRule
from schemas.meter import Aggregation
from schemas.period import Cycle
from stream_processors.alerts import AlertBook
from stream_processors.state import FiredKey
from stream_processors.totals import Series, Total
from tests.unit.stream_processors.facts import (
    ORG,
    customer,
    meter,
    product,
    put,
    rule,
    subscription,
    us,
    view_of,
)

NOW = 7
MARCH = Cycle(us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"))
APRIL = Cycle(us("2026-04-01T00:00:00Z"), us("2026-05-01T00:00:00Z"))


def total(sum_: int = 0, count: int = 0, max_: int | None = None, of: str = "c", cycle: Cycle = MARCH) -> Total:
    made = Series(ORG, of, "calls").total(cycle)
    made.sum, made.count, made.max = sum_, count, max_
    return made


def due(view: CatalogView, *totals: Total, fired: frozenset[FiredKey] = frozenset()) -> list[Alert]:
    return AlertBook(view).due(totals, fired, NOW)


@pytest.mark.parametrize(
    ("aggregation", "threshold", "values", "quantity"),
    [
        (Aggregation.SUM, "10", total(10_000_000_000), "10"),  # reached means at or above
        (Aggregation.SUM, "10", total(9_999_999_999), None),
        (Aggregation.SUM, "10.000000001", total(10_000_000_000), None),
        (Aggregation.SUM, "0.000000001", total(1), "0.000000001"),
        (Aggregation.SUM, "10.0000000001", total(10_000_000_000), None),  # finer than a value can be
        (Aggregation.SUM, "10.0000000001", total(10_000_000_001), "10.000000001"),
        (Aggregation.SUM, "999999999999999999.999999999999", total(10**27 - 1), None),
        (Aggregation.SUM, "999999999999999999.999999999999", total(10**27), "1000000000000000000"),
        (Aggregation.COUNT, "3", total(count=3), "3"),
        (Aggregation.COUNT, "3", total(10**18, count=2, max_=10**18), None),
        (Aggregation.MAX, "5", total(10**18, 9, 5_000_000_000), "5"),
        (Aggregation.MAX, "5", total(10**18, 9, 4_999_999_999), None),
        (Aggregation.MAX, "5", total(0, 9, None), None),
    ],
)
def test_threshold_is_reached_at_or_above(
    aggregation: Aggregation, threshold: str, values: Total, quantity: str | None
) -> None:
    view = view_of(meter("calls", aggregation=aggregation), rule("r", "calls", threshold))
    assert [alert.quantity for alert in due(view, values)] == ([] if quantity is None else [quantity])


def test_an_alert_says_what_fired() -> None:
    view = view_of(meter("calls"), rule("r", "calls", "1.50"))
    (alert,) = due(view, total(2_000_000_000))
    assert alert == Alert(
        id=alert.id,
        organization_id=ORG,
        rule_id="rule_r",
        customer_id="c",
        meter_id="mtr_calls",
        kind=AlertKind.QUANTITY,
        threshold="1.50",
        quantity="2",
        cycle_start=MARCH.start_us,
        cycle_end=MARCH.end_us,
        fired_at=NOW,
    )


def test_fires_once_a_rule_customer_and_cycle() -> None:
    view = view_of(meter("calls"), rule("r", "calls", "1"), rule("s", "calls", "2"))
    book, reached = AlertBook(view), (total(5 * 10**9), total(5 * 10**9, cycle=APRIL), total(10**9, of="d"))
    first = book.due(reached, frozenset(), NOW)
    assert {(a.rule_id, a.customer_id, a.cycle_start) for a in first} == {
        ("rule_r", "c", MARCH.start_us),
        ("rule_s", "c", MARCH.start_us),
        ("rule_r", "c", APRIL.start_us),
        ("rule_s", "c", APRIL.start_us),
        ("rule_r", "d", MARCH.start_us),
    }
    assert len({alert.id for alert in first}) == 5
    fired = {(alert.rule_id, alert.customer_id, alert.cycle_start) for alert in first}
    assert book.due(reached, fired, NOW) == []
    # the same total twice in one look
    assert len(book.due((reached[0], reached[0]), frozenset(), NOW)) == 2


def test_a_rule_of_one_customer_watches_no_other() -> None:
    view = view_of(meter("calls"), customer("c"), rule("r", "calls", "1", of="c"))
    assert [alert.customer_id for alert in due(view, total(10**9), total(10**9, of="d"))] == ["c"]


def test_rules_come_and_go_with_the_catalog() -> None:
    view, book = view_of(meter("calls")), None
    book = AlertBook(view)
    assert book.due([total(10**9)], frozenset(), NOW) == []
    put(view, rule("r", "calls", "1"))
    assert len(book.due([total(10**9)], frozenset(), NOW)) == 1
    archived = view.get(AlertRule, ORG, "rule_r")
    assert archived is not None
    put(view, archived.model_copy(update={"archived": True}))
    assert book.due([total(10**9)], frozenset(), NOW) == []
    # of another kind: not ours to evaluate
    put(view, rule("amount", "calls", "1", kind=AlertKind.AMOUNT))
    assert book.due([total(10**9)], frozenset(), NOW) == []


def test_only_the_cycle_of_the_meter_counts() -> None:
    weekly = subscription("w", "c", "p", "2026-03-01T00:00:00Z", billing_interval="week")
    view = view_of(meter("calls"), meter("other"), customer("c"), product("p", "other"), weekly)
    put(view, rule("month", "calls", "1"))
    put(view, rule("week", "other", "1"))
    week = Cycle(us("2026-03-08T00:00:00Z"), us("2026-03-15T00:00:00Z"))
    fired = {(a.rule_id, a.cycle_start) for a in due(view, total(10**9), total(10**9, cycle=week))}
    assert fired == {("rule_month", MARCH.start_us), ("rule_week", week.start_us)}
