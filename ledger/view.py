"""billing.ledger records in log order → every invoice, order and Stripe customer. Pure.

The first record of an invoice id fixes its content; intents and results of calls to Stripe follow. A record that lost
(a second snapshot, an attempt that another writer began, a state older than the known one) changes nothing, and every
reader comes to the same verdict.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ledger.customers import CustomerLinks, StripeCustomerState
from ledger.cycle_bills import cycle_bills, reissue_of
from ledger.invoice import Invoice, just_fixed
from ledger.records import InvoiceAdjusted, InvoiceStep, LedgerRecord, OrderRecorded, StripeCustomer
from ledger.snapshot import FIRST_REVISION, InvoiceFixed, invoice_id
from ledger.transitions import apply_adjustment, apply_order, apply_step, hold_if_paid_twice


class InvoiceLedger:
    """Every invoice, order and Stripe customer, after the records applied so far, each partition's in its order.

    Not locked: one thread applies. Values that readers hold are never changed, only replaced.
    """

    def __init__(self) -> None:
        self.invoices: dict[str, Invoice] = {}
        self._links = CustomerLinks()
        self._by_stripe_id: dict[str, str] = {}
        self._by_second_payment: dict[str, str] = {}
        self._by_subscription: dict[tuple[str, str], list[str]] = {}
        self._shared_parts: dict[bytes, dict[str, Any]] = {}
        self._adjustments: dict[str, InvoiceAdjusted] = {}

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, invoice: str) -> Invoice | None:
        return self.invoices.get(invoice)

    def by_stripe_id(self, stripe_invoice_id: str) -> Invoice | None:
        found = self._by_stripe_id.get(stripe_invoice_id)
        return None if found is None else self.invoices.get(found)

    def by_second_payment(self, stripe_invoice_id: str) -> Invoice | None:
        """The invoice for whose cycle this other Stripe invoice was paid, too."""
        found = self._by_second_payment.get(stripe_invoice_id)
        return None if found is None else self.invoices.get(found)

    def adjustment(self, object_id: str) -> InvoiceAdjusted | None:
        """A credit note, refund or dispute by Stripe's id."""
        return self._adjustments.get(object_id)

    def customer(
        self, organization_id: str, customer_id: str, stripe_account_id: str | None = None
    ) -> StripeCustomerState | None:
        """The customer at the Stripe of the newest record."""
        known = self.links(organization_id, customer_id, stripe_account_id)
        return known[-1] if known else None

    def links(self, organization_id: str, customer_id: str, stripe_account_id: str | None) -> list[StripeCustomerState]:
        """The customer at every Stripe (the stand-in, test mode, another account), that of the newest record last."""
        return self._links.links(organization_id, customer_id, stripe_account_id)

    def link(
        self, organization_id: str, customer_id: str, stripe_account_id: str | None, owner: str | None
    ) -> StripeCustomerState | None:
        """The customer at one Stripe."""
        return self._links.link(organization_id, customer_id, stripe_account_id, owner)

    def in_force(self, organization_id: str, subscription_id: str, cycle_start: int) -> tuple[str, int]:
        """(id, revision) of the invoice that bills a cycle: the first, or the one after the reissued ones."""
        revision = FIRST_REVISION
        while True:
            found = invoice_id(organization_id, subscription_id, cycle_start, revision)
            known = self.invoices.get(found)
            if known is None or not known.reissued:
                return found, revision
            revision += 1

    def of_customer(self, organization_id: str, customer_id: str) -> list[Invoice]:
        """A customer's invoices, oldest cycle first."""
        found = [
            invoice
            for invoice in list(self.invoices.values())  # a copy: the applying thread may add to them meanwhile
            if (invoice.organization_id, invoice.customer_id) == (organization_id, customer_id)
        ]
        return sorted(found, key=lambda invoice: (invoice.cycle_start, invoice.id))

    def of_subscription(self, organization_id: str, subscription_id: str) -> list[Invoice]:
        """A subscription's invoices that are not waiting, in the order of the log."""
        return [self.invoices[found] for found in self._by_subscription.get((organization_id, subscription_id), ())]

    @property
    def orders(self) -> list[OrderRecorded]:
        return [invoice.order for invoice in list(self.invoices.values()) if invoice.order]

    # -- applying ------------------------------------------------------------------------------------------------------

    def apply(self, record: LedgerRecord) -> bool:
        """Fold the partition's next record in; False when it lost and changed nothing."""
        if isinstance(record, StripeCustomer):
            return self._links.apply(record)
        known = self.invoices.get(record.invoice_id)
        match record:
            case InvoiceFixed():
                changed = self._fix(record, known)
            case InvoiceStep():
                changed = apply_step(record, known)
            case OrderRecorded():
                changed = apply_order(record, known)
            case InvoiceAdjusted():
                changed = apply_adjustment(record, known)
        if changed is None:
            return False
        self._put(known, hold_if_paid_twice(changed))
        if isinstance(record, InvoiceAdjusted):
            self._adjustments[record.object_id] = record
        return True

    def _put(self, known: Invoice | None, changed: Invoice) -> None:
        if known is not None and known.stripe_invoice_id not in (None, changed.stripe_invoice_id):
            del self._by_stripe_id[known.stripe_invoice_id]
        if changed.stripe_invoice_id is not None:
            self._by_stripe_id[changed.stripe_invoice_id] = changed.id
        for second_payment in changed.paid_twice if changed.state != "void" else ():
            self._by_second_payment[second_payment] = changed.id
        self.invoices[changed.id] = changed

    def _fix(self, record: InvoiceFixed, known: Invoice | None) -> Invoice | None:
        if (known is not None and known.fixed is not None) or not self._continues(record):
            return None
        of_subscription = self._by_subscription.setdefault((record.organization_id, record.subscription_id), [])
        of_subscription.append(record.invoice_id)
        return just_fixed(self._with_shared_parts(record))

    def _with_shared_parts(self, record: InvoiceFixed) -> InvoiceFixed:
        """The record with equal products, meters and watermarks held once: they are most of an invoice's memory."""

        def share(part: dict[str, Any]) -> dict[str, Any]:
            return self._shared_parts.setdefault(msgspec.json.encode(part), part)

        return msgspec.structs.replace(
            record,
            product=share(record.product),
            meters=tuple(map(share, record.meters)),
            watermark=share(record.watermark),
        )

    def _continues(self, record: InvoiceFixed) -> bool:
        """Whether the log bills the corrected cycles as the writer assumed: two runs must not bill the same events."""
        if not record.trued_up and record.corrections:
            return False
        if not record.trued_up and record.reissue is None:
            return True
        before = self.of_subscription(record.organization_id, record.subscription_id)
        if record.follows != (before[-1].fixed_hash if before else None):
            return False
        if record.reissue is not None and record.reissue != reissue_of(before, record.cycle_start, final=record.final):
            return False
        bills = cycle_bills(before) if record.corrections else {}
        return all(
            (bill := bills.get(correction.cycle_start)) is not None
            and (bill.counted, bill.billed_minor) == (correction.counted, correction.before_minor)
            for correction in record.corrections
        )
