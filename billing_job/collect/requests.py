"""a person's request → ledger: let an invoice be charged, or tried again now. The next close acts on it."""

from __future__ import annotations

from typing import Literal

from billing_job.collect.steps import system_clock
from billing_job.invoice.to_do import is_ours_to_do
from catalog.view import CatalogView
from ledger.invoice import Invoice, may_pay_again
from ledger.records import InvoiceStep
from ledger.store import LedgerLog


def awaits_approval(view: CatalogView, invoice: Invoice) -> bool:
    """Whether the invoice would be charged once a person approves it. Pure."""
    organization = view.organization(invoice.organization_id)
    return (
        organization is not None
        and organization.invoice_approval == "manual"
        and invoice.fixed is not None
        and invoice.fixed.total_minor != 0
        and not invoice.approved
        and is_ours_to_do(invoice)
    )


def is_held(invoice: Invoice) -> bool:
    """Whether a step failed or a total differed, and a close can continue. Pure."""
    if invoice.fixed is None:
        return invoice.state == "waiting"
    failed = any(attempt.phase in ("failed", "unknown") for attempt in invoice.steps.values())
    return is_ours_to_do(invoice) and (invoice.state == "mismatch" or failed)


def may_retry(invoice: Invoice) -> bool:
    """Whether a retry can help: a step failed, a total differed, or an open invoice is not paid. Pure."""
    return is_held(invoice) or may_pay_again(invoice)


def record_request(log: LedgerLog, invoice: Invoice, step: Literal["approve", "retry"], by: str) -> bool:
    """Record that a person asked for it; False: another record came first. by: their name. Raises LedgerUnavailable."""
    return log.append(
        InvoiceStep(
            invoice_id=invoice.id,
            organization_id=invoice.organization_id,
            customer_id=invoice.customer_id,
            step=step,
            phase="done",
            at=system_clock(),
            reason=by,
            by=by,
            writer=log.writer,
        )
    )
