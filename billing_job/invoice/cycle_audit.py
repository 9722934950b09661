"""ledger, ClickHouse → whether every cycle was billed what it cost: short or doubled counts, sums that are off.

Two comparisons: the quantities of each invoice that is not void with the events in the same windows below the same
watermark; and for every cycle the sum of what those invoices billed with its cost by those quantities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from billing_job.invoice.late import fixed_invoice_of
from billing_job.invoice.pricing import cost_minor
from billing_job.invoice.usage_reader import Need, need_of, quantity
from billing_job.loops import invoice_by_invoice
from ledger.cycle_bills import CycleBill, cycle_bills, shares_of, usage_notes
from ledger.invoice import Invoice
from ledger.view import InvoiceLedger
from schemas.currency import from_minor
from schemas.decimals import decimal_text, plain
from schemas.period import format_rfc3339
from schemas.watermark import Watermark
from warehouse.counted_at import CountedAt
from warehouse.totals import UsageTotal

LISTED_MAX = 20


@dataclass(frozen=True, slots=True)
class CycleFault:
    """A cycle that was not billed what it cost. Instants: µs.

    what: a meter's id, of which another quantity was counted; None: the amount. invoice_id: of the invoice that says
    so, or of the cycle's own. billed, found: the quantity or amount (major units) as billed, and as it should be.
    """

    organization_id: str
    customer_id: str
    subscription_id: str
    invoice_id: str
    cycle_start: int
    cycle_end: int
    what: str | None
    billed: str
    found: str

    def __str__(self) -> str:
        cycle = f"{format_rfc3339(self.cycle_start)} to {format_rfc3339(self.cycle_end)}"
        said = f"{self.what}: {self.billed} counted, {self.found} found" if self.what else f"{self.billed} billed"
        cost = "" if self.what else f", it costs {self.found}"
        return f"cycle {cycle} of {self.customer_id} ({self.subscription_id}), invoice {self.invoice_id}: {said}{cost}"

    def document(self) -> dict[str, Any]:
        """As the API answers it."""
        return {
            "customer_id": self.customer_id,
            "subscription_id": self.subscription_id,
            "invoice_id": self.invoice_id,
            "cycle": {"start": format_rfc3339(self.cycle_start), "end": format_rfc3339(self.cycle_end)},
            "meter_id": self.what,
            "billed": self.billed,
            "found": self.found,
        }


@dataclass(frozen=True, slots=True)
class CyclesAudit:
    """cycles: how many were billed. unsettled: of these, those of which a void invoice or a credit note has taken away
    what the next invoice makes up for. not_compared: counted beyond what ClickHouse has now. problems: subscription →
    why its cycles could not be audited."""

    cycles: int
    unsettled: int
    not_compared: int
    faults: tuple[CycleFault, ...]
    problems: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return not self.faults and not self.problems

    def document(self) -> dict[str, Any]:
        return {
            "billed": self.cycles,
            "unsettled": self.unsettled,
            "not_compared": self.not_compared,
            "differing": len(self.faults),
            "faults": [each.document() for each in self.faults[:LISTED_MAX]],
            "problems": dict(list(self.problems.items())[:LISTED_MAX]),
        }


class CountsAt(Protocol):
    """The queries that the audit needs; see billing_job.invoice.usage_reader.UsageReader."""

    def totals_at(self, wanted: Sequence[CountedAt], organization_id: str | None) -> Mapping[CountedAt, UsageTotal]: ...


@dataclass(frozen=True, slots=True)
class _Said:
    """Quantities that one invoice, or all invoices of a cycle, counted below a watermark."""

    invoice_id: str
    need: Need
    at: Watermark
    quantities: Mapping[str, str]


def audit_cycles(
    ledger: InvoiceLedger,
    usage: CountsAt,
    stored: Watermark,
    organization_id: str | None = None,
) -> CyclesAudit:
    """Every cycle of one organization or (None) of all.

    stored: up to where ClickHouse has everything. Raises WarehouseUnavailable.
    """
    subscriptions = dict.fromkeys(
        (each.organization_id, each.subscription_id)
        for each in list(ledger.invoices.values())
        if each.fixed is not None and organization_id in (None, each.organization_id)
    )
    faults: list[CycleFault] = []
    said: list[_Said] = []
    problems: dict[str, str] = {}
    loop = invoice_by_invoice("audit", problems.__setitem__)
    cycles = unsettled = 0
    for key in subscriptions:
        with loop.one(key[1]):
            invoices = ledger.of_subscription(*key)
            bills = cycle_bills(invoices)
            cycles += len(bills)
            said += list(_said(ledger, invoices, bills.values()))
            off = [fault for bill in bills.values() if (fault := _amount_fault(bill)) is not None]
            if off and _is_made_up_for(invoices):
                unsettled += len(off)
            else:
                faults += off
    comparable = [each for each in said if each.at.reached_by(stored)]
    asked = [
        (each, meter, (each.need.window(meter), each.at))
        for each in comparable
        for meter in each.need.meters
        if meter.id in each.quantities
    ]
    counted_now: dict[CountedAt, UsageTotal] = {}
    for totals in loop.by_halves(
        asked,
        lambda some: usage.totals_at([counted for _, _, counted in some], organization_id),
        lambda one: fixed_invoice_of(ledger, one[0].invoice_id).subscription_id,
    ):
        counted_now |= totals
    for each, meter, counted in asked:
        if counted not in counted_now:
            continue  # its subscription is among the problems
        with loop.one(fixed_invoice_of(ledger, each.invoice_id).subscription_id):
            found = quantity(meter, counted_now[counted])
            if Decimal(each.quantities[meter.id]) != found:
                faults.append(_count_fault(ledger, each, meter.id, found))
    return CyclesAudit(cycles, unsettled, len(said) - len(comparable), tuple(faults), problems)


def _said(ledger: InvoiceLedger, invoices: Iterable[Invoice], bills: Iterable[CycleBill]) -> Iterator[_Said]:
    """One for each invoice that is not void, and one for each cycle up to the watermark of its last comparison."""
    own = {each.cycle_start: each.fixed for each in invoices if each.fixed is not None and not each.fixed.final}
    for invoice in invoices:
        if invoice.fixed is None or invoice.state == "void":
            continue
        corrected = {each.cycle_start: each.corrects for each in invoice.fixed.corrections}
        for share in shares_of(invoice.fixed):
            snapshot = fixed_invoice_of(ledger, corrected.get(share.cycle_start, invoice.id))
            yield _Said(invoice.id, need_of(snapshot), invoice.fixed.counted_to, share.quantities)
    for bill in bills:
        if not bill.waived and bill.counted_to != bill.quantities_at and bill.fixed.cycle_start in own:
            yield _Said(bill.fixed.invoice_id, need_of(bill.fixed), bill.counted_to, bill.quantities)


def _amount_fault(bill: CycleBill) -> CycleFault | None:
    fixed = bill.fixed
    cost = cost_minor(bill, {meter_id: Decimal(text) for meter_id, text in bill.quantities.items()})
    if cost == bill.billed_minor:
        return None
    billed, found = (plain(from_minor(minor, fixed.currency)) for minor in (bill.billed_minor, cost))
    return CycleFault(
        fixed.organization_id, fixed.customer_id, fixed.subscription_id, fixed.invoice_id, fixed.cycle_start,
        fixed.cycle_end, None, billed, found,
    )  # fmt: skip


def _is_made_up_for(invoices: Iterable[Invoice]) -> bool:
    """Whether something was taken away, and another invoice is still to come."""
    known = list(invoices)
    is_over = any(each.fixed is not None and each.fixed.final and each.state != "void" for each in known)
    return not is_over and any(each.state == "void" or usage_notes(each) for each in known)


def _count_fault(ledger: InvoiceLedger, said: _Said, meter_id: str, found: Decimal) -> CycleFault:
    fixed = fixed_invoice_of(ledger, said.need.invoice_id)
    return CycleFault(
        fixed.organization_id, fixed.customer_id, fixed.subscription_id, said.invoice_id, fixed.cycle_start,
        fixed.cycle_end, meter_id, said.quantities[meter_id], decimal_text(found),
    )  # fmt: skip
