"""settings → catalog, ledger, ClickHouse and Stripe, opened together for one run of billing."""

from __future__ import annotations

import gc
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from billing_job.collect.steps import Billing, system_clock
from billing_job.invoice.builder import build_snapshots
from billing_job.invoice.due import DueCycle
from billing_job.invoice.usage_reader import UsageReader
from billing_job.stripe.api import StripeApi
from billing_job.stripe.rate import calls_per_second
from billing_job.worker_group import WorkerGroup
from catalog.store import CatalogStore
from ledger.records import InvoiceFixed
from ledger.store import LedgerLog
from schemas.settings import Settings
from schemas.watermark import Watermark


@dataclass(frozen=True, slots=True)
class BillingContext:
    """What billing holds open: catalog, ledger, Stripe and ClickHouse."""

    settings: Settings
    catalog: CatalogStore
    log: LedgerLog
    api: StripeApi
    usage: UsageReader

    def build_snapshots(self, due: Sequence[DueCycle], watermark: Watermark, now_us: int) -> list[InvoiceFixed]:
        """What would be fixed now; see there."""
        return build_snapshots(
            self.catalog.view, self.log.state, self.usage, due, watermark, now_us=now_us, writer=self.log.writer
        )

    def billing(self, *, scheduled: bool = False) -> Billing:
        return Billing(self.log, self.api, system_clock, scheduled, self.settings.stripe_amount_digits_max)


@contextmanager
def open_billing(
    settings: Settings, group: WorkerGroup | None = None, *, charging: bool = True
) -> Generator[BillingContext]:
    """share: a worker's; without one, who is charging takes its part of Stripe's rate beside the workers.

    Raises CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable when one can't be reached in time.
    """
    with ExitStack() as stack:
        usage = stack.enter_context(UsageReader(settings))
        catalog = stack.enter_context(CatalogStore(settings))
        ledger = stack.enter_context(LedgerLog(settings))
        if group is None and charging and calls_per_second(settings) is not None:
            group = stack.enter_context(WorkerGroup(settings, is_worker=False))
        api = stack.enter_context(StripeApi(settings, *(() if group is None else (group.of_rate,))))
        forbear_collecting()
        yield BillingContext(settings, catalog, ledger, api, usage)


def forbear_collecting() -> None:
    """What is there by now stays: the collector need not walk it again and again while invoices are made."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
