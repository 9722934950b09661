"""UsageVoid ⇄ bytes: tombstones of events, in usage.events among the events, Avro in Confluent's framing.

A tombstone names an identity: no event that has it counts from then on, whether the event lies before it in the log or
after it. It lies in the log itself, so that it has coordinates, and a watermark tells whether an invoice honours it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import fastavro
from pydantic import BaseModel, ConfigDict

from schemas.event import Label, client_identity
from schemas.usage_batch import EVENTS_PER_MESSAGE_MAX, HEADER_LENGTH, UnreadableBatch, plain_schema, read_datum

SCHEMA_ID = 2  # in our own read-only registry
SCHEMA_JSON: dict[str, Any] = json.loads((files("schemas") / "usage_void.avsc").read_text())
_HEADER = b"\x00" + SCHEMA_ID.to_bytes(4, "big")
_PLAIN: Any = fastavro.parse_schema(plain_schema(SCHEMA_JSON))
_COLUMNS = ("organization_id", "customer_id", "event_name", "identity", "reason")


class VoidRequest(BaseModel):
    """The fields that a merchant posts: the event, as its producer named it, that is not to count, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    customer_id: Label
    event_name: Label
    event_id: Label
    reason: Label


@dataclass(frozen=True, slots=True)
class UsageVoids:
    """Columns of equal length n, 1 ≤ n ≤ 1,024. batch_id: 16 random bytes. received_at: µs since 1970, UTC."""

    batch_id: bytes
    received_at: int
    organization_id: Sequence[str]
    customer_id: Sequence[str]
    event_name: Sequence[str]
    identity: Sequence[str]
    reason: Sequence[str]

    def __len__(self) -> int:
        return len(self.customer_id)


def tombstone(organization_id: str, wanted: VoidRequest, batch_id: bytes, now: int) -> UsageVoids:
    """The tombstone of one event that its producer gave an event_id. now: µs."""
    return UsageVoids(
        batch_id=batch_id,
        received_at=now,
        organization_id=[organization_id],
        customer_id=[wanted.customer_id],
        event_name=[wanted.event_name],
        identity=[client_identity(wanted.event_id)],
        reason=[wanted.reason],
    )


def is_void(message: bytes) -> bool:
    """Whether a message of usage.events says that it holds tombstones."""
    return message[:HEADER_LENGTH] == _HEADER


def encode(voids: UsageVoids) -> bytes:
    """The framed message."""
    out = io.BytesIO()
    out.write(_HEADER)
    fields = ("batch_id", "received_at", *_COLUMNS)
    fastavro.schemaless_writer(out, _PLAIN, {name: getattr(voids, name) for name in fields})
    return out.getvalue()


def decode(message: bytes) -> UsageVoids:
    """The tombstones of a framed message. Raises UnreadableBatch, and nothing else, for anything that is not them."""
    if not is_void(message):
        raise UnreadableBatch(f"no Confluent framing with schema id {SCHEMA_ID}: {message[:HEADER_LENGTH].hex()}")
    voids = UsageVoids(**read_datum(message, _PLAIN))
    n = len(voids)
    if not 1 <= n <= EVENTS_PER_MESSAGE_MAX:
        raise UnreadableBatch(f"{n} tombstones in one message")
    for name in _COLUMNS:
        if len(getattr(voids, name)) != n:
            raise UnreadableBatch(f"{len(getattr(voids, name))} of {name} for {n} tombstones")
    return voids
