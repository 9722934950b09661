"""totals × rules → alerts: thresholds at their edge, once each, for whom and in which cycle."""

from __future__ import annotations

from typing import Any

import pytest

from catalog.view import CatalogView
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, AlertRule
from schemas.event import unscaled_value
from schemas.meter import Aggregation
from schemas.period import Cycle, calendar_month_containing
from schemas.product import Product
from schemas.subscription import ProductChange
from stream_processors.alerts import AlertBook
from stream_processors.moments import Seen
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


def seen(*totals: Total) -> list[Seen]:
    """Nothing of theirs came in a message of late."""
    return [Seen(each, None) for each in totals]


def due(view: CatalogView, *totals: Total, fired: frozenset[FiredKey] = frozenset()) -> list[Alert]:
    return AlertBook(view).due(seen(*totals), fired, NOW)


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
    first = book.due(seen(*reached), frozenset(), NOW)
    assert {(a.rule_id, a.customer_id, a.cycle_start) for a in first} == {
        ("rule_r", "c", MARCH.start_us),
        ("rule_s", "c", MARCH.start_us),
        ("rule_r", "c", APRIL.start_us),
        ("rule_s", "c", APRIL.start_us),
        ("rule_r", "d", MARCH.start_us),
    }
    assert len({alert.id for alert in first}) == 5
    fired = {(alert.rule_id, alert.customer_id, alert.cycle_start) for alert in first}
    assert book.due(seen(*reached), fired, NOW) == []
    # the same total twice in one look
    assert len(book.due(seen(reached[0], reached[0]), frozenset(), NOW)) == 2


def test_a_rule_of_one_customer_watches_no_other() -> None:
    view = view_of(meter("calls"), customer("c"), rule("r", "calls", "1", of="c"))
    assert [alert.customer_id for alert in due(view, total(10**9), total(10**9, of="d"))] == ["c"]


def test_rules_come_and_go_with_the_catalog() -> None:
    view, book = view_of(meter("calls")), None
    book = AlertBook(view)
    assert book.due(seen(total(10**9)), frozenset(), NOW) == []
    put(view, rule("r", "calls", "1"))
    assert len(book.due(seen(total(10**9)), frozenset(), NOW)) == 1
    archived = view.get(AlertRule, ORG, "rule_r")
    assert archived is not None
    put(view, archived.model_copy(update={"archived": True}))
    assert book.due(seen(total(10**9)), frozenset(), NOW) == []


def test_only_the_cycle_of_the_meter_counts() -> None:
    weekly = subscription("w", "c", "p", "2026-03-01T00:00:00Z", billing_interval="week")
    view = view_of(meter("calls"), meter("other"), customer("c"), product("p", "other"), weekly)
    put(view, rule("month", "calls", "1"))
    put(view, rule("week", "other", "1"))
    week = Cycle(us("2026-03-08T00:00:00Z"), us("2026-03-15T00:00:00Z"))
    fired = {(a.rule_id, a.cycle_start) for a in due(view, total(10**9), total(10**9, cycle=week))}
    assert fired == {("rule_month", MARCH.start_us), ("rule_week", week.start_us)}


# -- percent of included units, amount: by the price of the subscription in that cycle ----------------------------------

FROM_MARCH = subscription("s", "c", "p", "2026-03-01T00:00:00Z")
GRADUATED = {
    "model": "graduated", "meter_id": "mtr_calls", "included_units": "1000", "tiers": [
        {"up_to": "10000", "unit_amount": "0.002"}, {"up_to": None, "unit_amount": "0.001"},
    ],
}  # fmt: skip


def priced(*prices: dict[str, Any], currency: str = "eur") -> Product:
    return Product.model_validate({**dict(product("p")), "currency": currency, "prices": prices})


@pytest.mark.parametrize(
    ("kind", "threshold", "used", "price", "reached"),
    [
        (AlertKind.INCLUDED_PERCENT, "80", "800", GRADUATED, "80"),
        (AlertKind.INCLUDED_PERCENT, "80", "799.999999999", GRADUATED, None),
        (AlertKind.INCLUDED_PERCENT, "80", "12000", GRADUATED, "1200"),
        (AlertKind.INCLUDED_PERCENT, "33.333333333", "1", {**GRADUATED, "included_units": "3"}, "33.333333333"),
        (AlertKind.INCLUDED_PERCENT, "33.333333334", "1", {**GRADUATED, "included_units": "3"}, None),
        (AlertKind.INCLUDED_PERCENT, "1", "5", {**GRADUATED, "included_units": "0"}, None),  # nothing is included
        (AlertKind.AMOUNT, "21", "12000", GRADUATED, "21.00"),  # 11,000 priced: 20 + 1
        (AlertKind.AMOUNT, "21.01", "12000", GRADUATED, None),
        (AlertKind.AMOUNT, "0.01", "1004.999999999", GRADUATED, "0.01"),  # rounded as the invoice would
        (AlertKind.AMOUNT, "0.01", "1002.4", GRADUATED, None),
        (AlertKind.AMOUNT, "0.01", "-5", GRADUATED, None),  # a negative total prices as 0
    ],
)  # fmt: skip
def test_reached_by_the_price(
    kind: AlertKind, threshold: str, used: str, price: dict[str, Any], reached: str | None
) -> None:
    view = view_of(meter("calls"), customer("c"), priced(price), FROM_MARCH, rule("r", "calls", threshold, kind=kind))
    fired = due(view, total(unscaled_value(used)))
    assert [alert.quantity for alert in fired] == ([] if reached is None else [reached])
    assert all(alert.currency == ("eur" if kind is AlertKind.AMOUNT else None) for alert in fired)


