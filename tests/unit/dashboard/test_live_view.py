"""What the live view keeps, and what it says of what it does not keep."""

from __future__ import annotations

from dashboard.live_view import LiveView
from schemas.totals import UsageTotal


def total(
    customer: str, *, organization: str = "one", end: int = 10, partition: int = 0, offset: int = 0
) -> UsageTotal:
    return UsageTotal(organization, customer, "calls", 0, end, "1", 1, None, "t", partition, 0, offset, offset)


def test_an_organization_with_too_many_series_takes_no_room_of_another() -> None:
    """The bound was of all together: the large one's series left the small one's out, whose page said nothing."""
    view = LiveView(series_max=2)
    for number in range(3):
        view.apply_total(total(f"c{number}"))
    assert view.apply_total(total("c", organization="small"))
    assert view.apply_total(total("c0", offset=1)), "those that are kept go on"
    assert (view.customers("one"), view.is_whole("one"), view.is_whole("small")) == (["c1", "c0"], False, True)


def test_an_organization_is_whole_once_no_partition_leaves_anything_out() -> None:
    view = LiveView()
    for partition in (1, 2):
        view.apply_partial("one", partition, is_partial=True)
    view.apply_partial("one", 1, is_partial=False)
    assert (view.is_whole("one"), view.is_whole("small")) == (False, True)
    view.apply_partial("one", 2, is_partial=False)
    assert view.is_whole("one")


def test_totals_of_closed_cycles_are_gone_and_stay_so() -> None:
    view = LiveView()
    for end in (10, 20):
        view.apply_total(total("c", end=end))
    view.apply_total(total("old"))
    view.apply_total(total("elsewhere", partition=1))
    view.apply_closed(0, 10)
    assert [each.cycle_end for each in view.series("one", "c", "calls")] == [20]
    assert (view.customers("one"), view.series_count) == (["c", "elsewhere"], 2)
    assert not view.apply_total(total("old", offset=9)), "a frozen worker's, written late"
    view.apply_closed(0, 0)
    assert view.apply_total(total("old")), "all is counted anew"
