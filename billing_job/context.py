"""settings → catalog, ledger, ClickHouse and Stripe, as one run or one process of billing has them open."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

from billing_job.collect.steps import Billing, system_clock
from billing_job.invoice.builder import build_snapshots
from billing_job.invoice.due import DueCycle
from billing_job.invoice.usage_reader import UsageReader
from billing_job.stripe.api import StripeApi
from billing_job.stripe.rate import calls_per_second
from billing_job.worker_group import WorkerGroup
from catalog.store import CatalogStore
from ledger.snapshot import InvoiceFixed
from ledger.store import LedgerLog
from schemas.settings import Settings
from schemas.watermark import Watermark

T = TypeVar("T")

_INTERACTIVE_STRIPE_SECONDS_MAX = 5.0
_INTERACTIVE_COVERAGE_SECONDS_MAX = 10.0


class BillingContext:
    """Catalog, ledger, ClickHouse and Stripe. A context manager; thread-safe.

    A part that is given stays its owner's. Any other is opened at its first use, and closed with the context. Opening
    raises CatalogUnavailable, LedgerUnavailable or WarehouseUnavailable when it can't be reached in time.

    group: the worker's, for its part of Stripe's rate.
    shares_rate: without a group, join that of the closers for a part of the rate, where Stripe has a limit.
    interactive: a person waits for the answer: shorter time-outs of Stripe and ClickHouse.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        catalog: CatalogStore | None = None,
        ledger: LedgerLog | None = None,
        stripe: StripeApi | None = None,
        usage: UsageReader | None = None,
        group: WorkerGroup | None = None,
        shares_rate: bool = False,
        interactive: bool = False,
    ) -> None:
        self.settings = settings
        self._group, self._shares_rate, self._interactive = group, shares_rate, interactive
        self._parts = ExitStack()
        lock = threading.RLock()
        self._catalog = _Part(lock, catalog, lambda: self._parts.enter_context(CatalogStore(settings)))
        self._ledger = _Part(lock, ledger, lambda: self._parts.enter_context(LedgerLog(settings)))
        self._stripe = _Part(lock, stripe, self._open_stripe)
        self._usage = _Part(lock, usage, self._open_usage)

    def __enter__(self) -> BillingContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what the context opened."""
        self._parts.close()

    @property
    def catalog(self) -> CatalogStore:
        return self._catalog.get()

    @property
    def log(self) -> LedgerLog:
        return self._ledger.get()

    @property
    def api(self) -> StripeApi:
        return self._stripe.get()

    @property
    def usage(self) -> UsageReader:
        return self._usage.get()

    def billing(self, *, scheduled: bool = False) -> Billing:
        """Ledger and Stripe, as a step of an invoice needs them."""
        return Billing(self.log, self.api, system_clock, scheduled, self.settings.stripe_amount_digits_max)

    def build_snapshots(self, due: Sequence[DueCycle], watermark: Watermark, now_us: int) -> list[InvoiceFixed]:
        """See builder.build_snapshots."""
        return build_snapshots(
            self.catalog.view, self.log.state, self.usage, due, watermark, now_us=now_us, writer=self.log.writer
        )

    def _open_stripe(self) -> StripeApi:
        group = self._group
        if group is None and self._shares_rate and calls_per_second(self.settings) is not None:
            group = self._parts.enter_context(WorkerGroup(self.settings, is_worker=False))
        settings = self.settings
        if self._interactive:
            seconds = min(settings.stripe_retry_seconds, _INTERACTIVE_STRIPE_SECONDS_MAX)
            settings = settings.model_copy(update={"stripe_retry_seconds": seconds})
        return self._parts.enter_context(StripeApi(settings, *(() if group is None else (group.of_rate,))))

    def _open_usage(self) -> UsageReader:
        settings = self.settings
        if self._interactive:
            seconds = min(settings.coverage_timeout_seconds, _INTERACTIVE_COVERAGE_SECONDS_MAX)
            settings = settings.model_copy(update={"coverage_timeout_seconds": seconds})
        return self._parts.enter_context(UsageReader(settings, prompt=self._interactive))


class _Part(Generic[T]):
    """One that was given, or that is opened at its first use."""

    def __init__(self, lock: threading.RLock, given: T | None, open_part: Callable[[], T]) -> None:
        self._lock, self._open_part = lock, open_part
        self._part = given

    def get(self) -> T:
        with self._lock:
            if self._part is None:
                self._part = self._open_part()
            return self._part


@contextmanager
def open_billing(settings: Settings, group: WorkerGroup | None = None) -> Generator[BillingContext]:
    """Everything that closing cycles needs, open from the start.

    group: the worker's; None: a closer's own. Raises CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable.
    """
    with BillingContext(settings, group=group, shares_rate=True) as context:
        for part in (context.usage, context.catalog, context.log, context.api):
            assert part is not None  # opened
        forbear_collecting()
        yield context


def forbear_collecting() -> None:
    """Keep what is in memory by now out of garbage collections: invoices are made for minutes beside it."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
