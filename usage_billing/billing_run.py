"""catalog, ledger → every period that has ended, billed now: what `close --as-of now` does, asked for on a page."""

from __future__ import annotations

from contextlib import ExitStack

from billing_job.close import close_cycles
from billing_job.collect.steps import system_clock
from billing_job.context import BillingContext
from billing_job.invoice.to_do import is_ours_to_do
from billing_job.invoice.usage_reader import UsageReader
from billing_job.stripe.api import StripeApi
from billing_job.stripe.rate import calls_per_second
from billing_job.worker_group import WorkerGroup
from catalog.store import CatalogStore
from dashboard.invoice_desk import BillingRun
from ledger.store import LedgerLog
from schemas.settings import Settings


def run_billing(
    settings: Settings, catalog: CatalogStore, ledger: LedgerLog, organization_id: str, *, dry_run: bool
) -> BillingRun:
    """Bill what has ended and is not settled, or (dry run) show what would be. Workers beside it do no harm.

    Raises LedgerUnavailable, WarehouseUnavailable, KafkaException.
    """
    settled = {each.id for each in ledger.state.invoices.values() if each.fixed and not is_ours_to_do(each)}
    with ExitStack() as stack:
        usage = stack.enter_context(UsageReader(settings))
        charges = not dry_run and calls_per_second(settings) is not None
        rate = (stack.enter_context(WorkerGroup(settings, is_worker=False)).of_rate,) if charges else ()
        api = stack.enter_context(StripeApi(settings, *rate))
        context = BillingContext(settings, catalog, ledger, api, usage)
        report = close_cycles(context, system_clock(), organization_id=organization_id, dry_run=dry_run)
    return BillingRun(
        invoices=tuple(each.document() for each in report.invoices if each.id not in settled),
        problems=report.problems,
        later=len(report.in_grace),
        waiting=report.waiting,
    )
