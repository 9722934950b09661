"""Late usage: however late events, voids and closes come, what was billed for a cycle adds up to what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing_job.compute import priced_again
from billing_job.content import fixed_now
from billing_job.counts import Need, Quantities, need_of, quantities
from billing_job.due import FINAL_AFTER_DAYS, due_cycles
from billing_job.late import PendingLate, corrected_again, counted_for, pending
from catalog.record import CatalogRecord
from catalog.view import CatalogView
from schemas.customer import Customer
from schemas.decimals import decimal_text
from schemas.invoice_ledger import CycleBill, InvoiceLedger, cycle_bills
from schemas.ledger import InvoiceFixed, InvoiceStep, OrderRecorded, StripeInvoice, order_id
from schemas.meter import Aggregation, Meter
from schemas.organization import Organization
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.watermark import Watermark
from warehouse.client import WarehouseUnavailable
from warehouse.totals import TotalsRequest, UsageTotal

ORG = "org"
SUB = "sub_1"
MONTHS = [parse_rfc3339(f"2026-{month:02}-01T00:00:00Z") for month in range(1, 9)]
NOW = parse_rfc3339("2027-06-01T00:00:00Z")
DAY_US = 86_400_000_000
ENDS = MONTHS[6]
TIERS: dict[str, Any] = {
    "model": "graduated",
    "meter_id": "mtr_calls",
    "included_units": "10",
    "tiers": [{"up_to": "100", "unit_amount": "0.335"}, {"up_to": None, "unit_amount": "0.1"}],
}
PEAK: dict[str, Any] = {"model": "volume", "meter_id": "mtr_peak", "tiers": [{"up_to": "5", "unit_amount": "2"}, {"up_to": None, "unit_amount": "1.005"}]}  # fmt: skip
MINIMUM: dict[str, Any] = {"model": "minimum", "amount": "20"}
FEE: dict[str, Any] = {"model": "flat_fee", "amount": "3"}


@dataclass
class Stored:
    """A log of one partition, all of it in ClickHouse: (timestamp, name, value), or the place of the one it voids."""

    log: list[tuple[int, str, Decimal] | int] = field(default_factory=list[tuple[int, str, Decimal] | int])
    looked: int = 0

    @property
    def end(self) -> Watermark:
        return Watermark(1, {0: len(self.log)})

    def total(self, window: TotalsRequest, watermark: Watermark) -> UsageTotal:
        below = self.log[: watermark.offsets[0]]
        voided = {entry for entry in below if isinstance(entry, int)}
        values = [
            entry[2]
            for place, entry in enumerate(below)
            if not isinstance(entry, int)
            and place not in voided
            and entry[1] == window.event_name
            and window.start_us <= entry[0] < window.end_us
        ]
        return UsageTotal(sum(values, Decimal(0)), len(values), max(values, default=None))

    def totals(self, needs: Sequence[Need], watermark: Watermark) -> Quantities:
        windows = [need.window(meter) for need in needs for meter in need.meters]
        return quantities(needs, {window: self.total(window, watermark) for window in windows})

    def with_late_events(self, needs: Sequence[Need], since: Watermark, watermark: Watermark) -> set[str]:
        self.looked += len(needs)
        late: set[str] = set()
        for place in range(since.offsets[0], watermark.offsets[0]):
            entry = self.log[place]
            event = self.log[entry] if isinstance(entry, int) else entry
            assert not isinstance(event, int)
            late |= {need.invoice_id for need in needs if need.start_us <= event[0] < need.end_us}
        return late


@dataclass
class World:
    """One subscription from January on, with its ledger."""

    prices: Sequence[dict[str, Any]] = (TIERS, PEAK, MINIMUM, FEE)
    ends_at: int | None = ENDS
    stored: Stored = field(default_factory=Stored)
    ledger: InvoiceLedger = field(default_factory=InvoiceLedger)
    view: CatalogView = field(default_factory=CatalogView)

    def __post_init__(self) -> None:
        self.policy("next_invoice")
        for word, aggregation in (("calls", Aggregation.SUM), ("peak", Aggregation.MAX)):
            self.put(
                Meter(
                    id=f"mtr_{word}", organization_id=ORG, created_at=0, name=word, event_name=word, unit="u",
                    aggregation=aggregation,
                )
            )  # fmt: skip
        self.put(Customer(id="c", organization_id=ORG, name="c", created_at=0))
        self.put(
            Product.model_validate(
                {
                    "id": "prod",
                    "organization_id": ORG,
                    "created_at": 0,
                    "name": "p",
                    "currency": "eur",
                    "prices": self.prices,
                }
            )
        )
        self.put(
            Subscription(
                id=SUB, organization_id=ORG, customer_id="c", product_id="prod", started_at=MONTHS[0],
                ends_at=self.ends_at, billing_interval="month", collection_method="charge_automatically",
                time_zone="UTC", created_at=0,
            )
        )  # fmt: skip

    def put(self, state: Any) -> None:
        version = self.view.version(type(state), state.organization_id, state.id)
        assert self.view.apply(CatalogRecord(state, version, 0)) is None

    def policy(self, late_policy: Any) -> None:
        self.put(Organization(id=ORG, organization_id=ORG, created_at=0, late_policy=late_policy))

    def event(self, month: int, name: str, value: str | int) -> int:
        """Its place in the log."""
        self.stored.log.append((MONTHS[month] + len(self.stored.log), name, Decimal(value)))
        return len(self.stored.log) - 1

    def void(self, place: int) -> None:
        self.stored.log.append(place)

    def void_one(self, number: int) -> None:
        """One of the events there are, if any."""
        events = [place for place, entry in enumerate(self.stored.log) if not isinstance(entry, int)]
        if events:
            self.void(events[number % len(events)])

    def compute(self, as_of: int, watermark: Watermark | None = None) -> list[InvoiceFixed]:
        policy = self.view.organization(ORG)
        assert policy is not None
        due = due_cycles(
            self.view.all(Subscription), as_of_us=as_of, now_us=NOW, grace_seconds=lambda _: 0,
            trues_up=lambda _: policy.late_policy == "next_invoice",
        ).due  # fmt: skip
        unfixed = [each for each in due if self.ledger.get(each.invoice_id) is None]
        return fixed_now(
            self.view, self.ledger, self.stored, unfixed, watermark or self.stored.end, now_us=NOW, writer="w"
        )

    def close(self, as_of: int) -> list[InvoiceFixed]:
        made = self.compute(as_of)
        for each in made:
            assert self.ledger.apply(each)
        return made

    @property
    def bills(self) -> dict[int, CycleBill]:
        return cycle_bills(self.ledger.of_subscription(ORG, SUB))

    def costs(self, bill: CycleBill, watermark: Watermark) -> int:
        """The whole cycle's price below the watermark."""
        return priced_again(bill.fixed, self.stored.totals([need_of(bill.fixed)], watermark)[bill.fixed.invoice_id]).total_minor  # fmt: skip

    def assert_adds_up(self) -> None:
        for bill in self.bills.values():
            assert bill.billed_minor == self.costs(bill, bill.counted_to)

    def assert_can_be_made_again(self) -> None:
        """Every correction follows from the ledger and a count; what was counted then can be counted again."""
        for invoice in self.ledger.of_subscription(ORG, SUB):
            assert invoice.fixed is not None
            for check in counted_for(self.ledger, invoice.fixed):
                found = self.stored.totals([check.need], check.watermark)[check.need.invoice_id]
                assert {meter: decimal_text(number) for meter, number in found.items()} == check.quantities
            for each in invoice.fixed.corrections:
                now = self.stored.totals([need_of(self.bills_at(each.corrects))], invoice.fixed.counted_to)
                assert corrected_again(self.ledger, each, now[each.corrects]).correction == each

    def bills_at(self, invoice_id: str) -> InvoiceFixed:
        fixed = self.ledger.invoices[invoice_id].fixed
        assert fixed is not None
        return fixed

    def void_invoice(self, invoice_id: str) -> None:
        """Someone voids it at Stripe."""
        ids: dict[str, Any] = {"invoice_id": invoice_id, "organization_id": ORG, "customer_id": "c", "at": 1}
        seen = StripeInvoice("in_" + invoice_id, "void", 0, 0, 0, 0, 1)
        self.ledger.apply(InvoiceStep(step="draft", phase="intent", **ids))
        self.ledger.apply(InvoiceStep(step="draft", phase="done", object_id=seen.id, **ids))
        self.ledger.apply(InvoiceStep(step="observe", phase="done", stripe=seen, **ids))
        assert self.ledger.invoices[invoice_id].state == "void"

    def issue(self, fixed: InvoiceFixed, at: int) -> None:
        """It is settled then."""
        ids = (order_id(fixed.invoice_id), fixed.invoice_id, ORG, "c", SUB)
        assert self.ledger.apply(OrderRecorded(*ids, fixed.currency, fixed.total, fixed.total_minor, at, at))

    def pending(self, issued_by: int) -> list[PendingLate]:
        return pending(self.ledger, self.stored, [(ORG, SUB)], self.stored.end, issued_by_us=issued_by)


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