@pytest.mark.parametrize("kind", [AlertKind.INCLUDED_PERCENT, AlertKind.AMOUNT])
def test_without_a_price_in_that_cycle_nothing_is_reached(kind: AlertKind) -> None:
    view = view_of(meter("calls"), meter("other"), customer("c"), priced(GRADUATED), rule("r", "calls", "1", kind=kind))
    assert due(view, total(10**15)) == []  # not subscribed
    put(view, subscription("s", "c", "p", "2026-04-01T00:00:00Z", "2026-04-10T00:00:00Z"))
    assert due(view, total(10**15)) == []  # before it
    assert len(due(view, total(10**15, cycle=APRIL))) == 1  # a cycle that is cut counts


def test_the_price_is_that_of_the_product_in_force_in_the_cycle() -> None:
    dear = priced({**GRADUATED, "tiers": [{"up_to": None, "unit_amount": "5"}]}).model_copy(update={"id": "prod_dear"})
    changed = subscription("s", "c", "p", "2026-03-01T00:00:00Z").model_copy(
        update={"changes": (ProductChange(product_id="prod_dear", from_us=APRIL.start_us),)}
    )
    view = view_of(meter("calls"), customer("c"), priced(GRADUATED), dear, changed)
    put(view, rule("r", "calls", "0.01", kind=AlertKind.AMOUNT))
    used = unscaled_value("1100")
    fired = {alert.cycle_start: alert.quantity for alert in due(view, total(used), total(used, cycle=APRIL))}
    assert fired == {MARCH.start_us: "0.20", APRIL.start_us: "500.00"}


# -- percent of typical usage: of the mean of up to three whole cycles before -------------------------------------------


def months(**used: str) -> list[Total]:
    """Totals of one series; jan="5": used in January 2026."""
    series = Series(ORG, "c", "calls")
    made: list[Total] = []
    for n, name in enumerate(("dec", "jan", "feb", "mar", "apr")):
        if name in used:
            start = calendar_month_containing("UTC", us("2025-12-15T00:00:00Z") + n * 31 * 86_400_000_000)
            made.append(series.total(start))
            made[-1].sum, made[-1].count = unscaled_value(used[name]), 1
    return made


@pytest.mark.parametrize(
    ("threshold", "used", "reached"),
    [
        ("150", {"jan": "100", "feb": "200", "mar": "225"}, "150"),  # mean of two: 150
        ("150", {"jan": "100", "feb": "200", "mar": "224.999999999"}, None),
        ("100", {"dec": "30", "jan": "60", "feb": "90", "mar": "60"}, "100"),
        ("100", {"dec": "30", "jan": "60", "feb": "90", "mar": "59"}, None),
        ("100", {"dec": "900", "jan": "0", "feb": "0", "mar": "300"}, "100"),
        ("100", {"dec": "900", "mar": "300"}, "100"),  # months without an event are 0, from the first with one on
        ("100", {"dec": "1000000", "jan": "1", "feb": "1", "mar": "1", "apr": "1"}, "100"),  # only the last three
        ("1", {"mar": "300"}, None),  # nothing before
        ("1", {"feb": "0", "mar": "300"}, None),  # a mean of 0 is no measure
        ("1", {"feb": "-3", "mar": "300"}, None),
    ],
)  # fmt: skip
def test_typical_usage(threshold: str, used: dict[str, str], reached: str | None) -> None:
    view = view_of(meter("calls"), rule("r", "calls", threshold, kind=AlertKind.TYPICAL_PERCENT))
    newest = months(**used)[-1]
    assert [alert.quantity for alert in due(view, newest)] == ([] if reached is None else [reached])


def test_what_is_imported_later_makes_the_cycles_after_it_typical_or_not() -> None:
    view = view_of(meter("calls"), rule("r", "calls", "200", kind=AlertKind.TYPICAL_PERCENT))
    book = AlertBook(view)
    march = months(mar="10")[0]
    assert book.due(seen(march), frozenset(), NOW) == []
    february = march.series.total(calendar_month_containing("UTC", MARCH.start_us - 1))
    february.sum, february.count = unscaled_value("4"), 1
    (alert,) = book.due(seen(february), frozenset(), NOW)
    assert (alert.cycle_start, alert.quantity) == (MARCH.start_us, "250")


def test_cycles_that_a_subscription_cuts_are_not_typical() -> None:
    begun = subscription("s", "c", "p", "2026-01-20T00:00:00Z")
    view = view_of(meter("calls"), customer("c"), product("p", "calls"), begun)
    put(view, rule("r", "calls", "100", kind=AlertKind.TYPICAL_PERCENT))
    series = Series(ORG, "c", "calls")
    # December is whole, January is cut at the 20th, then cycles run from the 20th.
    for start, end, used in (
        ("2025-12-01", "2026-01-01", 10), ("2026-01-01", "2026-02-01", 999), ("2026-01-20", "2026-02-20", 20),
        ("2026-02-20", "2026-03-20", 15),
    ):  # fmt: skip
        each = series.total(Cycle(us(f"{start}T00:00:00Z"), us(f"{end}T00:00:00Z")))
        each.sum, each.count = used * 10**9, 1
    (alert,) = due(view, series.totals[-1])
    assert alert.quantity == "100"  # 15 of the mean of 20 and 10
