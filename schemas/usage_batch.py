"""UsageBatch ⇄ bytes: the value of every message of usage.events, Avro in Confluent's framing."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.resources import files
from typing import Any, cast

import fastavro
from xxhash import xxh3_64_intdigest

from schemas import avro_column_reader as reader
from schemas import avro_columns as columns
from schemas.event import decimal_value

SCHEMA_ID = 1  # in our own read-only registry; a new version of the schema gets the next number
EVENTS_PER_MESSAGE_MAX = 1024  # kafka_index has 10 bits of the version in ClickHouse
_MAGIC = b"\x00"
_BATCH_ID_BYTES = 16
_NO_BATCH_ID = bytes(_BATCH_ID_BYTES)
_NO_PROPERTIES = b"\x00"  # an empty array; the last column
_HEADER = _MAGIC + SCHEMA_ID.to_bytes(4, "big")
HEADER_LENGTH = len(_HEADER)
SCHEMA_JSON: dict[str, Any] = json.loads((files("schemas") / "usage_batch.avsc").read_text())


class UnreadableBatch(ValueError):
    """A message that is no UsageBatch: wrong framing, unknown schema, truncated, or arrays of unequal length."""


@dataclass(frozen=True, slots=True)
class UsageBatch:
    """Columns of equal length n, 1 ≤ n ≤ 1,024; index i is event i.

    batch_id: 16 random bytes. received_at, timestamp: µs since 1970, UTC. value: unscaled big-endian two's complement
    of a decimal(38, 9), or None. identity, properties: empty, or n long. message_hash: of the message that it was read
    from (see message_hash); no field of it.
    """

    batch_id: bytes
    received_at: int
    organization_id: Sequence[str]
    customer_id: Sequence[str]
    event_name: Sequence[str]
    timestamp: Sequence[int]
    value: Sequence[bytes | None]
    identity: Sequence[str] = field(default=())
    properties: Sequence[dict[str, str]] = field(default=())
    message_hash: int = field(default=0, compare=False)

    def __len__(self) -> int:
        return len(self.customer_id)


def plain_schema(schema: Any) -> Any:
    """The schema without logical types: the bytes are the same, and nothing is converted per event."""
    if isinstance(schema, dict):
        named = cast("dict[str, Any]", schema)
        if named.get("logicalType"):
            return named["type"]
        return {key: plain_schema(value) for key, value in named.items() if key != "doc"}
    if isinstance(schema, list):
        return [plain_schema(item) for item in cast("list[Any]", schema)]
    return schema


_PLAIN: Any = fastavro.parse_schema(plain_schema(SCHEMA_JSON))
_PROPERTIES: Any = {"type": "array", "items": {"type": "map", "values": "string"}}
_COLUMNS = ("organization_id", "customer_id", "event_name", "timestamp", "value", "identity", "properties")


def encode(batch: UsageBatch) -> bytes:
    """The framed message: the bytes that fastavro would write, a column at a time."""
    return b"".join(
        (
            _HEADER,
            batch.batch_id,
            columns.varint(batch.received_at),
            columns.names(batch.organization_id),
            columns.names(batch.customer_id),
            columns.names(batch.event_name),
            columns.longs(batch.timestamp),
            columns.values(batch.value),
            columns.texts(batch.identity),
            _properties(batch.properties),
        )
    )


def _properties(column: Sequence[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _PROPERTIES, column)
    return out.getvalue()


def batch_id_of(message: bytes) -> bytes:
    """Of a framed message, be it events or tombstones: the first field of both schemas."""
    return message[HEADER_LENGTH : HEADER_LENGTH + _BATCH_ID_BYTES]


def message_hash(message: bytes) -> int:
    """64 bits by which a framed message is known wherever it lies in the log; 0: it has no batch_id.

    Of all that it says, not of its batch_id alone: where a writer reuses one for other events, these count. A
    client that repeats a message sends the same bytes.
    """
    if message.startswith(_NO_BATCH_ID, HEADER_LENGTH):
        return 0
    return xxh3_64_intdigest(message[HEADER_LENGTH:]) or 1


def decode(message: bytes) -> UsageBatch:
    """The batch of a framed message. Raises UnreadableBatch, and nothing else, for anything that is not one."""
    if message[:HEADER_LENGTH] != _HEADER:
        raise UnreadableBatch(f"no Confluent framing with schema id {SCHEMA_ID}: {message[:HEADER_LENGTH].hex()}")
    try:
        batch = _read_columns(message)
    except (reader.Irregular, IndexError, UnicodeDecodeError):
        batch = _read_by_fastavro(message)
    n = len(batch)
    if not 1 <= n <= EVENTS_PER_MESSAGE_MAX:
        raise UnreadableBatch(f"{n} events in one message")
    same = len(batch.organization_id) == len(batch.event_name) == len(batch.timestamp) == len(batch.value) == n
    if not same or len(batch.identity) not in (0, n) or len(batch.properties) not in (0, n):
        lengths = ", ".join(f"{len(getattr(batch, name))} of {name}" for name in _COLUMNS)
        raise UnreadableBatch(f"columns of unequal length: {lengths}")
    return batch


def _read_columns(message: bytes) -> UsageBatch:
    """A message in the layout of `encode`, four times as fast as by fastavro. Raises as avro_column_reader does."""
    latin = message.decode("latin-1")
    at = HEADER_LENGTH + _BATCH_ID_BYTES
    received_at, at = reader.varint(message, at)
    organization_id, at = reader.texts(message, latin, at)
    customer_id, at = reader.texts(message, latin, at)
    event_name, at = reader.texts(message, latin, at)
    timestamp, at = reader.longs(message, at)
    value, at = reader.values(message, at)
    identity, at = reader.texts(message, latin, at)
    if message[at:] != _NO_PROPERTIES:
        raise reader.Irregular("properties")
    batch_id = batch_id_of(message)
    known = message_hash(message)
    return UsageBatch(
        batch_id, received_at, organization_id, customer_id, event_name, timestamp, value, identity, [], known
    )


def _read_by_fastavro(message: bytes) -> UsageBatch:
    return UsageBatch(**read_datum(message, _PLAIN), message_hash=message_hash(message))


def read_datum(message: bytes, plain: Any) -> dict[str, Any]:
    """The record of a framed message. plain: its `plain_schema`. Raises UnreadableBatch."""
    source = io.BytesIO(message)
    source.seek(HEADER_LENGTH)
    try:
        record: Any = fastavro.schemaless_reader(source, plain, None)
    except Exception as error:  # fastavro raises EOFError, IndexError, ValueError, UnicodeDecodeError, MemoryError…
        raise UnreadableBatch(f"not a {plain['name']}: {error!r}") from error
    if source.tell() != len(message):
        raise UnreadableBatch(f"{len(message) - source.tell()} bytes after the {plain['name']}")
    return record


def unscaled_bytes(unscaled: int) -> bytes:
    """Avro's decimal: the least big-endian two's complement of value × 10⁹."""
    return unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True)


def decimal_of(value: bytes) -> Decimal:
    """The exact decimal behind a value of the batch."""
    return decimal_value(int.from_bytes(value, "big", signed=True))
