"""What billing tells Prometheus: every name, once."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ledger.records import HoldCode, State, WaitCode
from ledger.view import InvoiceLedger

CLOSE_SECONDS = Histogram(
    "usage_billing_close_seconds",
    "Time that each part of a close took",
    ["part"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
)
CLOSES = Counter("usage_billing_closes", "Closes that ended", ["outcome"])
WAITING = Gauge("usage_billing_waiting_invoices", "Due invoices that wait for ClickHouse to have their events")
PROBLEMS = Gauge("usage_billing_problem_invoices", "Due invoices that the last close could not advance")
AWAITING_APPROVAL = Gauge("usage_billing_awaiting_approval_invoices", "Due invoices that await approval")
STRIPE_CALLS = Counter("usage_stripe_calls", "Calls to Stripe", ["method", "outcome"])
STRIPE_SECONDS = Histogram("usage_stripe_call_seconds", "Time that a call to Stripe took", ["method"])
WEBHOOKS = Counter("usage_stripe_webhooks", "Webhooks from Stripe", ["outcome"])


HELD_CODES = (
    *(("waiting", code) for code in get_args(WaitCode)),
    *(("mismatch", code) for code in get_args(HoldCode)),
)


class InvoicesByState(Collector):
    """usage_invoices{state} and usage_held_invoices{state, reason}: counted when asked, from the ledger's fold."""

    def __init__(self, ledger: Callable[[], InvoiceLedger]) -> None:
        self._ledger = ledger

    def collect(self) -> Iterable[GaugeMetricFamily]:
        invoices = list(self._ledger().invoices.values())
        states = Count(invoice.state for invoice in invoices)
        held = Count((invoice.state, code) for invoice in invoices if (code := invoice.held_by))
        family = GaugeMetricFamily("usage_invoices", "Invoices by state", labels=["state"])
        for state in get_args(State):
            family.add_metric([state], states[state])
        yield family
        family = GaugeMetricFamily("usage_held_invoices", "Invoices held, by reason", labels=["state", "reason"])
        for state, code in HELD_CODES:
            family.add_metric([state, code], held[state, code])
        yield family
