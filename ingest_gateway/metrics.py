"""What the gateway counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("usage_gateway_requests_total", "Answers to POST /api/v1/usage/events and …/void.", ["status"])
ACCEPTED = REQUESTS.labels(202)  # looked up once: it is counted most
EVENTS_ACCEPTED = Counter("usage_gateway_events_accepted_total", "Events acknowledged by Kafka and answered 202.")
VOIDS_ACCEPTED = Counter("usage_gateway_voids_accepted_total", "Tombstones acknowledged by Kafka and answered 202.")
EVENTS_WAITING = Gauge("usage_gateway_events_waiting", "Events taken whose acknowledgement is awaited.")
MESSAGES = Counter("usage_gateway_messages_total", "Messages produced to usage.events.")
ENDS_LOST = Counter(
    "usage_gateway_ends_lost_total",
    "Times that Kafka gave offsets again which it had acknowledged to this process: usage.events had lost its end.",
    ["partition"],
)
ACKNOWLEDGED_SECONDS = Histogram(
    "usage_gateway_acknowledged_seconds",
    "From a valid batch to its acknowledgement by Kafka.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
