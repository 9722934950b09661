"""messages → rows in ClickHouse, or a verdict on who is at fault: the data, the size, or something that passes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Protocol

from schemas import usage_batch, usage_void
from schemas.dead_letter import DeadLetter
from schemas.event import UNSCALED_LIMIT
from stream_processors import avro_splice
from stream_processors.avro_splice import Message
from stream_processors.log_places import Gap
from warehouse.client import STORING, Client, server_code
from warehouse.own_objects import foreign_object, pushed_views

# ClickHouse's codes (system.errors) that say: these bytes are at fault. Which bytes, the error must say as well: an
# analyst's view raises the same codes on good messages. What is not known to be a message's fault is waited out, since
# setting a good message aside would be worse than standing still and saying so.
DATA_CODES = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        32,  # ATTEMPT_TO_READ_AFTER_EOF
        33,  # CANNOT_READ_ALL_DATA
        69,  # ARGUMENT_OUT_OF_BOUND
        117,  # INCORRECT_DATA
        128,  # TOO_LARGE_ARRAY_SIZE
        131,  # TOO_LARGE_STRING_SIZE
        190,  # SIZES_OF_ARRAYS_DONT_MATCH
        321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE: of a decimal, more or fewer bytes than it can have
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        376,  # CANNOT_PARSE_UUID: what 24.8 says of such a decimal
        407,  # DECIMAL_OVERFLOW
        469,  # VIOLATED_CONSTRAINT
    }
)
_VIOLATED_CONSTRAINT = 469
_MEMORY_LIMIT_EXCEEDED = 241

# An insert is worth its price in parts and merges from some hundred thousand events on; what is less waits a moment.
ENOUGH_BYTES = 24 * 1024 * 1024

# Schema id → the door that its messages are inserted through.
DOORS = {usage_batch.SCHEMA_ID: "usage_batches_in", usage_void.SCHEMA_ID: "usage_voids_in"}

INSERT_SETTINGS = {
    # What this connection is answered must be in the tables, whatever the user's profile says.
    "async_insert": 0,
    "materialized_views_ignore_errors": 0,
    # The two views that explode batches work at the same time, in blocks of the size of an insert. Duplicates within it
    # are left to FINAL and to merges, which collapse them anyway: 40 % less of the engine's time.
    "parallel_view_processing": 1,
    "max_block_size": 262_144,
    "optimize_on_insert": 0,
    **STORING,
    # A retry carries the token of the attempt before it: tables that remember tokens, ours and analysts', take each
    # block once, whichever views had failed.
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}


class Fault(Enum):
    """DATA: these bytes will never be taken. SIZE: fewer at a time may be. FOREIGN: somebody else's view, table or
    constraint fails on good bytes. PASSING: nothing that is known to be the data's; try again."""

    DATA = auto()
    SIZE = auto()
    FOREIGN = auto()
    PASSING = auto()


def fault_of(error: Exception) -> Fault:
    """Who is at fault, as far as the error says. A message that our own reader can't read is at fault in any case."""
    code = server_code(error)
    if code is None:
        return Fault.PASSING
    if foreign_object(error) is not None:
        return Fault.FOREIGN
    if code == _MEMORY_LIMIT_EXCEEDED:
        return Fault.SIZE
    names_ours = code == _VIOLATED_CONSTRAINT or bool(pushed_views(str(error)))
    return Fault.DATA if code in DATA_CODES and names_ours else Fault.PASSING


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that ClickHouse does not take, and what it says."""

    message: Message
    error: Exception


class Engine(Protocol):
    """ClickHouse as the sink has it: it may be away."""

    def attempt(self, work: Callable[[Client], object]) -> Exception | None:
        """Do the work once; None, or the error of ClickHouse or of the way to it."""
        ...

    def wait(self, error: Exception) -> None:
        """Wait a moment, longer each time, until it is worth trying again. What it raises ends the insert."""
        ...


def insert(messages: Sequence[Message], engine: Engine) -> Iterator[Refused]:
    """Insert messages; those refused are found by bisection, each alone, so that no neighbour is lost with them.

    Tries until ClickHouse has answered for each. What was inserted before an exception may be inserted again.
    """
    for of_schema in avro_splice.by_schema(messages).values():
        yield from _insert(of_schema, engine)


def _insert(messages: Sequence[Message], engine: Engine) -> Iterator[Refused]:
    # Letters, not any bytes: ClickHouse names a column's value in its errors.
    sync = secrets.token_hex(avro_splice.SYNC_LENGTH // 2).encode()
    body = b"".join(avro_splice.container(messages, sync))
    # Of this insert and its retries alone: rows that were lost since and are inserted again have another token.
    settings = {**INSERT_SETTINGS, "insert_deduplication_token": secrets.token_hex(16)}

    def block() -> Generator[bytes, None, None]:  # given as bytes, it would be copied behind the statement
        yield body

    def insert_all(client: Client) -> None:
        client.raw_insert(DOORS[messages[0].schema_id], insert_block=block(), fmt="Avro", settings=settings)

    while (error := engine.attempt(insert_all)) is not None:
        fault = fault_of(error)
        answered = server_code(error) is not None
        guilty = fault is Fault.DATA or (answered and fault is not Fault.FOREIGN and not all(map(readable, messages)))
        if guilty and len(messages) == 1:
            yield Refused(messages[0], error)
            return
        if len(messages) > 1 and (guilty or fault is Fault.SIZE):
            middle = len(messages) // 2
            yield from _insert(messages[:middle], engine)
            yield from _insert(messages[middle:], engine)
            return
        engine.wait(error)


def readable(message: Message) -> bool:
    """Whether it is what its schema and the tables' constraints say, for Python's reader, which takes a millisecond."""
    try:
        if usage_void.is_void(message.payload):
            usage_void.decode(message.payload)
            return True
        batch = usage_batch.decode(message.payload)
    except usage_batch.UnreadableBatch:
        return False
    return all(value is None or is_value(value) for value in batch.value)


def is_value(unscaled: bytes) -> bool:
    """Whether it is a decimal that an event may have: 1 to 16 bytes, |value| < 10^18."""
    return 1 <= len(unscaled) <= _VALUE_BYTES_MAX and abs(int.from_bytes(unscaled, "big", signed=True)) < UNSCALED_LIMIT


_VALUE_BYTES_MAX = 16
_ACCOUNT_COLUMNS = (
    "kafka_epoch",
    "kafka_partition",
    "kafka_offset",
    "next_offset",
    "batch_id",
    "received_at",
    "stored_at",
    "events",
    "value_sum",
    "reason",
)


def account(
    epoch_at: Callable[[int, int], int], letters: Sequence[DeadLetter], gaps: Sequence[Gap], engine: Engine
) -> None:
    """A row in ingest_batches for what has no events, so that coverage stays contiguous.

    epoch_at: (partition, offset) → the epoch of the message there.
    """
    rows = [(each.epoch, each.partition, each.offset, each.offset + 1, each.reason) for each in letters]
    rows += [
        (gap.epoch or epoch_at(gap.partition, gap.first), gap.partition, gap.first, gap.after, gap.reason)
        for gap in gaps
    ]
    if not rows:
        return
    now = datetime.now(UTC)
    data = [[epoch, p, first, after, bytes(16), now, now, 0, 0, reason] for epoch, p, first, after, reason in rows]
    while (
        error := engine.attempt(lambda client: client.insert("ingest_batches", data, column_names=_ACCOUNT_COLUMNS))
    ) is not None:
        engine.wait(error)
