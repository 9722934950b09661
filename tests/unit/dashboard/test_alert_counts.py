"""How many customers a new rule finds above its threshold: in the cycle that runs, of each kind."""

from __future__ import annotations

import pytest

from dashboard.alert_counts import customers_reached
from dashboard.live_view import LiveView
from dashboard.pages.subscription_list import subscription_list
from schemas.alert_rule import AlertKind
from schemas.period import Cycle
from schemas.totals import UsageTotal
from tests.unit.stream_processors.facts import ORG, customer, meter, product, rule, subscription, us, view_of

FEBRUARY, MARCH, APRIL = (us(f"2026-0{month}-01T00:00:00Z") for month in (2, 3, 4))
NOW = us("2026-03-20T00:00:00Z")


def live(*used: tuple[str, int, int, str]) -> LiveView:
    """customer, cycle's start and end, sum."""
    made = LiveView()
    for who, start, end, sum_ in used:
        made.apply_total(UsageTotal(ORG, who, "calls", start, end, sum_, 1, sum_, "one", 0, 0, 0, 0))
    return made


USED = live(
    ("above", MARCH, APRIL, "12"),
    ("at", MARCH, APRIL, "10"),
    ("below", MARCH, APRIL, "9.999999999"),
    ("before", FEBRUARY, MARCH, "50"),
    ("before", MARCH, APRIL, "4"),
    ("priced", MARCH, APRIL, "11"),
)


@pytest.mark.parametrize(
    ("kind", "threshold", "of", "count"),
    [
        (AlertKind.QUANTITY, "10", None, 3),
        (AlertKind.QUANTITY, "50", None, 0),  # a cycle that is over is none
        (AlertKind.QUANTITY, "10", "at", 1),
        (AlertKind.QUANTITY, "10", "below", 0),
        (AlertKind.AMOUNT, "11", None, 1),  # only one is priced: 1 a unit
        (AlertKind.TYPICAL_PERCENT, "8", None, 1),
        (AlertKind.TYPICAL_PERCENT, "8.1", None, 0),
        (AlertKind.INCLUDED_PERCENT, "1", None, 0),
    ],
)
def test_customers_that_a_rule_finds_above(kind: AlertKind, threshold: str, of: str | None, count: int) -> None:
    customers = [customer(each) for each in ("above", "at", "below", "before", "priced")]
    priced = subscription("s", "priced", "p", "2026-03-01T00:00:00Z")
    view = view_of(meter("calls"), *customers, product("p", "calls"), priced)
    assert customers_reached(view, USED, rule("r", "calls", threshold, of, kind), NOW) == count


def test_a_customer_whose_subscription_has_no_calendar_does_not_refuse_the_rule() -> None:
    odd = subscription("odd", "at", "p", "2026-03-01T00:00:00Z").model_copy(update={"started_at": -(10**17)})
    priced = subscription("s", "priced", "p", "2026-03-01T00:00:00Z")
    view = view_of(meter("calls"), customer("at"), customer("priced"), product("p", "calls"), odd, priced)
    assert customers_reached(view, USED, rule("r", "calls", "11", None, AlertKind.AMOUNT), NOW) == 1
    shown = {each.subscription.id: each.cycle for each in subscription_list(view, ORG, NOW)}
    assert shown == {"sub_odd": None, "sub_s": Cycle(MARCH, APRIL)}
