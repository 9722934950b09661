"""alert × endpoint → a delivery, and what an attempt makes of it. Pure."""

from __future__ import annotations

import json

from msgspec import structs

from dashboard.live_rows import alert_out
from schemas.alert import Alert
from schemas.period import SECOND_US, format_rfc3339
from schemas.webhook_delivery import (
    ATTEMPTS_KEPT,
    Attempt,
    DeliveryState,
    RetryRequest,
    WebhookDelivery,
    delivery_id,
)
from schemas.webhook_endpoint import WebhookEndpoint

RETRY_HOURS = 24
RETRY_SECONDS_MAX = 4 * 3600.0
GROWTH = 4
EVENT_TYPE = "alert.fired"


def begun(endpoint: WebhookEndpoint, alert: Alert, now: int) -> WebhookDelivery:
    """A delivery to be sent at once. now: µs."""
    payload = {
        "type": EVENT_TYPE,
        "timestamp": format_rfc3339(alert.fired_at),
        "data": alert_out(alert).model_dump(mode="json"),
    }
    return WebhookDelivery(
        id=delivery_id(endpoint.id, alert.id),
        organization_id=alert.organization_id,
        customer_id=alert.customer_id,
        endpoint_id=endpoint.id,
        alert_id=alert.id,
        payload=json.dumps(payload, ensure_ascii=False),
        created_at=now,
        retry_until=now + RETRY_HOURS * 3600 * SECOND_US,
        state=DeliveryState.PENDING,
        next_attempt_at=now,
    )


def wait_seconds(attempts_made: int, first_seconds: float) -> float:
    """Before the next attempt: 5 s, 20 s, 80 s, … up to 4 hours, where the first wait is 5 s."""
    return min(RETRY_SECONDS_MAX, first_seconds * GROWTH ** min(attempts_made - 1, 16))


def attempted(delivery: WebhookDelivery, attempt: Attempt, first_seconds: float, jitter: float) -> WebhookDelivery:
    """The delivery after an attempt. jitter: a factor of the wait, so that what failed together comes apart."""
    made = delivery.attempts_made + 1
    done = attempt.status is not None and 200 <= attempt.status < 300
    following = attempt.at + int(wait_seconds(made, first_seconds) * jitter * SECOND_US)
    state = DeliveryState.DELIVERED if done else DeliveryState.PENDING
    if not done and following > delivery.retry_until:
        state = DeliveryState.FAILED
    return structs.replace(
        delivery,
        state=state,
        next_attempt_at=following if state is DeliveryState.PENDING else None,
        attempts_made=made,
        attempts=(*delivery.attempts, attempt)[-ATTEMPTS_KEPT:],
        revision=delivery.revision + 1,
    )


def given_up(delivery: WebhookDelivery, now: int, reason: str) -> WebhookDelivery:
    """Nobody is there to send it to any more."""
    return structs.replace(
        delivery,
        state=DeliveryState.FAILED,
        next_attempt_at=None,
        attempts=(*delivery.attempts, Attempt(now, None, reason, 0))[-ATTEMPTS_KEPT:],
        revision=delivery.revision + 1,
    )


def retried(delivery: WebhookDelivery, request: RetryRequest, now: int) -> WebhookDelivery | None:
    """The delivery to be sent at once; None: the request was followed already, or there is nothing left to do."""
    if request.requested_at <= delivery.retried_at or delivery.state is DeliveryState.DELIVERED:
        return None
    return structs.replace(
        delivery,
        state=DeliveryState.PENDING,
        next_attempt_at=now,
        retried_at=request.requested_at,
        revision=delivery.revision + 1,
    )
