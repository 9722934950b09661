"""What there is and what there should be → the difference, as a repair that a total takes in."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from decimal import Decimal

from catalog.cycles import Affected
from catalog.view import CatalogView
from runtime.one_by_one import OneByOne
from schemas.repair import RepairReason, UsageRepair
from schemas.totals import Progress, UsageTotal, total_key
from stream_processors.live_totals import LiveSnapshot
from stream_processors.reconcile import (
    added,
    difference,
    matches,
    wanted_totals,
    whole_again,
    within_room,
)
from stream_processors.reconcile_service import SCOPES_MAX, SETTLE_SECONDS, Noted, joined, settled_notes
from stream_processors.tiles import Tiles
from stream_processors.totals import Totals
from tests.unit.stream_processors.facts import ORG, customer, known, meter, product, subscription, us, view_of
from warehouse.totals import NO_USAGE, TotalsRequest
from warehouse.totals import UsageTotal as Exact
from warehouse.used import UsedMonth, _month

MARCH, APRIL, MAY = us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"), us("2026-05-01T00:00:00Z")
MID_MARCH, MID_APRIL = us("2026-03-15T00:00:00Z"), us("2026-04-15T00:00:00Z")
SERIES = (ORG, "c", "calls")
LOOP = OneByOne("test", lambda _: True)


def live(start: int = MARCH, end: int = APRIL, total: str = "5", count: int = 3, most: str | None = "4") -> UsageTotal:
    return UsageTotal(*SERIES, start, end, total, count, most, "topic", 1, 0, 9, 0, 2)


def snapshot(*totals: UsageTotal) -> LiveSnapshot:
    return LiveSnapshot(1, None, {total_key(*each.cycle_key): each for each in totals})


def used(start: int, end: int) -> UsedMonth:
    return UsedMonth(SERIES, start, end)


def windows(
    view: CatalogView, *totals: UsageTotal, months: list[UsedMonth]
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """cycle → spans whose events count in it."""
    found = wanted_totals(view, snapshot(*totals), months, None, LOOP)
    return {
        (each.cycle.start_us, each.cycle.end_us): [(window.start_us, window.end_us) for window in each.windows]
        for each in found
    }


def test_without_a_subscription_a_total_is_of_a_month() -> None:
    view = view_of(customer("c"), meter("calls"))
    assert windows(view, months=[used(MARCH, APRIL)]) == {(MARCH, APRIL): [(MARCH, APRIL)]}


def test_what_the_catalog_does_not_know_needs_no_total() -> None:
    for view in (view_of(customer("c")), view_of(meter("calls"))):
        assert windows(view, months=[used(MARCH, APRIL)]) == {}
        assert windows(view, live(), months=[]) == {(MARCH, APRIL): []}, "one from before is nothing now"


def test_closed_cycles_are_not_compared() -> None:
    closed = LiveSnapshot(1, closed_before=APRIL)
    found = wanted_totals(known(), closed, [used(MARCH, APRIL), used(APRIL, MAY)], None, LOOP)
    assert [each.cycle.start_us for each in found] == [APRIL]


def partial(*totals: UsageTotal, through: int = 9) -> LiveSnapshot:
    return replace(snapshot(*totals), progress=Progress("topic", 1, 10, 0, 0), partial={ORG: through})


def test_a_series_for_which_there_is_no_room_is_not_wanted() -> None:
    """Its repair would be refused, found again by the next round, and so on for ever."""
    months = [UsedMonth((ORG, each, "calls"), MARCH, APRIL) for each in "abc"]
    wanted = wanted_totals(known(), snapshot(live()), months, None, LOOP)
    for series_max, kept, left_out in ((1, "c", {ORG}), (2, "ca", {ORG}), (3, "cab", set[str]())):
        found, without = within_room(wanted, partial(live()), series_max)
        assert ([each.series[1] for each in found], without) == ([*kept], left_out)
    found, without = within_room(wanted, snapshot(live()), 1)
    assert ([each.series[1] for each in found], without) == (["c", "a"], {ORG}), "one is refused, so that it is told"


def test_an_organization_is_whole_when_all_of_it_was_compared_and_nothing_differed() -> None:
    def said(
        snapshot: LiveSnapshot,
        left_out: Set[str] = frozenset(),
        scope: list[Affected] | None = None,
        differing: int = 0,
    ) -> list[str]:
        found = whole_again(snapshot, left_out, repairs_of(differing), scope, 0)
        return [each.organization_id for each in found]

    assert said(partial()) == said(partial(), scope=[Affected(ORG)]) == [ORG]
    assert said(partial(), scope=[Affected(ORG, "c")]) == said(partial(), {ORG}) == said(partial(), differing=1) == []
    assert said(partial(through=10)) == [], "one was left out after the place"


def test_a_subscription_takes_its_cycles_out_of_the_months_that_there_were() -> None:
    view = view_of(
        customer("c"), meter("calls"), product("p", "calls"), subscription("s", "c", "p", "2026-03-15T00:00:00Z")
    )
    found = windows(view, live(), live(APRIL, MAY), months=[used(MARCH, APRIL), used(APRIL, MAY)])
    assert found == {
        (MARCH, APRIL): [(MARCH, MID_MARCH)],
        (APRIL, MAY): [],
        (MID_MARCH, MID_APRIL): [(MID_MARCH, MID_APRIL)],
        (MID_APRIL, us("2026-05-15T00:00:00Z")): [(MID_APRIL, us("2026-05-15T00:00:00Z"))],
    }


def repair_for(total: UsageTotal | None, exact: Exact, offset: int = 10) -> UsageRepair | None:
    (wanted,) = wanted_totals(
        known(), snapshot(*([total] if total else [])), [] if total else [used(MARCH, APRIL)], None, LOOP
    )
    return difference(wanted, exact, "topic", 1, offset, RepairReason.VOID, 7)


def test_a_total_that_is_exact_needs_nothing() -> None:
    assert repair_for(live(), Exact(Decimal("5.000000000"), 3, Decimal("4.000000000"))) is None
    assert repair_for(live(total="0", count=0, most=None), NO_USAGE) is None
    assert repair_for(None, NO_USAGE) is None


def test_a_repair_makes_the_total_exact_and_is_taken_in_once() -> None:
    for total, exact in (
        (live(), Exact(Decimal("-2.5"), 7, Decimal("3.000000001"))),
        (live(), Exact(Decimal(5), 3, None)),
        (live(), NO_USAGE),
        (None, Exact(Decimal("999999999999999999.999999999"), 1, Decimal("999999999999999999.999999999"))),
    ):
        repair = repair_for(total, exact)
        assert repair is not None
        assert (repair.offset, repair.repairs, repair.reason) == (9, total.repairs if total else 0, "void")
        totals = Totals(Tiles(view_of()))
        if total is not None:
            totals.restore(total, "topic")
        assert totals.repair(repair)
        assert not totals.repair(repair)
        (repaired,) = totals
        assert (Decimal(repaired.sum), repaired.count) == (exact.sum * 10**9, exact.count)
        assert repaired.max == (None if exact.max is None else int(exact.max * 10**9))


def test_windows_of_a_cycle_are_one_total() -> None:
    parts = [Exact(Decimal("1.5"), 2, Decimal(1)), Exact(Decimal(2), 1, None), Exact(Decimal(-9), 1, Decimal(3))]
    assert added(parts) == Exact(Decimal("-5.5"), 4, Decimal(3))
    assert added([]) == NO_USAGE


def test_a_scope_is_an_organization_a_customer_or_a_name() -> None:
    assert matches(None, SERIES)
    assert matches([Affected(ORG)], SERIES)
    assert matches([Affected("x"), Affected(ORG, event_name="calls")], SERIES)
    assert matches([Affected(ORG, "c", "calls")], SERIES)
    assert not matches([Affected(ORG, "d"), Affected(ORG, event_name="x"), Affected("x")], SERIES)
    assert not matches([], SERIES)


def test_too_many_scopes_are_whole_organizations() -> None:
    few = [Noted(Affected(ORG, f"c{i % 3}"), RepairReason.VOID, 0.0) for i in range(9)]
    assert joined(few) == [Affected(ORG, "c0"), Affected(ORG, "c1"), Affected(ORG, "c2")]
    many = [Noted(Affected(ORG, f"c{i}"), RepairReason.VOID, 0.0) for i in range(SCOPES_MAX + 1)]
    assert joined([*many, Noted(Affected("x", "c"), RepairReason.VOID, 0.0)]) == [Affected(ORG), Affected("x")]


def test_a_note_waits_until_who_counted_by_the_catalog_of_before_has_written() -> None:
    early, late = (Noted(Affected(ORG, "c"), RepairReason.LATE_CATALOG, at) for at in (1.0, 2.0))
    void = Noted(Affected(ORG, "c"), RepairReason.VOID, 2.0, (0, 7))
    assert settled_notes([early, late, void], 1.0 + SETTLE_SECONDS) == ([early, void], [late])


def test_months_end_where_the_next_begins() -> None:
    assert _month(202603) == (MARCH, APRIL)
    assert _month(202612) == (us("2026-12-01T00:00:00Z"), us("2027-01-01T00:00:00Z"))
    assert TotalsRequest(*SERIES, *_month(202604)).end_us == MAY


def repairs_of(count: int) -> list[UsageRepair]:
    (wanted,) = wanted_totals(view_of(customer("c"), meter("calls")), snapshot(live()), [], None, LOOP)
    repair = difference(wanted, Exact(Decimal(7), 4, Decimal(4)), "topic", 1, 10, RepairReason.RECONCILE, 0)
    assert repair is not None
    return [repair] * count
