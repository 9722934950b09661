"""Prometheus metrics of control API, read API and pages."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECORDS = Counter("usage_dashboard_live_records_total", "Records read of usage.totals and usage.alerts.")
RECORDS_UNREADABLE = Counter(
    "usage_dashboard_live_records_unreadable_total",
    "Records that could not be decoded and were passed over.",
    ["topic"],
)
SERIES = Gauge("usage_dashboard_live_series", "Customers × event names held in memory.")
LISTENERS = Gauge("usage_dashboard_stream_clients", "Open streams of changes.")
VISIBLE_SECONDS = Histogram(
    "usage_dashboard_visible_seconds",
    "From the aggregator's publishing of a total to its being shown; the oldest of each batch.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
)
WEBHOOK_ATTEMPTS = Counter("usage_webhook_attempts_total", "Requests to merchants' endpoints, by outcome.", ["outcome"])
WEBHOOK_SECONDS = Histogram(
    "usage_webhook_seconds",
    "From reading an alert to the answer of an endpoint that took it at the first attempt.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30),
)
SIGN_INS = Counter("usage_dashboard_sign_ins_total", "Sign-ins to the pages, by outcome.", ["outcome"])
