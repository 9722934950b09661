"""billing_job → what the dashboard asks of invoices: the two stages meet here and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from confluent_kafka import KafkaException

from billing_job import desk, invoices
from billing_job.counts import Counts
from billing_job.explain import NoSuchLine, events_csv, explained_invoice
from billing_job.ledger import LedgerLog, LedgerUnavailable
from billing_job.simulate import NotSimulable
from catalog.store import CatalogStore
from dashboard.invoice_desk import DeskRefused, DeskUnavailable, Verified
from schemas.invoice_ledger import Invoice
from schemas.ledger import InvoiceFixed
from schemas.period import Cycle
from schemas.product import ProductSpec
from schemas.settings import Settings
from warehouse.client import WarehouseUnavailable

T = TypeVar("T")
_AWAY = (LedgerUnavailable, WarehouseUnavailable, KafkaException)


class LedgerDesk:
    """ledger: followed by its owner, so that what is told is what the log says now."""

    def __init__(self, settings: Settings, catalog: CatalogStore, ledger: LedgerLog) -> None:
        self._settings, self._catalog, self._ledger = settings, catalog, ledger
        self._lock = threading.Lock()
        self._open: Counts | None = None

    def close(self) -> None:
        """Close what it has opened."""
        with self._lock:
            if self._open is not None:
                self._open.__exit__()
                self._open = None

    def verify(self, invoice_id: str) -> Verified:
        fixed = self._fixed(invoice_id)
        if fixed is None:
            return Verified("", ("the invoice is not fixed yet",))
        (found,) = self._answered(lambda: invoices.verified(self._ledger.state, [fixed], self._counts()))
        return Verified(found.recomputed, found.differences)

    def explain(self, invoice_id: str) -> list[str]:
        return explained_invoice(self._invoice(invoice_id))

    def events(self, invoice_id: str, line: int | None) -> Iterator[str]:
        fixed = self._fixed(invoice_id)
        if fixed is None:
            raise DeskRefused("id", "the invoice is not fixed yet")
        numbers = range(len(fixed.lines)) if line is None else range(line, line + 1)
        blocks = events_csv(self._ledger.state, self._answered(self._counts), fixed, numbers)
        try:
            head = self._answered(lambda: next(blocks))
            first = self._answered(lambda: next(blocks, ""))  # what is wrong is told before an answer has begun
        except NoSuchLine as error:
            raise DeskRefused("line", str(error)) from error
        return _chained(head + first, blocks)

    def preview(self, organization_id: str, customer_id: str, at_us: int) -> list[dict[str, Any]]:
        view = self._catalog.view
        subscriptions = view.subscriptions_of(organization_id, customer_id)
        return self._answered(
            lambda: invoices.previewed(view, self._ledger.state, self._counts(), subscriptions, at_us)
        )

    def simulate(
        self, organization_id: str, customer_id: str, product: ProductSpec | str, period: Cycle
    ) -> list[dict[str, Any]]:
        try:
            return self._answered(
                lambda: invoices.simulation(
                    self._catalog.view,
                    self._ledger.state,
                    self._counts(),
                    organization_id=organization_id,
                    customer_id=customer_id,
                    product=product,
                    period=period,
                )
            )
        except NotSimulable as error:
            raise DeskRefused(error.field, str(error)) from error

    def ask(self, invoice_id: str, what: Literal["approve", "retry"], by: str) -> bool:
        invoice = self._invoice(invoice_id)
        wanted = desk.awaits_approval(self._catalog.view, invoice) if what == "approve" else desk.is_held(invoice)
        if not wanted or (what == "retry" and invoice.fixed is None):  # what waits is tried every few seconds
            return False
        return self._answered(lambda: desk.asked(self._ledger, invoice, what, by))

    def _invoice(self, invoice_id: str) -> Invoice:
        found = self._ledger.state.get(invoice_id)
        if found is None:  # the tables that its caller found it in were quicker
            raise DeskUnavailable(f"the ledger has not been read up to invoice {invoice_id}")
        return found

    def _fixed(self, invoice_id: str) -> InvoiceFixed | None:
        return self._invoice(invoice_id).fixed

    def _counts(self) -> Counts:
        """ClickHouse, asked when it is first needed."""
        with self._lock:
            if self._open is None:
                self._open = Counts(self._settings)
            return self._open

    def _answered(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except _AWAY as error:
            raise DeskUnavailable(str(error)) from error


def _chained(first: str, blocks: Iterator[str]) -> Iterator[str]:
    yield first
    yield from blocks
