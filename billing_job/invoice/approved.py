"""approved invoices, usage as it stands now → those of which less is owed by now; a revision replaces them.

While an invoice waits for someone, usage that it bills may be voided. An invoice that nobody has been sent is
computed again, instead of charged and credited later. Late usage does not count here: the next invoice has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from billing_job.invoice.late import UsageSource
from billing_job.invoice.pricing import cost_minor, priced_again
from billing_job.invoice.usage_reader import Need, need_of
from ledger.cycle_bills import CycleBill, cycle_bills, reissue_of
from ledger.invoice import Invoice
from ledger.snapshot import InvoiceFixed, invoice_id
from ledger.view import InvoiceLedger
from schemas.watermark import Watermark

SUPERSEDED_BY = "billing"
"""Who has voided an approved invoice of which less is owed."""


def is_untouched(invoice: Invoice) -> bool:
    """Whether it is approved and nothing of it has begun at Stripe."""
    begun = any(step in ("draft", "void") for step, _ in invoice.steps)
    return invoice.approved and invoice.fixed is not None and not begun and invoice.stripe_invoice_id is None


@dataclass(frozen=True, slots=True)
class _Owed:
    """An invoice as it would be now.

    bills: of the cycles that it corrects, without it.
    others_minor: taken off its own.
    """

    fixed: InvoiceFixed
    bills: Sequence[CycleBill]
    others_minor: int

    @property
    def needs(self) -> list[Need]:
        own = [] if self.fixed.final else [need_of(self.fixed)]
        return own + [need_of(bill.fixed) for bill in self.bills if not bill.waived]

    def minor(self, quantities: Mapping[str, Mapping[str, Decimal]]) -> int:
        own = 0 if self.fixed.final else priced_again(self.fixed, quantities[self.fixed.invoice_id]).total_minor
        late = sum(cost_minor(bill, quantities.get(bill.fixed.invoice_id, {})) for bill in self.bills)
        return own - self.others_minor + late - sum(bill.billed_minor for bill in self.bills)


def _owed(ledger: InvoiceLedger, invoice: Invoice, fixed: InvoiceFixed) -> _Owed:
    known = ledger.of_subscription(invoice.organization_id, invoice.subscription_id)
    without = [replace(each, state="void", reissued=True) if each.id == invoice.id else each for each in known]
    bills = cycle_bills(without)
    reissue = reissue_of(without, fixed.cycle_start, final=fixed.final)
    return _Owed(
        fixed,
        [bills[each.cycle_start] for each in fixed.corrections if each.cycle_start in bills],
        reissue.billed_minor + sum(each.amount_minor for each in reissue.credits),
    )


def find_superseded(
    ledger: InvoiceLedger, usage: UsageSource, invoices: Sequence[Invoice], watermark: Watermark
) -> list[Invoice]:
    """Those of which less is owed with the events below the watermark. Raises WarehouseUnavailable."""
    owed = [(each, _owed(ledger, each, each.fixed)) for each in invoices if each.fixed is not None]
    needs = {need.invoice_id: need for _, one in owed for need in one.needs}
    quantities = usage.totals(list(needs.values()), watermark) if needs else {}
    return [each for each, one in owed if one.minor(quantities) < one.fixed.total_minor]


def is_approved_already(ledger: InvoiceLedger, fixed: InvoiceFixed) -> bool:
    """Whether it replaces an approved invoice of at least the same amount."""
    before = ledger.get(invoice_id(fixed.organization_id, fixed.subscription_id, fixed.cycle_start, fixed.revision - 1))
    if before is None or before.fixed is None or not before.approved:
        return False
    void = before.attempt("void")
    return void is not None and void.by == SUPERSEDED_BY and fixed.total_minor <= before.fixed.total_minor
