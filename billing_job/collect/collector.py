"""invoice snapshots in the ledger → as far as they go now: voided, confirmed, approved, charged."""

from __future__ import annotations

from collections.abc import Sequence

from billing_job.close_run import CloseRun
from billing_job.collect.charge import hold, pass_gate
from billing_job.collect.charge_customers import charge_customers
from billing_job.collect.gate import keep_confirmed
from billing_job.collect.seller import with_current_seller
from billing_job.collect.steps import InvoiceStopped, invoice_rests_until
from billing_job.collect.void_credit import NotPossible, void
from billing_job.invoice.approved import is_approved_already
from billing_job.invoice.checks import above_maximum
from billing_job.invoice.to_do import is_ours_to_do
from billing_job.stripe.errors import StripeFailure
from ledger.invoice import Invoice
from ledger.snapshot import InvoiceFixed


def collect_invoices(run: CloseRun, invoice_ids: Sequence[str]) -> None:
    """Bring what is fixed and unfinished as far as it goes, from what the ledger says."""
    unfinished: list[InvoiceFixed] = []
    loop = run.one_by_one("collect")
    for invoice_id in invoice_ids:
        with loop.one(invoice_id):
            unfinished += _unfinished(run, invoice_id)
    if not unfinished:
        return
    with run.timed("gate"):
        agreed = keep_confirmed(run, unfinished)
    to_charge: list[InvoiceFixed] = []
    for fixed in agreed:
        with loop.one(fixed.invoice_id):
            if not _is_above_maximum(run, fixed) and not _awaits_approval(run, fixed):
                to_charge.append(fixed)
    with run.timed("charge"):
        charge_customers(run, to_charge)


def _unfinished(run: CloseRun, invoice_id: str) -> list[InvoiceFixed]:
    """The invoice, if it is to be taken further now; a void that was begun is finished here."""
    invoice = run.ledger.get(invoice_id)
    if invoice is None or invoice.fixed is None or not is_ours_to_do(invoice):
        return []
    if invoice_id in run.unchecked:
        run.note(invoice.fixed, run.unchecked[invoice_id])
        return []
    if invoice.voiding:
        _finish_void(run, invoice, invoice.fixed)
        return []
    fixed = with_current_seller(run.billing, run.context.catalog.view, invoice) or invoice.fixed
    invoice = run.billing.invoice(invoice_id)
    if run.billing.scheduled and run.billing.clock() < invoice_rests_until(invoice):
        run.problems[invoice_id] = f"tried again later: {invoice.reason}"
        return []
    return [fixed]


def _is_above_maximum(run: CloseRun, fixed: InvoiceFixed) -> bool:
    """Whether it is held because Stripe would charge no such amount. What Stripe has finalized is not."""
    seen = run.billing.invoice(fixed.invoice_id).stripe
    reason = above_maximum(fixed, run.billing.digits_max)
    if reason is None or (seen is not None and seen.status != "draft"):
        return False
    hold(run.billing, fixed, "amount_above_maximum", reason)
    return True


def _awaits_approval(run: CloseRun, fixed: InvoiceFixed) -> bool:
    """Whether its organization lets nothing be charged that nobody has approved. The counts agree already."""
    organization = run.context.catalog.view.organization(fixed.organization_id)
    manual = organization is not None and organization.invoice_approval == "manual"
    if not manual or not fixed.total_minor or run.billing.invoice(fixed.invoice_id).approved:
        return False
    if is_approved_already(run.ledger, fixed):
        run.context.log.append(run.billing.record(fixed, "approve", "done", reason="approved before it was revised"))
        return False
    pass_gate(run.billing, fixed)
    run.awaiting_approval.append(fixed.invoice_id)
    return True


def _finish_void(run: CloseRun, invoice: Invoice, fixed: InvoiceFixed) -> None:
    """A void that was begun and not finished: nothing else may follow."""
    try:
        void(run.billing, invoice, invoice.steps["void", 0].memo or "")
    except (NotPossible, InvoiceStopped) as stopped:
        run.note(fixed, str(stopped))
    except StripeFailure as failure:
        run.note(fixed, failure.reason)
