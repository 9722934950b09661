"""catalog → how an invoice is made at Stripe: corrections reach what is fixed as long as it is not there."""

from __future__ import annotations

import msgspec
import structlog

from billing_job.collect.steps import Billing
from billing_job.invoice.pricing import seller_of
from catalog.view import CatalogView
from ledger.invoice import Invoice
from ledger.snapshot import InvoiceFixed
from schemas.subscription import Subscription

log = structlog.get_logger(__name__)


def with_current_seller(billing: Billing, view: CatalogView, invoice: Invoice) -> InvoiceFixed | None:
    """The invoice with the account, taxes and collection that the catalog says now; None: it is not fixed.

    Lines, amounts and watermark stay. Once a draft was begun, nothing changes any more. Raises LedgerUnavailable.
    """
    fixed = invoice.fixed
    organization = view.organization(invoice.organization_id)
    subscription = view.get(Subscription, invoice.organization_id, invoice.subscription_id)
    draft = invoice.attempt("draft")
    begun = invoice.stripe_invoice_id is not None or (draft is not None and draft.phase != "failed")
    if fixed is None or organization is None or subscription is None or begun or not fixed.total_minor:
        return fixed
    seller = seller_of(organization, subscription)
    if seller != fixed.seller:
        log.info("invoice_seller_changed", invoice=invoice.id)
        billing.log.append(msgspec.structs.replace(billing.record(fixed, "seller", "done"), seller=seller))
    return billing.invoice(invoice.id).fixed
