"""someone who looks after invoices → ledger: approved, or tried again now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from billing_job.close import CloseReport, close_cycles
from billing_job.close_run import Progress
from billing_job.collect.steps import system_clock
from billing_job.context import BillingContext, open_billing
from billing_job.invoice.to_do import is_ours_to_do
from billing_job.invoice.verify import UnknownInvoice
from catalog.view import CatalogView
from ledger.invoice import Invoice, may_pay_again
from ledger.records import InvoiceStep
from ledger.store import LedgerLog
from ledger.view import InvoiceLedger
from schemas.settings import Settings


def awaits_approval(view: CatalogView, invoice: Invoice) -> bool:
    """Whether it would be charged if someone approved it. Pure."""
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
    """Whether something failed or differed, and it is ours to go on with. Pure."""
    if invoice.fixed is None:
        return invoice.state == "waiting"
    failed = any(attempt.phase in ("failed", "unknown") for attempt in invoice.steps.values())
    return is_ours_to_do(invoice) and (invoice.state == "mismatch" or failed)


def may_retry(invoice: Invoice) -> bool:
    """Whether to ask for it once more can help: something failed or differed, or an open invoice is not paid. Pure."""
    return is_held(invoice) or may_pay_again(invoice)


def chosen(ledger: InvoiceLedger, ids: Collection[str], organization_id: str | None) -> list[Invoice]:
    """Those named, or all of the organization. Raises UnknownInvoice."""
    if not ids:
        found = list(ledger.invoices.values())
        return [each for each in found if organization_id in (None, each.organization_id)]
    missing = [
        each
        for each in ids
        if (known := ledger.get(each)) is None or organization_id not in (None, known.organization_id)
    ]
    if missing:
        raise UnknownInvoice(f"there is no invoice {missing[0]!r}")
    return [ledger.invoices[each] for each in dict.fromkeys(ids)]


def asked(log: LedgerLog, invoice: Invoice, step: Literal["approve", "retry"], by: str) -> bool:
    """Record that someone asked for it. by: who, for people. Raises LedgerUnavailable."""
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


def approve(settings: Settings, ids: Sequence[str], *, organization_id: str | None, by: str) -> list[Invoice]:
    """Let invoices be charged: those named, or all that await it. The next close charges them.

    Raises UnknownInvoice, CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable.
    """
    with open_billing(settings, charging=False) as context:
        waiting = [
            each
            for each in chosen(context.log.state, ids, organization_id)
            if awaits_approval(context.catalog.view, each)
        ]
        return [each for each in waiting if asked(context.log, each, "approve", by)]


def retry(
    settings: Settings,
    ids: Sequence[str],
    *,
    organization_id: str | None,
    by: str,
    progress: Progress | None = None,
) -> CloseReport:
    """Try again now what waits, is held or failed: those named, or all of them.

    Raises UnknownInvoice, CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable.
    """
    with open_billing(settings) as context:
        return retried(context, ids, organization_id=organization_id, by=by, progress=progress)


def retried(
    context: BillingContext,
    ids: Sequence[str],
    *,
    organization_id: str | None,
    by: str,
    progress: Progress | None = None,
) -> CloseReport:
    """`retry`, with what is open already. Payments that failed are tried again where their invoices are named."""
    wanted_by = may_retry if ids else is_held
    held = [each for each in chosen(context.log.state, ids, organization_id) if wanted_by(each)]
    for each in held:
        if each.fixed is not None:
            asked(context.log, each, "retry", by)
    wanted = {each.id for each in held}
    return close_cycles(
        context,
        system_clock(),
        organization_id=organization_id,
        progress=progress,
        only=lambda due: due.invoice_id in wanted,
    )
