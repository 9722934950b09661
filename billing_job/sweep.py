"""open invoices → what became of them at Stripe: asks for news that no webhook brought."""

from __future__ import annotations

import threading
import time

import structlog

from billing_job.charge import observe
from billing_job.steps import Billing
from billing_job.stripe_api import StripeFailure, StripeRefused
from schemas.ledger import Invoice

log = structlog.get_logger(__name__)


def awaits_payment(invoice: Invoice) -> bool:
    """Whether Stripe may still change it without us."""
    return invoice.stripe is not None and invoice.stripe.status in ("open", "uncollectible")


class Sweep:
    """Reads invoices that await payment, each at most once in `every_seconds`."""

    def __init__(self, billing: Billing, every_seconds: float) -> None:
        self._billing = billing
        self._every = every_seconds
        self._read_at: dict[str, float] = {}

    def run(self, stopping: threading.Event | None = None) -> int:
        """Number of invoices whose state changed. Ends early when Stripe does not answer: the next run goes on."""
        changed = 0
        now = time.monotonic()
        for invoice in list(self._billing.log.state.invoices.values()):
            if stopping is not None and stopping.is_set():
                break
            if not awaits_payment(invoice) or now - self._read_at.get(invoice.id, -self._every) < self._every:
                continue
            assert invoice.fixed is not None
            assert invoice.stripe_invoice_id is not None
            try:
                seen = self._billing.api.invoice(invoice.stripe_invoice_id, invoice.fixed.seller.stripe_account_id)
            except StripeRefused as refused:
                log.warning("sweep_refused", invoice=invoice.id, reason=refused.reason)
                continue
            except StripeFailure as failure:
                log.warning("sweep_stopped", reason=failure.reason)
                break
            self._read_at[invoice.id] = now
            changed += observe(self._billing, invoice, seen).state != invoice.state
        return changed
