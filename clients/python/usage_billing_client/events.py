"""tracked event → its JSON, the same bytes for every attempt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from usage_billing_client.errors import EventError, RefusedEvent

Value = int | float | Decimal | str | None


@dataclass(frozen=True, slots=True)
class Event:
    """Usage of one customer, for `UsageClient.track_all`.

    customer_id, event_name: 1 to 256 characters.
    value: a decimal with at most 9 decimals; a float is taken as its shortest spelling; None: the event has no value.
    timestamp: when the usage happened, with a time zone; None: now.
    event_id: what makes it the same event when it is sent again; None: the client makes one.
    properties: at most 20 short texts, or None.
    """

    customer_id: str
    event_name: str
    value: Value = None
    timestamp: datetime | None = None
    event_id: str | None = None
    properties: Mapping[str, str] | None = None


class Tracked(NamedTuple):
    """The fields of an event in the queue, which holds plain tuples: making this would double the time of `track`."""

    customer_id: str
    event_name: str
    value: Value
    timestamp: datetime | float
    event_id: str | None
    properties: Mapping[str, str] | None


class _Wire(msgspec.Struct, omit_defaults=True):
    customer_id: str
    event_name: str
    timestamp: datetime
    event_id: str
    value: Value = None
    properties: Mapping[str, str] | None = None


# Decimals become texts, which the API takes as they are spelled; as JSON numbers some proxies would round them.
_encode = msgspec.json.Encoder(decimal_format="string").encode
_Events = msgspec.json.Decoder(type=dict[str, list[msgspec.Raw]])


def encode_event(tracked: Sequence[Any], event_id: str) -> bytes | RefusedEvent:
    """The event's JSON, or why it has none. event_id: used when the event brings none.

    What JSON can't spell is refused here, since an encoder would turn NaN into null: an event without a value.
    """
    customer_id, event_name, value, timestamp, own_id, properties = tracked
    try:
        if type(value) is float and not math.isfinite(value):
            raise ValueError("value must be a finite number")
        if type(timestamp) is float:
            timestamp = datetime.fromtimestamp(timestamp, UTC)
        elif timestamp.tzinfo is None:
            raise ValueError("timestamp must have a time zone")
        return _encode(_Wire(customer_id, event_name, timestamp, own_id or event_id, value, properties))
    except (TypeError, ValueError, OverflowError, AttributeError, msgspec.MsgspecError) as reason:
        fields = dict(zip(Tracked._fields, tracked, strict=True))
        return RefusedEvent(fields, (EventError(None, "event_not_encodable", str(reason)),))


def join_body(events: Sequence[bytes | msgspec.Raw]) -> bytes:
    """The body of a request with these events."""
    return b'{"events":[' + b",".join(events) + b"]}"


def split_body(body: bytes) -> list[msgspec.Raw]:
    """The events of a request's body, each as the bytes it was encoded to."""
    return _Events.decode(body)["events"]


def event_fields(event: msgspec.Raw) -> dict[str, Any]:
    """The fields of an encoded event."""
    return msgspec.json.decode(event)
