"""usage.webhook_deliveries records ⇄ bytes: what was sent to an endpoint about an alert, and with what success.

A record is a delivery's whole state; of one ID the greatest revision is valid. A `RetryRequest`, whose key ends in
NUL and `retry`, asks the worker that has the partition to send it again. Partition: the alert's.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

ATTEMPTS_KEPT = 20
_RETRY = b"\0retry"


class UnreadableDelivery(ValueError):
    """Bytes in usage.webhook_deliveries that are not a record of it."""


class DeliveryState(StrEnum):
    """pending: will be sent (again). delivered: answered with 2xx. failed: given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Attempt(msgspec.Struct, frozen=True):
    """at: µs. status: of the answer; None: there was none, error says why. milliseconds: how long it took."""

    at: int
    status: int | None
    error: str | None
    milliseconds: int


class WebhookDelivery(msgspec.Struct, frozen=True):
    """payload: the body, the same at every attempt. attempts: the last ones, of attempts_made.

    next_attempt_at: µs; None unless pending. retry_until: given up after it, µs. retried_at: the newest request that
    was followed, µs; 0: none.
    """

    id: str
    organization_id: str
    customer_id: str
    endpoint_id: str
    alert_id: str
    payload: str
    created_at: int
    retry_until: int
    state: DeliveryState
    next_attempt_at: int | None
    attempts_made: int = 0
    attempts: tuple[Attempt, ...] = ()
    retried_at: int = 0
    revision: int = 0

    @property
    def key(self) -> bytes:
        return self.id.encode()


class RetryRequest(msgspec.Struct, frozen=True):
    """requested_at: µs."""

    delivery_id: str
    requested_at: int

    @property
    def key(self) -> bytes:
        return self.delivery_id.encode() + _RETRY


def delivery_id(endpoint_id: str, alert_id: str) -> str:
    """One for each endpoint and alert, however often the alert is published."""
    return "dlv_" + hashlib.sha256(f"{endpoint_id}\0{alert_id}".encode()).hexdigest()[:32]


_encoder = msgspec.json.Encoder()
_delivery_decoder = msgspec.json.Decoder(WebhookDelivery)
_retry_decoder = msgspec.json.Decoder(RetryRequest)


def encode(record: WebhookDelivery | RetryRequest) -> bytes:
    return _encoder.encode(record)


def decode(key: bytes, value: bytes) -> WebhookDelivery | RetryRequest:
    """Raises UnreadableDelivery."""
    try:
        return _retry_decoder.decode(value) if key.endswith(_RETRY) else _delivery_decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise UnreadableDelivery(f"key {key!r}: {error}") from error
