"""What billing tells Prometheus: every name, once."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.ledger import InvoiceLedger, State

CLOSE_SECONDS = Histogram(
    "usage_billing_close_seconds",
    "Time that each part of a close took",
    ["part"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
)
CLOSES = Counter("usage_billing_closes", "Closes that ended", ["outcome"])
WAITING = Gauge("usage_billing_waiting_invoices", "Due invoices that wait for ClickHouse to have their events")
PROBLEMS = Gauge("usage_billing_problem_invoices", "Due invoices that the last close could not take further")
STRIPE_CALLS = Counter("usage_stripe_calls", "Calls to Stripe", ["method", "outcome"])
STRIPE_SECONDS = Histogram("usage_stripe_call_seconds", "Time that a call to Stripe took", ["method"])
WEBHOOKS = Counter("usage_stripe_webhooks", "Webhooks from Stripe", ["outcome"])


class InvoicesByState(Collector):
    """usage_invoices{state}: counted when asked, from the ledger's fold."""

    def __init__(self, ledger: Callable[[], InvoiceLedger]) -> None:
        self._ledger = ledger

    def collect(self) -> Iterable[GaugeMetricFamily]:
        states = Count(invoice.state for invoice in list(self._ledger().invoices.values()))
        family = GaugeMetricFamily("usage_invoices", "Invoices by state", labels=["state"])
        for state in get_args(State):
            family.add_metric([state], states[state])
        yield family
