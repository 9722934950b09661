"""Late usage: however late events, voids and closes come, what was billed for a cycle adds up to what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing_job.invoice.due import FINAL_AFTER_DAYS
from billing_job.invoice.pricing import priced_again
from billing_job.invoice.usage_reader import need_of
from ledger.records import InvoiceStep
from ledger.snapshot import InvoiceFixed
from tests.cycles import DAY_US, ENDS, MINIMUM, MONTHS, NOW, ORG, SUB, TIERS, World
from warehouse.client import WarehouseUnavailable


def amounts(made: Iterable[InvoiceFixed]) -> list[tuple[str, list[str]]]:
    return [(each.total, [line.amount for line in each.lines]) for each in made]


# --- Cases ------------------------------------------------------------------------------------------------------------


def test_late_usage_is_a_line_on_the_next_invoice_and_the_one_after_has_none() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    assert amounts(world.close(MONTHS[1])) == [("33.50", ["33.50"])]
    world.event(0, "calls", 50)  # late: 150 priced, of which 100 in the first tier
    (february,) = world.close(MONTHS[2])
    assert amounts([february]) == [("5.00", ["0.00", "5.00"])]
    line = february.lines[1]
    assert (line.description, line.model, line.meter_id) == ("Late usage, 2026-01-01 to 2026-02-01", "late_usage", None)
    assert (line.period_start, line.period_end) == (MONTHS[0], MONTHS[1])
    assert amounts(world.close(MONTHS[3])) == [("0.00", ["0.00"])]
    world.assert_adds_up()


def test_the_minimum_is_not_charged_twice() -> None:
    world = World((TIERS, MINIMUM))
    world.event(0, "calls", 20)
    assert amounts(world.close(MONTHS[1])) == [("20.00", ["3.35", "16.65"])]
    world.event(0, "calls", 10)  # 6.70, still below the minimum: nothing is owed, and it is counted
    (february,) = world.close(MONTHS[2])
    assert [line.model for line in february.lines] == ["graduated", "minimum"]
    assert [each.difference_minor for each in february.corrections] == [0]
    world.event(0, "calls", 100)
    assert world.close(MONTHS[3])[0].lines[-1].amount == "15.50"  # 100 x 0.335 + 20 x 0.1 - 20.00
    world.assert_adds_up()


def test_a_void_after_the_invoice_is_a_credit() -> None:
    world = World((TIERS,))
    place = world.event(0, "calls", 110)
    world.close(MONTHS[1])
    world.void(place)
    (february,) = world.close(MONTHS[2])
    assert (february.total, february.lines[-1].description) == ("-33.50", "Credit for usage, 2026-01-01 to 2026-02-01")
    world.assert_adds_up()


def test_a_final_invoice_30_days_after_the_end_and_none_after_it() -> None:
    world = World((TIERS,))
    world.event(5, "calls", 110)
    world.close(ENDS)
    world.event(5, "calls", 50)
    assert world.close(ENDS + FINAL_AFTER_DAYS * DAY_US - 1) == []
    (final,) = world.close(ENDS + FINAL_AFTER_DAYS * DAY_US)
    assert final.final
    assert amounts([final]) == [("5.00", ["5.00"])]
    world.event(5, "calls", 50)
    assert world.close(NOW) == []
    world.assert_adds_up()


def test_a_final_invoice_of_nothing_is_zero() -> None:
    world = World()
    world.close(ENDS)
    (final,) = world.close(NOW)
    assert (final.total, final.lines, final.corrections) == ("0.00", (), ())


def test_policy_ignore_bills_nothing_late_and_makes_no_final_invoice() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    world.close(MONTHS[1])
    world.policy("ignore")
    world.event(0, "calls", 50)
    assert amounts(world.close(MONTHS[2])) == [("0.00", ["0.00"])]
    assert len(world.close(NOW)) == 4  # the cycles that are left
    world.assert_adds_up()


def test_what_was_ignored_is_billed_once_the_policy_is_another() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    world.close(MONTHS[1])
    world.policy("ignore")
    world.event(0, "calls", 50)
    world.close(MONTHS[2])
    world.policy("next_invoice")
    assert amounts(world.close(MONTHS[3])) == [("5.00", ["0.00", "5.00"])]


def test_two_runs_bill_late_usage_once() -> None:
    """The slower one read the ledger before the other's invoices came, and knows less of the log, or more."""
    world = World((TIERS,))
    world.event(0, "calls", 110)
    world.close(MONTHS[1])
    world.event(0, "calls", 50)
    slow = world.compute(MONTHS[3])
    world.event(0, "calls", 10)
    assert [world.ledger.apply(each) for each in world.compute(MONTHS[2])] == [True]
    assert [world.ledger.apply(each) for each in slow] == [False, False]
    assert amounts(world.close(MONTHS[3])) == [("0.00", ["0.00"])]
    world.assert_adds_up()
    assert sum(bill.billed_minor for bill in world.bills.values()) == 3350 + 600


