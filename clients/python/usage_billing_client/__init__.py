"""Track usage from Python: `track()` returns at once; threads batch, send and retry until the gateway has it.

from usage_billing_client import UsageClient

usage = UsageClient("http://127.0.0.1:8080", key="…", spool="/var/lib/myapp/usage")
usage.track("cus_1", "api_request", 1, properties={"region": "eu"})
"""

from usage_billing_client.aio import AsyncUsageClient
from usage_billing_client.client import Stats, UsageClient
from usage_billing_client.errors import (
    ClientClosed,
    EventError,
    InvalidSignature,
    NotDelivered,
    QueueFull,
    RefusedEvent,
    SpoolError,
    UsageClientError,
)
from usage_billing_client.events import Event
from usage_billing_client.webhooks import verify_webhook

__all__ = [
    "AsyncUsageClient",
    "ClientClosed",
    "Event",
    "EventError",
    "InvalidSignature",
    "NotDelivered",
    "QueueFull",
    "RefusedEvent",
    "SpoolError",
    "Stats",
    "UsageClient",
    "UsageClientError",
    "verify_webhook",
]
