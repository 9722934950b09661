"""What the overview says: events a second, revenue of open cycles, and who changed last."""

from decimal import Decimal
from typing import Any
from unittest.mock import Mock

import msgspec.structs
import pytest

from catalog.view import CatalogView
from dashboard.count_rates import CountRates
from dashboard.live import LiveTotals
from dashboard.live_view import LiveView
from dashboard.overview import ROWS_MAX, usage_table
from dashboard.revenue import OpenRevenue
from schemas.period import Cycle
from schemas.product import Product
from schemas.settings import Settings
from schemas.totals import UsageTotal, encode, total_key
from tests.unit.stream_processors.facts import ORG, customer, meter, put, subscription, us, view_of

MARCH = Cycle(us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"))
NOW = us("2026-03-20T00:00:00Z")


def total(of: str, count: int, *, offset: int = 1, cycle: Cycle = MARCH, event_name: str = "calls") -> UsageTotal:
    return UsageTotal(
        ORG, of, event_name, cycle.start_us, cycle.end_us, str(count), count, None, "topic", 0, 0, offset, offset
    )


@pytest.mark.parametrize(
    ("counted", "now", "rate"),
    [
        ([], 100, 0.0),
        ([(100, 95)], 100, 10.0),
        ([(100, 90), (50, 99)], 100, 15.0),
        ([(100, 89), (50, 100)], 100, 0.0),  # too old, and a second that is not over
    ],
)
def test_the_rate_is_of_the_last_ten_whole_seconds(counted: list[tuple[int, int]], now: int, rate: float) -> None:
    rates = CountRates()
    for events, second in counted:
        rates.add(ORG, events, second * 1_000_000 + 5)
        rates.add("other", 7, second * 1_000_000)
    assert rates.per_second(ORG, now * 1_000_000 + 9) == rate


def test_rates_are_bounded() -> None:
    rates = CountRates()
    for second in range(1000):
        rates.add(ORG, 1, second * 1_000_000)
    assert len(rates._counted[ORG]) <= 30
    assert rates.per_second(ORG, 1_000 * 1_000_000) == 1.0


def priced(currency: str = "eur", name: str = "p") -> Product:
    prices = [
        {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "0.5", "included_units": "10"},
        {"model": "flat_fee", "amount": "49.00"},
    ]
    own = {"id": f"prod_{name}", "organization_id": ORG, "created_at": 0, "name": name}
    return Product.model_validate({**own, "currency": currency, "prices": prices})


def subscribed() -> CatalogView:
    return view_of(
        meter("calls"), customer("a"), customer("b"), priced(), priced("jpy", "y"),
        subscription("a", "a", "p", "2026-03-01T00:00:00Z"),
    )  # fmt: skip


def test_revenue_is_what_open_cycles_cost_now() -> None:
    view, live = subscribed(), LiveView()
    book = OpenRevenue(view, live, ORG)
    assert book.at(NOW).amounts == {"eur": Decimal("49.00")}
    live.apply_total(total("a", 110))
    live.apply_total(total("a", 1000, cycle=Cycle(MARCH.start_us, NOW)))  # of another meter's cycle
    live.apply_total(total("b", 1000))  # not subscribed
    assert book.at(NOW).amounts == {"eur": Decimal("99.00")}
    live.apply_total(total("a", 111, offset=2))
    put(view, subscription("b", "b", "y", "2026-03-01T00:00:00Z"))
    now = book.at(NOW)
    assert (now.amounts, now.subscriptions) == ({"eur": Decimal("99.50"), "jpy": Decimal("544")}, 2)
    # the next cycle begins with nothing used, and an ended subscription has none
    assert book.at(MARCH.end_us).amounts == {"eur": Decimal("49.00"), "jpy": Decimal("49")}
    put(view, subscription("b", "b", "y", "2026-03-01T00:00:00Z", "2026-03-21T00:00:00Z"))
    assert book.at(us("2026-03-22T00:00:00Z")).amounts == {"eur": Decimal("99.50")}


def test_a_subscription_that_can_not_be_priced_is_named_and_the_others_are() -> None:
    """Its start is one that no calendar has."""
    view = subscribed()
    put(view, subscription("b", "b", "y", "2026-03-01T00:00:00Z").model_copy(update={"started_at": -(10**17)}))
    book = OpenRevenue(view, LiveView(), ORG)
    for _ in range(2):
        found = book.at(NOW)
        assert (found.amounts, found.subscriptions) == ({"eur": Decimal("49.00")}, 1)
        assert found.not_priced == {"sub_b": "ValueError: value or calculation out of range"}


def test_the_table_shows_those_that_changed_last() -> None:
    view, live = view_of(meter("calls"), customer("c001")), LiveView()
    for n in range(ROWS_MAX + 10):
        live.apply_total(total(f"c{n:03}", n))
    live.apply_total(total("c001", 5, offset=2))
    table = usage_table(live, view, ORG)
    assert (len(table.rows), table.more) == (ROWS_MAX, 10)
    assert {"c001", "c059", "c011"} <= {row.customer_id for row in table.rows}
    assert {"c000", "c010"} & {row.customer_id for row in table.rows} == set()
    assert live.latest_cycle_start(ORG) == MARCH.start_us
    assert [series[-1].count for series in live.series_of(ORG, "c001")] == [5]


def test_a_total_that_is_no_number_hides_no_other_customer() -> None:
    view, live = view_of(meter("calls")), LiveView()
    live.apply_total(msgspec.structs.replace(total("odd", 1), sum="many"))
    live.apply_total(total("even", 2))
    assert [row.customer_id for row in usage_table(live, view, ORG).rows] == ["even"]


def test_a_record_that_can_not_be_applied_does_not_end_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ended, and with it the live view of every organization."""
    live = LiveTotals(Settings())  # pyright: ignore[reportCallIssue]
    apply = live.view.apply_total

    def odd(record: UsageTotal) -> bool:
        if record.customer_id == "odd":
            raise ArithmeticError("no number")
        return apply(record)

    monkeypatch.setattr(live.view, "apply_total", odd)
    live._take_all([message(total("odd", 1)), message(total("even", 2))])
    assert live.view.customers(ORG) == ["even"]


def message(record: UsageTotal) -> Any:
    """Of usage.totals, as a consumer has it."""
    parts = {"topic": "usage.totals", "partition": 0, "offset": 1, "error": None, "key": total_key(*record.cycle_key)}
    return Mock(
        **{f"{name}.return_value": value for name, value in parts.items()}, **{"value.return_value": encode(record)}
    )


def test_who_changed_since_is_told_with_the_newest_change() -> None:
    live = LiveView()
    assert live.changed_since(ORG, 0) == (set(), 0)
    for customer_id in ("a", "b", "a"):
        live.apply_total(total(customer_id, 1, offset=live.changed_since(ORG, 0)[1] + 1))
    everyone, newest = live.changed_since(ORG, 0)
    assert everyone == {"a", "b"}
    assert live.changed_since(ORG, newest) == (set(), newest)
    assert not live.apply_total(total("b", 1, offset=1))  # what is known already changes nothing
    live.apply_total(
        UsageTotal("org_other", "c", "calls", MARCH.start_us, MARCH.end_us, "1", 1, None, "topic", 0, 0, 1, 1)
    )
    live.apply_total(total("b", 2, offset=9))
    assert live.changed_since(ORG, newest)[0] == {"b"}