def test_a_run_that_read_less_of_the_log_takes_nothing_back() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    world.close(MONTHS[1])
    before = world.stored.end
    world.event(0, "calls", 50)
    world.close(MONTHS[2])
    (march,) = world.compute(MONTHS[3], before)
    assert (march.total, march.trued_up) == ("0.00", False)
    assert world.ledger.apply(march)
    assert amounts(world.close(MONTHS[4])) == [("0.00", ["0.00"])]
    world.assert_adds_up()


def test_where_nothing_came_late_nothing_is_counted_again() -> None:
    world = World((TIERS,))
    for month in range(6):
        world.event(month, "calls", 110)
        world.close(MONTHS[month + 1])
    assert world.stored.looked == 5
    assert all(not each.fixed.corrections for each in world.ledger.invoices.values() if each.fixed)


def test_a_correction_on_a_voided_invoice_is_made_again() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    world.close(MONTHS[1])
    world.event(0, "calls", 50)
    (february,) = world.close(MONTHS[2])
    world.close(MONTHS[3])
    world.void_invoice(february.invoice_id)
    (april,) = world.close(MONTHS[4])
    assert [line.amount for line in april.lines] == ["0.00", "5.00"]
    world.assert_adds_up()


def test_a_cycle_whose_invoice_is_void_is_held() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    (january,) = world.close(MONTHS[1])
    world.void_invoice(january.invoice_id)
    world.event(0, "calls", 50)
    assert amounts(world.close(MONTHS[2])) == [("0.00", ["0.00"])]


def test_a_held_invoice_holds_the_corrections_of_its_subscription() -> None:
    world = World((TIERS,))
    (january,) = world.close(MONTHS[1])
    held = InvoiceStep(january.invoice_id, ORG, "c", "gate", "failed", 1, reason="differs")
    world.ledger.apply(held)
    world.event(0, "calls", 110)
    (february,) = world.close(MONTHS[2])
    assert (february.trued_up, february.corrections) == (False, ())
    world.ledger.apply(InvoiceStep(january.invoice_id, ORG, "c", "gate", "done", 2))
    assert [line.amount for line in world.close(MONTHS[3])[0].lines] == ["0.00", "33.50"]
    world.assert_adds_up()


@pytest.mark.parametrize("change", ["follows", "counted", "not_trued_up"])
def test_the_ledger_takes_no_correction_of_what_is_not_so(change: str) -> None:
    world = World((TIERS,))
    world.close(MONTHS[1])
    world.event(0, "calls", 110)
    (february,) = world.compute(MONTHS[2])
    (correction,) = february.corrections
    wrong: dict[str, dict[str, Any]] = {
        "follows": {"follows": "another"},
        "counted": {"corrections": (msgspec.structs.replace(correction, counted=()),)},
        "not_trued_up": {"trued_up": False},
    }
    assert not world.ledger.apply(msgspec.structs.replace(february, **wrong[change]))
    assert world.ledger.apply(february)


# --- What would be billed ---------------------------------------------------------------------------------------------


def pending_of(world: World, issued_by: int) -> list[tuple[int, int]]:
    return [(each.fixed.cycle_start, each.amount_minor) for each in world.pending(issued_by)]


def test_late_usage_is_pending_until_an_invoice_with_it_is_issued() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    (january,) = world.close(MONTHS[1])
    world.event(0, "calls", 50)
    assert pending_of(world, 1) == [], "the whole cycle is not invoiced yet"
    world.issue(january, 1)
    assert pending_of(world, 1) == [(MONTHS[0], 500)]
    (february,) = world.close(MONTHS[2])
    assert pending_of(world, 1) == [(MONTHS[0], 500)], "it is fixed, and no document yet"
    world.issue(february, 3)
    assert pending_of(world, 2) == [(MONTHS[0], 500)]
    assert pending_of(world, 3) == []
    world.event(0, "calls", -50)
    assert pending_of(world, 3) == [(MONTHS[0], -500)]


def test_what_another_invoice_billed_ahead_of_the_cycles_own_is_taken_off() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    (january,) = world.close(MONTHS[1])
    world.event(0, "calls", 50)
    (february,) = world.close(MONTHS[2])
    world.issue(february, 1)
    assert pending_of(world, 1) == [(MONTHS[0], -500)]  # of the 38.50 that January comes to
    world.issue(january, 2)
    assert pending_of(world, 2) == []


