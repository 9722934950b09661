"""messages of usage.events → one Avro object container file, without decoding an event. Pure.

A record (epoch, partition, offset, hash, batch) has as its bytes exactly the four varints and then the message's own
datum. So each message becomes one block of a container file by concatenation. Around the datum stand 16 random bytes,
the same on both sides, which the engine reads as two columns and compares: a damaged message that ends before its last
byte, or after it, is refused. The same bytes are the sync marker at the end of every block, so that no message borrows
its neighbour's bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import fastavro
from xxhash import xxh3_64_intdigest

from schemas import usage_batch, usage_void
from schemas.usage_batch import EVENTS_PER_MESSAGE_MAX, HEADER_LENGTH, message_hash

SYNC_LENGTH = 16
_MAGIC = b"Obj\x01"
_ONE_RECORD = b"\x02"  # the number 1 as Avro writes it
_BATCH_ID_LENGTH = 16
_VARINT_LENGTH_MAX = 10


class Unreadable(ValueError):
    """A message that is no batch in a schema that we know. code: the reason, machine-readable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A message of usage.events and where it is in the log.

    schema_id, received_at (µs since 1970) and events (how many, or how many tombstones; a lower bound where a writer
    splits its arrays into blocks) are read from its head; payload is the whole value, framing included.
    """

    epoch: int
    partition: int
    offset: int
    payload: bytes
    key: bytes | None
    schema_id: int
    received_at: int
    events: int


def read_head(epoch: int, partition: int, offset: int, payload: bytes | None, key: bytes | None) -> Message:
    """The message with what its first bytes tell. Raises Unreadable for wrong framing or an unknown schema."""
    if payload is None or len(payload) < HEADER_LENGTH or payload[0] != 0:
        head = "no value" if payload is None else payload[:HEADER_LENGTH].hex()
        raise Unreadable("framing", f"no Confluent framing: {head}")
    schema_id = int.from_bytes(payload[1:HEADER_LENGTH], "big")
    if schema_id not in WRITERS:
        raise Unreadable("unknown_schema", f"schema id {schema_id} is unknown")
    received_at, at = _long(payload, HEADER_LENGTH + _BATCH_ID_LENGTH)
    events, _ = _long(payload, at)
    # A negative count is followed by the block's size in bytes; its absolute value counts.
    events = abs(events)
    if not 1 <= events <= EVENTS_PER_MESSAGE_MAX:
        raise Unreadable("event_count", f"{events} events in one message")
    return Message(epoch, partition, offset, payload, key, schema_id, received_at, events)


def _long(data: bytes, at: int) -> tuple[int, int]:
    """The zigzag varint at a position, and the position after it. Raises Unreadable."""
    result = shift = 0
    for byte in data[at : at + _VARINT_LENGTH_MAX]:
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (result >> 1) ^ -(result & 1), at
        shift += 7
    raise Unreadable("truncated", "the message ends, or goes astray, in its head")


def known_by(message: Message) -> int:
    """64 bits, never 0, by which events without ids are known; as a long has them, signed.

    A message without a batch_id is known by its place.
    """
    number = message_hash(message.payload)
    if not number:
        number = xxh3_64_intdigest(f"{message.epoch}/{message.partition}/{message.offset}".encode()) or 1
    return number - (1 << 64) if number >= 1 << 63 else number


def long_bytes(number: int) -> bytes:
    """A long as Avro writes it: zigzag, seven bits a byte, least first."""
    rest = (number << 1) ^ (number >> 63)
    if top := rest >> 56:  # a hash: in parts of one machine word each, without a loop, in a third of the time
        low, high = rest & 0xFFFFFFF, rest >> 28 & 0xFFFFFFF
        return bytes(
            (
                low & 0x7F | 0x80, low >> 7 & 0x7F | 0x80, low >> 14 & 0x7F | 0x80, low >> 21 | 0x80,
                high & 0x7F | 0x80, high >> 7 & 0x7F | 0x80, high >> 14 & 0x7F | 0x80, high >> 21 | 0x80,
                *((top,) if top < 0x80 else (top & 0x7F | 0x80, top >> 7)),
            )
        )  # fmt: skip
    out = bytearray()
    while rest & ~0x7F:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


@lru_cache(4096)
def _log_bytes(epoch: int, partition: int) -> bytes:
    return long_bytes(epoch) + long_bytes(partition)


def stored_schema(writer: Mapping[str, Any]) -> dict[str, Any]:
    """The record that the container says it holds: where and what it is, guard, the writer's fields, guard."""
    guard = {"type": "fixed", "name": "Guard", "size": SYNC_LENGTH}
    before = (("kafka_epoch", "int"), ("kafka_partition", "int"), ("kafka_offset", "long"))
    before += (("message_hash", "long"), ("guard_before", guard))
    fields = [{"name": name, "type": kind} for name, kind in before]
    fields += [*writer["fields"], {"name": "guard_after", "type": "Guard"}]
    return {"type": "record", "name": "StoredBatch", "fields": fields}


def _container_head(writer: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    out.write(_MAGIC)
    metadata = {"avro.schema": json.dumps(stored_schema(writer)).encode(), "avro.codec": b"null"}
    fastavro.schemaless_writer(out, cast(Any, {"type": "map", "values": "bytes"}), metadata)
    return out.getvalue()


# Schema id → the head of a container of that schema. A later version of UsageBatch is added here beside the first.
# Whatever their columns, all begin with batch_id, received_at and an array, which is what read_head reads.
WRITERS: dict[int, bytes] = {
    usage_batch.SCHEMA_ID: _container_head(usage_batch.SCHEMA_JSON),
    usage_void.SCHEMA_ID: _container_head(usage_void.SCHEMA_JSON),
}


def by_schema(messages: Iterable[Message]) -> dict[int, list[Message]]:
    """Messages in their order, per writer's schema: each is a file of its own."""
    groups: dict[int, list[Message]] = {}
    for message in messages:
        groups.setdefault(message.schema_id, []).append(message)
    return groups


def container(messages: Sequence[Message], sync: bytes) -> list[bytes | memoryview]:
    """One object container file, in parts to be sent one after the other, so that no payload is copied.

    messages: of one schema, at least one. sync: 16 random bytes, new for each file.
    """
    assert len(sync) == SYNC_LENGTH, "a marker that is no random 16 bytes protects nothing"
    parts: list[bytes | memoryview] = [WRITERS[messages[0].schema_id], sync]
    twice = sync + sync
    for message in messages:
        assert message.schema_id == messages[0].schema_id, "a file has one schema"
        log = _log_bytes(message.epoch, message.partition)
        before = log + long_bytes(message.offset) + long_bytes(known_by(message)) + sync
        size = len(before) + len(message.payload) - HEADER_LENGTH + SYNC_LENGTH
        parts.append(_ONE_RECORD + long_bytes(size) + before)
        parts.append(memoryview(message.payload)[HEADER_LENGTH:])
        parts.append(twice)  # the guard, then the block's end
    return parts
