"""confirmed invoices → charged: customers in parallel, one customer's invoices in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from billing_job.close_run import CloseRun, SharedProgress
from billing_job.collect.charge import discard_strays, settle, settle_zero
from billing_job.collect.customers import ensure_stripe_customer, forget_stripe_customer, is_gone
from billing_job.collect.steps import InvoiceStopped
from billing_job.stripe.api import Json
from billing_job.stripe.errors import StripeDeclined, StripeFailure, StripeRefused, StripeUnknown
from ledger.records import Phase
from ledger.snapshot import InvoiceFixed
from schemas.customer import Customer


def charge_customers(run: CloseRun, invoices: Sequence[InvoiceFixed]) -> None:
    """Customers at the same time, each customer's invoices one after the other, oldest cycle first."""
    by_customer: dict[tuple[str, str, str | None], list[InvoiceFixed]] = defaultdict(list)
    for fixed in sorted(invoices, key=lambda each: (each.cycle_start, each.invoice_id)):
        key = (fixed.organization_id, fixed.customer_id, fixed.seller.stripe_account_id)
        by_customer[key].append(fixed)
    progress = SharedProgress(run.progress, "charge", len(invoices))
    workers = max(1, min(run.context.settings.billing_concurrency, len(by_customer)))
    with ThreadPoolExecutor(workers, thread_name_prefix="charge") as pool:
        try:
            for _ in pool.map(lambda group: _charge_customer(run, group, progress), by_customer.values()):
                pass
        except BaseException:
            run.stopping.set()  # the others stop after the invoice they are at
            raise


def _charge_customer(run: CloseRun, invoices: Sequence[InvoiceFixed], progress: SharedProgress) -> None:
    account = invoices[0].seller.stripe_account_id
    stripe_customer_id: str | None = None
    listing: list[list[Json]] = []

    def listed() -> list[Json]:
        if not listing:
            assert stripe_customer_id is not None
            listing.append(run.context.api.invoices_of(stripe_customer_id, account))
        return listing[0]

    loop = run.one_by_one("charge")
    for fixed in invoices:
        if run.stopping.is_set():
            run.note(fixed, "stopped before it was its turn")
        elif run.down is not None and fixed.total_minor:
            run.note(fixed, run.down)
        else:
            with loop.one(fixed.invoice_id):
                try:
                    if fixed.total_minor == 0:
                        settle_zero(run.billing, fixed)
                    else:
                        if stripe_customer_id is None:
                            stripe_customer_id = _stripe_customer(run, fixed)
                        try:
                            settle(run.billing, fixed, stripe_customer_id, listed)
                        except StripeRefused as refused:
                            if not is_gone(refused):
                                raise
                            stripe_customer_id = _stripe_customer(run, fixed, gone=refused)
                            listing.clear()
                            settle(run.billing, fixed, stripe_customer_id, listed)
                        discard_strays(run.billing, run.billing.invoice(fixed.invoice_id), listed())
                except InvoiceStopped as stopped:
                    run.note(fixed, str(stopped))
                except StripeFailure as failure:
                    run.note(fixed, failure.reason)
                    if isinstance(failure, StripeUnknown) and (failure.status is None or failure.status >= 500):
                        # Every invoice would wait as long for the same answer.
                        run.down = f"Stripe does not answer ({failure.reason}); not tried any further in this run"
        progress.step()


def _stripe_customer(run: CloseRun, fixed: InvoiceFixed, gone: StripeRefused | None = None) -> str:
    """Id at Stripe of the invoice's customer. gone: Stripe does not know the linked customer any more.

    The invoice carries the reason when there is none. Raises StripeFailure, InvoiceStopped.
    """
    customer = run.context.catalog.view.get(Customer, fixed.organization_id, fixed.customer_id)
    assert customer is not None
    account = fixed.seller.stripe_account_id
    asked_at = run.billing.invoice(fixed.invoice_id).retry_asked_at
    try:
        if gone is not None:
            if customer.stripe_customer_id is not None:  # given: only who gave it can correct it
                raise gone
            forget_stripe_customer(run.billing, customer, account, gone)
        found = ensure_stripe_customer(run.billing, customer, account, asked_at=asked_at)
    except StripeFailure as failure:
        phase: Phase = "failed" if isinstance(failure, StripeRefused | StripeDeclined) else "unknown"
        _without_customer(run, fixed, phase, failure.code, failure.reason)
        raise
    except InvoiceStopped as stopped:
        _without_customer(run, fixed, "unknown", None, str(stopped))
        raise
    assert found.stripe_customer_id is not None
    return found.stripe_customer_id


def _without_customer(run: CloseRun, fixed: InvoiceFixed, phase: Phase, code: str | None, reason: str) -> None:
    """Record why the invoice has no customer; a known reason is recorded again only to lengthen the rest."""
    invoice = run.billing.invoice(fixed.invoice_id)
    known = invoice.attempt("customer")
    if invoice.reason == reason and (phase == "unknown" or not run.billing.scheduled):
        return
    number = known.number + 1 if known else 1
    run.billing.log.append(run.billing.record(fixed, "customer", phase, attempt=number, code=code, reason=reason))