def test_after_a_final_invoice_and_of_a_void_one_nothing_is_pending() -> None:
    world = World((TIERS,))
    world.event(5, "calls", 110)
    made = world.close(NOW)
    for each in made:
        world.issue(each, 1)
    world.event(5, "calls", 50)
    assert pending_of(world, 1) == []
    other = World((TIERS,))
    (january,) = other.close(MONTHS[1])
    other.void_invoice(january.invoice_id)
    other.event(0, "calls", 50)
    assert pending_of(other, 1) == []


def test_nothing_is_told_of_a_store_that_lost_what_was_counted() -> None:
    world = World((TIERS,))
    world.event(0, "calls", 110)
    for each in world.close(MONTHS[1]):
        world.issue(each, 1)
    world.stored.log.clear()
    with pytest.raises(WarehouseUnavailable):
        world.pending(1)


# --- Property ---------------------------------------------------------------------------------------------------------

EVENT = st.tuples(
    st.just("event"),
    st.integers(0, 6),
    st.sampled_from(["calls", "peak"]),
    st.decimals(-60, 260, places=1, allow_nan=False, allow_infinity=False).map(str),
)
STEP = st.one_of(
    EVENT,
    EVENT,
    st.tuples(st.just("void"), st.integers(0, 40)),
    st.tuples(st.just("close"), st.integers(1, 6)),
    st.tuples(st.just("compute"), st.integers(1, 7)),  # by another run, which writes later
    st.tuples(st.just("write"), st.just(0)),
    st.tuples(st.just("void_invoice"), st.integers(0, 6)),
    st.tuples(st.just("policy"), st.sampled_from(["ignore", "next_invoice"])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_what_was_billed_adds_up_to_what_the_cycle_costs(steps: list[tuple[Any, ...]]) -> None:
    world = World()
    slow: list[InvoiceFixed] = []
    voided = False
    for kind, *given_ in steps:
        match kind:
            case "event":
                world.event(*given_)
            case "void":
                world.void_one(*given_)
            case "close":
                world.close(MONTHS[given_[0]])
            case "compute":
                slow += world.compute(MONTHS[given_[0]])
            case "write":
                for each in slow:
                    world.ledger.apply(each)
                slow = []
            case "void_invoice":
                fixed = world.ledger.of_subscription(ORG, SUB)
                if fixed:
                    world.void_invoice(fixed[given_[0] % len(fixed)].id)
                    voided = True
            case _:
                world.policy(given_[0])
        if not voided:
            world.assert_adds_up()
    world.policy("next_invoice")
    world.close(ENDS)
    world.close(NOW)
    world.assert_adds_up()
    world.assert_can_be_made_again()
    if world.bills and not any(
        each.state == "void" and each.fixed and each.fixed.final for each in world.ledger.invoices.values()
    ):
        for bill in world.bills.values():
            assert bill.billed_minor == world.costs(bill, bill.counted_to)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            EVENT,
            EVENT,
            st.tuples(st.just("void"), st.integers(0, 40)),
            st.tuples(st.just("close"), st.integers(1, 6), st.integers(0, 5)),
        ),
        max_size=30,
    )
)
@example([("event", 0, "calls", "110"), ("close", 1, 5), ("event", 0, "calls", "250"), ("close", 2, 0)])
@example([("close", 1, 0), ("event", 0, "calls", "69.8"), ("close", 2, 2), ("close", 3, 0)])
def test_what_was_invoiced_by_a_date_and_what_is_accrued_then_add_up_to_what_is_invoiced_in_the_end(
    steps: list[tuple[Any, ...]],
) -> None:
    """close: up to a month; its invoices are issued so many steps later, perhaps after those that follow them."""
    world = World()
    issued: dict[str, int] = {}

    def issue(made: list[InvoiceFixed], at: int) -> None:
        for each in made:
            issued[each.invoice_id] = at
            world.issue(each, at)

    for clock, (kind, *given_) in enumerate(steps):
        match kind:
            case "event":
                world.event(*given_)
            case "void":
                world.void_one(*given_)
            case _:
                issue(world.close(MONTHS[given_[0]]), clock + given_[1])
    dates = range(-1, len(steps) + 6)
    late = {at: sum(each.amount_minor for each in world.pending(at)) for at in dates}
    issue(world.close(NOW), len(steps) + 10)
    invoices = [invoice.fixed for invoice in world.ledger.of_subscription(ORG, SUB) if invoice.fixed]
    for at in dates:
        by_then = [each for each in invoices if issued[each.invoice_id] <= at]
        open_cycles = [each for each in invoices if each not in by_then and not each.final]
        quantities_now = world.stored.totals([need_of(each) for each in open_cycles], world.stored.end)
        open_minor = sum(priced_again(each, quantities_now[each.invoice_id]).total_minor for each in open_cycles)
        invoiced_minor = sum(each.total_minor for each in by_then)
        assert invoiced_minor + late[at] + open_minor == sum(each.total_minor for each in invoices), at
