"""The invariant of money: Σ billed(cycle) = cost(cycle), whatever happens to invoices, events and credit notes."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from billing_job.invoice.due import FINAL_AFTER_DAYS
from billing_job.invoice.pricing import recompute
from ledger.cycle_bills import cycle_bills
from ledger.invoice import Invoice
from ledger.snapshot import with_hash
from tests.cycles import DAY_US, ENDS, FEE, MINIMUM, MONTHS, NOW, ORG, PEAK, SUB, TIERS, World

PLAIN: dict[str, Any] = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}


def world_of_100() -> World:
    """January cost 100.00 and is invoiced."""
    world = World((PLAIN,))
    world.event(0, "calls", 100)
    world.close(MONTHS[1])
    return world


def billed(world: World, month: int = 0) -> int:
    """What everything in force has billed for a month, cents."""
    bill = world.bills.get(MONTHS[month])
    return 0 if bill is None else bill.billed_minor


def charged(world: World) -> int:
    """What all invoices come to for the customer, cents."""
    in_force = [each for each in world.invoices if each.state != "void"]
    notes = [note for each in in_force for note in each.adjustments.values()]
    return sum(each.fixed.total_minor for each in in_force if each.fixed) - sum(note.amount_minor for note in notes)


def test_a_subscription_that_can_not_be_audited_is_named_and_the_others_are() -> None:
    """A quantity in its record that is no number ended the audit of everybody."""
    world = world_of_100()
    fixed = world.invoices[0].fixed
    assert fixed is not None
    lines = (msgspec.structs.replace(fixed.lines[0], quantity="many"),)
    odd = msgspec.structs.replace(fixed, invoice_id="inv_odd", subscription_id="sub_odd", lines=lines)
    assert world.ledger.apply(with_hash(odd))
    audited = world.audit()
    assert not audited.ok
    assert (audited.cycles, audited.faults, list(audited.problems)) == (2, (), ["sub_odd"])
    assert audited.document()["problems"]["sub_odd"].startswith("InvalidOperation")


# --- Cases that charged too much or too little ------------------------------------------------------------------------


def test_a_reissue_takes_off_what_another_invoice_billed_for_its_cycle() -> None:
    """200.00 was charged for a cost of 150.00."""
    world = world_of_100()
    january = world.invoices[0]
    world.event(0, "calls", 50)
    world.close(MONTHS[2])
    world.void_invoice(january.id)
    world.reissue(january.id)
    (again,) = world.close(MONTHS[2])
    assert [(line.model, line.amount) for line in again.lines] == [
        ("per_unit", "150.00"),
        ("billed_elsewhere", "-50.00"),
    ]
    assert (again.total, billed(world), charged(world)) == ("100.00", 15000, 15000)
    world.assert_can_be_made_again()


def test_a_waived_month_costs_nothing_whatever_others_billed_for_it() -> None:
    """It stayed at +50.00 or -60.00 for ever."""
    for value in (50, -60):
        world = world_of_100()
        world.event(0, "calls", value)
        world.close(MONTHS[2])
        world.void_invoice(world.invoices[0].id)
        assert (billed(world), charged(world)) == (value * 100, value * 100)
        (march,) = world.close(MONTHS[3])
        assert (march.total, billed(world), charged(world)) == (f"{-value}.00", 0, 0)
        assert world.close(MONTHS[4])[0].total == "0.00"
        world.assert_can_be_made_again()


def test_a_month_that_was_waived_and_then_is_reissued_after_all() -> None:
    world = world_of_100()
    world.event(0, "calls", 50)
    world.close(MONTHS[2])
    world.void_invoice(world.invoices[0].id)
    world.close(MONTHS[3])
    world.reissue(world.invoices[0].id)
    (again,) = world.close(MONTHS[3])
    assert (again.total, billed(world), charged(world)) == ("150.00", 15000, 15000)


def test_an_invoice_that_waits_for_approval_does_not_charge_what_was_voided_meanwhile() -> None:
    world = World((PLAIN,))
    place = world.event(0, "calls", 40)
    world.event(0, "calls", 60)
    (january,) = world.close(MONTHS[1])
    world.void(place)
    world.approve(january.invoice_id)
    (again,) = world.close(MONTHS[1])
    assert (again.total, again.revision, charged(world)) == ("60.00", 2, 6000)


def test_late_usage_does_not_revise_what_someone_approved() -> None:
    world = world_of_100()
    world.event(0, "calls", 50)
    world.approve(world.invoices[0].id)
    assert world.invoices[0].state == "computed"


def test_what_a_later_invoice_has_credited_already_is_not_taken_off_again_at_approval() -> None:
    world = World((PLAIN,))
    place = world.event(0, "calls", 40)
    world.event(0, "calls", 60)
    (january,) = world.close(MONTHS[1])
    world.void(place)
    world.close(MONTHS[2])
    world.approve(january.invoice_id)
    assert (world.invoices[0].state, charged(world)) == ("computed", 6000)


def test_a_credit_note_for_usage_and_a_void_of_that_usage_credit_once() -> None:
    world = World((PLAIN,))
    place = world.event(0, "calls", 40)
    world.event(0, "calls", 60)
    (january,) = world.close(MONTHS[1])
    world.credit(january.invoice_id, 4000, "usage")
    world.void(place)
    (february,) = world.close(MONTHS[2])
    assert (february.total, billed(world), charged(world)) == ("0.00", 6000, 6000)
    world.assert_can_be_made_again()


def test_usage_that_was_credited_and_not_voided_is_billed_by_the_next_invoice() -> None:
    world = world_of_100()
    world.credit(world.invoices[0].id, 4000, "usage")
    (february,) = world.close(MONTHS[2])
    assert (february.total, billed(world), charged(world)) == ("40.00", 10000, 10000)
    (correction,) = february.corrections
    assert (correction.before_minor, correction.credited_minor, correction.credit_notes) == (6000, 4000, ("cn_0",))
    world.assert_can_be_made_again()


def test_goodwill_is_no_part_of_what_was_billed() -> None:
    world = world_of_100()
    world.credit(world.invoices[0].id, 4000, "goodwill")
    assert world.close(MONTHS[2])[0].total == "0.00"
    assert (billed(world), charged(world)) == (10000, 6000)


def test_goodwill_on_an_open_invoice_is_not_lost_by_its_reissue() -> None:
    world = world_of_100()
    january = world.invoices[0]
    world.credit(january.id, 3000, "goodwill")
    world.void_invoice(january.id)
    world.reissue(january.id)
    (again,) = world.close(MONTHS[1])
    assert [(line.model, line.amount) for line in again.lines] == [("per_unit", "100.00"), ("carried_credit", "-30.00")]
    assert (again.total, billed(world), charged(world)) == ("70.00", 10000, 7000)
    world.credit(again.invoice_id, 500, "goodwill")
    world.void_invoice(again.invoice_id)
    world.reissue(again.invoice_id)
    (third,) = world.close(MONTHS[1])
    assert (third.total, charged(world)) == ("65.00", 6500)


def test_the_ledger_takes_no_reissue_of_what_is_not_so() -> None:
    """A correction of the cycle came in between: the revision is computed again."""
    world = world_of_100()
    world.void_invoice(world.invoices[0].id)
    world.reissue(world.invoices[0].id)
    (slow,) = world.compute(MONTHS[1])
    world.close(MONTHS[2])
    assert not world.ledger.apply(slow)


# --- Audit ------------------------------------------------------------------------------------------------------------


def told(world: World) -> list[tuple[str | None, str, str]]:
    return [(each.what, each.billed, each.found) for each in world.audit().faults]


def test_the_audit_names_a_short_and_a_doubled_count() -> None:
    """They were paid: the gate had agreed to the same wrong answer."""
    for counted in ("0", "200"):
        world = World((PLAIN,))
        world.event(0, "calls", 100)
        (january,) = world.compute(MONTHS[1])
        world.ledger.apply(recompute(january, {"mtr_calls": Decimal(counted)}))
        assert told(world) == [("mtr_calls", counted, "100")]


def test_the_audit_names_late_usage_that_an_invoice_passed_over() -> None:
    world = world_of_100()
    world.event(0, "calls", 50)
    (february,) = world.compute(MONTHS[2])
    world.ledger.apply(
        with_hash(msgspec.structs.replace(february, corrections=(), total_minor=0, lines=february.lines[:1]))
    )
    assert told(world) == [("mtr_calls", "100", "150")]


def test_the_audit_names_a_cycle_that_was_billed_twice() -> None:
    """As a reissue did before it took off what others had billed; after the final invoice nothing makes up for it."""
    world = World((PLAIN,), ends_at=MONTHS[1])
    world.event(0, "calls", 100)
    world.close(MONTHS[1])
    world.event(0, "calls", 50)
    world.close(NOW)
    world.void_invoice(world.invoices[0].id)
    world.reissue(world.invoices[0].id)
    (again,) = world.compute(NOW)
    old = with_hash(msgspec.structs.replace(again, reissue=None, total_minor=15000, lines=again.lines[:1]))
    assert world.ledger.apply(old)
    assert told(world) == [(None, "200.00", "150.00")]


def test_what_the_next_invoice_makes_up_for_is_no_fault() -> None:
    world = world_of_100()
    world.credit(world.invoices[0].id, 4000, "usage")
    found = world.audit()
    assert (found.ok, found.cycles, found.unsettled) == (True, 1, 1)
    world.close(MONTHS[2])
    assert (world.audit().ok, world.audit().unsettled) == (True, 0)


# --- Property ---------------------------------------------------------------------------------------------------------

PLACE = st.integers(0, 40)
AMOUNT = st.decimals(-60, 260, places=1, allow_nan=False, allow_infinity=False).map(str)


class CyclesAreBilledWhatTheyCost(RuleBasedStateMachine):
    """Every step that may touch a cycle's money, in any order; then the subscription ends, and all has to add up."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World((TIERS, PEAK, MINIMUM, FEE))

    def in_force(self, number: int) -> Invoice | None:
        found = [each for each in self.world.invoices if each.state != "void"]
        return found[number % len(found)] if found else None

    @rule(month=st.integers(0, 5), name=st.sampled_from(["calls", "peak"]), value=AMOUNT)
    def use(self, month: int, name: str, value: str) -> None:
        self.world.event(month, name, value)

    @rule(number=PLACE)
    def void_usage(self, number: int) -> None:
        self.world.void_one(number)

    @rule(month=st.integers(1, 6))
    def close(self, month: int) -> None:
        self.closed(MONTHS[month])

    @rule()
    def close_next(self) -> None:
        """The first month without an invoice."""
        billed = {each.cycle_start for each in self.world.invoices}
        self.closed(next((end for start, end in pairwise(MONTHS[:7]) if start not in billed), ENDS))

    def closed(self, as_of: int) -> None:
        """A new invoice, be it a revision, leaves no cycle billed more or less than it costs."""
        made = self.world.close(as_of)
        if any(each.trued_up for each in made):
            self.world.assert_adds_up()
        for each in made:
            bill = self.world.bills[each.cycle_start]
            assert bill.billed_minor == self.world.costs(bill, bill.counted_to), "what the new invoice is of"

    @rule(number=PLACE)
    def waive(self, number: int) -> None:
        if invoice := self.in_force(number):
            self.world.void_invoice(invoice.id)

    @rule(number=PLACE)
    def reissue(self, number: int) -> None:
        waived = [each for each in self.world.invoices if each.state == "void" and not each.reissued]
        if waived:
            self.world.reissue(waived[number % len(waived)].id)

    @rule(number=PLACE)
    def void_and_reissue(self, number: int) -> None:
        """`invoice void --reissue`."""
        if invoice := self.in_force(number):
            self.world.void_invoice(invoice.id)
            self.world.reissue(invoice.id)

    @rule(number=PLACE, value=AMOUNT)
    def use_late(self, number: int, value: str) -> None:
        """Of a cycle that is billed already; the next invoice corrects it, so that several bill it."""
        if invoice := self.in_force(number):
            self.world.event(min(MONTHS.index(invoice.cycle_start), 5), "calls", value)
            self.close_next()

    @rule(number=PLACE)
    def approve(self, number: int) -> None:
        invoice = self.in_force(number)
        if invoice is not None and not invoice.approved and not invoice.adjustments:
            self.world.approve(invoice.id)

    @rule(number=PLACE, share=st.integers(1, 4), credit_for=st.sampled_from(["usage", "goodwill"]))
    def credit(self, number: int, share: int, credit_for: Any) -> None:
        invoice = self.in_force(number)
        if invoice is None or invoice.fixed is None:
            return
        left = invoice.fixed.total_minor - sum(each.amount_minor for each in invoice.adjustments.values())
        if left > share:
            self.world.credit(invoice.id, left // share, credit_for)

    @invariant()
    def what_was_billed_is_what_it_cost_as_it_was_counted(self) -> None:
        """But for what a void or a credit note has just taken away, which the next invoice makes up for."""
        touched = [each for each in self.world.invoices if each.state == "void" or each.adjustments]
        if not touched:
            self.world.assert_adds_up()
        assert self.world.audit().ok

    def settle(self) -> None:
        world = self.world
        world.close(ENDS)
        for each in [each for each in world.invoices if each.state == "void" and each.fixed and each.fixed.final]:
            world.reissue(each.id)
        made = world.close(ENDS + FINAL_AFTER_DAYS * DAY_US)
        assert made, "the final invoice"
        bills = cycle_bills(world.ledger.of_subscription(ORG, SUB))
        cost = 0
        # A cycle whose last correction is void keeps its watermark until an invoice corrects it again.
        undone = {
            each.cycle_start for i in world.invoices if i.state == "void" and i.fixed for each in i.fixed.corrections
        }
        for start, bill in bills.items():
            assert bill.counted_to == world.stored.end or bill.waived or start in undone
            assert bill.billed_minor == world.costs(bill, world.stored.end)
            cost += bill.billed_minor
        assert charged(world) == cost - self.goodwill(), "all that the customer pays"
        world.assert_can_be_made_again()
        audited = world.audit()
        assert audited.ok, audited.faults
        assert audited.unsettled == audited.not_compared == 0
        assert world.close(NOW) == []

    def goodwill(self) -> int:
        """That was given on invoices in force, or on ones that were made again."""
        world = self.world
        notes = [note for note in world.notes if note.credit_for == "goodwill"]
        return sum(note.amount_minor for note in notes if self.is_kept(world.ledger.invoices[note.invoice_id]))

    def is_kept(self, invoice: Invoice) -> bool:
        """Whether the revision that is in force of its cycle is there."""
        while invoice.state == "void":
            if not invoice.reissued:
                return False
            found = self.world.ledger.get(self.world.ledger.in_force(ORG, SUB, invoice.cycle_start)[0])
            if found is None:
                return False
            invoice = found
        return True

    def teardown(self) -> None:
        self.settle()


def test_late_usage_that_was_corrected_by_a_void_invoice_and_then_voided_costs_nothing() -> None:
    """The final invoice finds no difference, so it records no correction; the cycle is billed what it costs all the same."""
    state = CyclesAreBilledWhatTheyCost()
    state.close_next()
    state.use_late(number=0, value="49.3")
    state.void_usage(number=0)
    state.waive(number=1)
    state.settle()


TestCyclesAreBilledWhatTheyCost = CyclesAreBilledWhatTheyCost.TestCase
TestCyclesAreBilledWhatTheyCost.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
