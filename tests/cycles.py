"""A subscription of several months that is billed in memory: its log, its ledger, and every step that may touch them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from billing_job.invoice.approved import find_superseded
from billing_job.invoice.builder import build_snapshots
from billing_job.invoice.cycle_audit import CyclesAudit, audit_cycles
from billing_job.invoice.due import due_cycles
from billing_job.invoice.late import PendingLate, corrected_again, counted_for, pending
from billing_job.invoice.pricing import priced_again
from billing_job.invoice.to_do import in_force
from billing_job.invoice.usage_reader import Need, Quantities, need_of, quantities
from catalog.record import CatalogRecord
from catalog.view import CatalogView
from ledger.cycle_bills import CycleBill, cycle_bills
from ledger.invoice import Invoice
from ledger.records import CreditFor, InvoiceAdjusted, InvoiceStep, OrderRecorded, StripeInvoice
from ledger.snapshot import InvoiceFixed, order_id
from ledger.view import InvoiceLedger
from schemas.customer import Customer
from schemas.decimals import decimal_text
from schemas.meter import Aggregation, Meter
from schemas.organization import Organization
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.watermark import Watermark
from warehouse.counted_at import CountedAt
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

    def totals_at(self, wanted: Sequence[CountedAt], organization_id: str | None) -> dict[CountedAt, UsageTotal]:
        del organization_id
        return {(window, watermark): self.total(window, watermark) for window, watermark in wanted}

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
    notes: list[InvoiceAdjusted] = field(default_factory=list[InvoiceAdjusted])

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
        unfixed = [
            each for each in (in_force(self.ledger, one) for one in due) if self.ledger.get(each.invoice_id) is None
        ]
        return build_snapshots(
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
        """The whole cycle's price below the watermark; a waived one costs nothing."""
        if bill.waived:
            return 0
        return priced_again(bill.fixed, self.stored.totals([need_of(bill.fixed)], watermark)[bill.fixed.invoice_id]).total_minor  # fmt: skip

    def assert_adds_up(self) -> None:
        for bill in self.bills.values():
            assert bill.billed_minor == self.costs(bill, bill.counted_to)

    def audit(self) -> CyclesAudit:
        return audit_cycles(self.ledger, self.stored, self.stored.end)

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

    def reissue(self, invoice_id: str) -> None:
        assert self.ledger.apply(InvoiceStep(invoice_id, ORG, "c", "reissue", "done", 1))

    def credit(self, invoice_id: str, amount_minor: int, credit_for: CreditFor) -> None:
        """Stripe has issued a credit note. There is no tax."""
        note = InvoiceAdjusted(
            invoice_id, ORG, "c", "credit_note", f"cn_{len(self.notes)}", amount_minor, "eur", "issued", 1, 1,
            net_minor=amount_minor, credit_for=credit_for,
        )  # fmt: skip
        self.notes.append(note)
        assert self.ledger.apply(note)

    def approve(self, invoice_id: str) -> None:
        """And the next close, if less is owed by now."""
        self.ledger.apply(InvoiceStep(invoice_id, ORG, "c", "approve", "done", 1))
        for each in find_superseded(self.ledger, self.stored, [self.ledger.invoices[invoice_id]], self.stored.end):
            self.void_invoice(each.id)
            self.reissue(each.id)

    @property
    def invoices(self) -> list[Invoice]:
        return self.ledger.of_subscription(ORG, SUB)

    def issue(self, fixed: InvoiceFixed, at: int) -> None:
        """It is settled then."""
        ids = (order_id(fixed.invoice_id), fixed.invoice_id, ORG, "c", SUB)
        assert self.ledger.apply(OrderRecorded(*ids, fixed.currency, fixed.total, fixed.total_minor, at, at))

    def pending(self, issued_by: int) -> list[PendingLate]:
        return pending(self.ledger, self.stored, [(ORG, SUB)], self.stored.end, issued_by_us=issued_by)
