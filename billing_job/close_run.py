"""The state of one close, which its parts share: what it has open, its problems, its progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from billing_job.collect.steps import Billing, note_problem
from billing_job.context import BillingContext
from billing_job.loops import invoice_by_invoice
from ledger.snapshot import InvoiceFixed
from ledger.view import InvoiceLedger
from runtime.one_by_one import OneByOne

log = structlog.get_logger(__name__)

Progress = Callable[[str, int, int], None]
"""part of the close (wait, fix, gate, charge), invoices done, invoices in all."""


@dataclass(slots=True)
class CloseRun:
    """One close.

    seconds: part → time it took.
    problems: invoice id → why it could not be finished now.
    unchecked: ids of approved invoices → why they can't be charged yet.
    down: why Stripe is not called any more in this run; None: it answers.
    """

    context: BillingContext
    billing: Billing
    progress: Progress
    stopping: threading.Event
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    problems: dict[str, str] = field(default_factory=dict[str, str])
    awaiting_approval: list[str] = field(default_factory=list[str])
    unchecked: dict[str, str] = field(default_factory=dict[str, str])
    down: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ledger(self) -> InvoiceLedger:
        return self.context.log.state

    def grace_seconds(self, organization_id: str) -> int:
        organization = self.context.catalog.view.organization(organization_id)
        if organization is None or organization.grace_seconds is None:
            return self.context.settings.close_grace_seconds
        return organization.grace_seconds

    def one_by_one(self, name: str) -> OneByOne:
        """A loop of this run over invoices: what can't be handled is among the problems, and the invoice says why."""
        return invoice_by_invoice(name, self.set_aside)

    def set_aside(self, key: str, reason: str) -> None:
        """Leave an invoice for the next run, with the reason in the report and in the ledger."""
        with self.lock:
            self.problems[key] = reason
        note_problem(self.billing, key, reason)

    @contextmanager
    def timed(self, part: str) -> Generator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = time.monotonic() - started

    def note(self, fixed: InvoiceFixed, reason: str) -> None:
        """Report why an invoice is not finished; the next run tries it again."""
        log.warning("invoice_not_finished", invoice=fixed.invoice_id, customer=fixed.customer_id, reason=reason)
        with self.lock:
            self.problems[fixed.invoice_id] = reason


class SharedProgress:
    """Progress from several threads."""

    def __init__(self, progress: Progress, part: str, total: int) -> None:
        self._progress, self._part, self._total = progress, part, total
        self._done = 0
        self._lock = threading.Lock()
        progress(part, 0, total)

    def step(self) -> None:
        with self._lock:
            self._done += 1
            self._progress(self._part, self._done, self._total)
