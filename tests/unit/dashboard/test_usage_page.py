"""The usage page: which cycles it holds against each other, and that nobody waits for slow counting twice."""

import asyncio
from decimal import Decimal

import pytest

from dashboard.counting import Countings, soon
from dashboard.usage_figures import combined, cycle_and_before, fitting_window, last_cycles, pricing_subscription, whole
from dashboard.usage_queries import UsageRow
from schemas.meter import Aggregation
from schemas.period import Cycle
from tests.unit.stream_processors.facts import ORG, customer, meter, product, subscription, us, view_of

DAY_US = 86_400_000_000
JANUARY, MARCH = us("2026-01-10T00:00:00Z"), us("2026-03-20T00:00:00Z")


def test_the_subscription_is_the_one_that_prices_the_meter_now() -> None:
    view = view_of(
        meter("calls"), meter("other"), customer("c"), product("p", "calls"), product("q", "other"),
        subscription("old", "c", "p", "2026-01-10T00:00:00Z", "2026-02-10T00:00:00Z"),
        subscription("new", "c", "p", "2026-02-10T00:00:00Z"), subscription("q", "c", "q", "2026-01-10T00:00:00Z"),
    )  # fmt: skip
    found = pricing_subscription(view, ORG, "c", "mtr_calls", JANUARY)
    assert found is not None
    assert found.id == "sub_old"
    assert [
        each and each.id
        for each in (
            pricing_subscription(view, ORG, "c", "mtr_calls", MARCH),
            pricing_subscription(view, ORG, "c", "mtr_calls", us("2025-01-01T00:00:00Z")),
            pricing_subscription(view, ORG, "nobody", "mtr_calls", MARCH),
        )
    ] == ["sub_new", "sub_new", None]


def test_the_cycle_and_the_one_before_it() -> None:
    begun = subscription("s", "c", "p", "2026-01-10T00:00:00Z", "2026-04-01T00:00:00Z")
    first = Cycle(us("2026-01-10T00:00:00Z"), us("2026-02-10T00:00:00Z"))
    second = Cycle(first.end_us, us("2026-03-10T00:00:00Z"))
    third = Cycle(second.end_us, us("2026-04-10T00:00:00Z"))
    assert cycle_and_before(begun, first.start_us) == (first, None)
    assert cycle_and_before(begun, first.end_us) == (second, first)
    assert cycle_and_before(begun, us("2027-01-01T00:00:00Z")) == (third, second)  # ended: its last
    assert cycle_and_before(begun, 0) == (first, None)  # not begun: its first
    assert last_cycles(begun, Cycle(0, us("2027-01-01T00:00:00Z"))) == [first, second, third]


@pytest.mark.parametrize(
    ("days", "wanted", "window"),
    [(1, "", "hour"), (2, "", "hour"), (30, "", "day"), (30, "hour", "day"), (16, "hour", "hour"), (500, "", "month"),
     (30, "month", "month"), (500, "hour", "month")],
)  # fmt: skip
def test_a_chart_can_be_read(days: int, wanted: str, window: str) -> None:
    assert fitting_window(Cycle(0, days * DAY_US), wanted) == window


def test_rows_of_a_window_are_put_together_as_the_meter_does() -> None:
    first, second = Cycle(0, 5), Cycle(5, 9)
    rows = [
        UsageRow("", "m", first, Decimal(3)),
        UsageRow("", "m", first, Decimal(4)),
        UsageRow("", "m", second, Decimal(-9)),
    ]
    added, greatest = combined(rows, Aggregation.SUM), combined(rows, Aggregation.MAX)
    assert (added[0], added[5], greatest[0], greatest[5], added[77]) == (7, -9, 4, -9, 0)
    assert (whole(added.values(), Aggregation.SUM), whole([], Aggregation.MAX)) == (-2, 0)


def test_what_is_asked_for_again_is_the_same_counting() -> None:
    async def run() -> None:
        countings, began, release = Countings[int](), list[str](), asyncio.Event()

        async def count() -> int:
            began.append("x")
            await release.wait()
            return 42

        task = countings.begun("a", count)
        assert await soon(task, 0.01) is None
        assert countings.begun("a", count) is task
        release.set()
        assert await soon(countings.begun("a", count), 5) == 42
        assert await countings.begun("b", count) == 42
        assert len(began) == 2

    asyncio.run(run())


def test_an_error_of_a_counting_is_its_askers() -> None:
    async def run() -> None:
        async def fail() -> int:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await soon(Countings[int]().begun("a", fail), 5)

    asyncio.run(run())
