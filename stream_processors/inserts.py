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
from stream_processors import avro_splice
from stream_processors.avro_splice import Message
from stream_processors.log_places import Gap
from warehouse.client import STORING, Client, server_code

# ClickHouse's codes (system.errors) that say: these bytes are at fault. All others, away or full or misconfigured, are
# waited out, since setting a good message aside would be worse than standing still and saying so.
_DATA_CODES = frozenset(
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
        407,  # DECIMAL_OVERFLOW
        469,  # VIOLATED_CONSTRAINT
    }
)
_STD_EXCEPTION = 1001
_AVRO_READER = "avro::Exception"  # a full disk may come as 1001 too
_MEMORY_LIMIT_EXCEEDED = 241

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
}


class Fault(Enum):
    """DATA: these bytes will never be taken. SIZE: fewer at a time may be. PASSING: not the data's; try again."""

    DATA = auto()
    SIZE = auto()
    PASSING = auto()


def fault_of(error: Exception) -> Fault:
    code = server_code(error)
    if code in _DATA_CODES or (code == _STD_EXCEPTION and _AVRO_READER in str(error)):
        return Fault.DATA
    return Fault.SIZE if code == _MEMORY_LIMIT_EXCEEDED else Fault.PASSING


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

    def block() -> Generator[bytes, None, None]:  # given as bytes, it would be copied behind the statement
        yield body

    def insert_all(client: Client) -> None:
        client.raw_insert(DOORS[messages[0].schema_id], insert_block=block(), fmt="Avro", settings=INSERT_SETTINGS)

    while (error := engine.attempt(insert_all)) is not None:
        fault = fault_of(error)
        # A code that is not known to speak of data is held against it only if we can't read it either.
        guilty = fault is Fault.DATA or (server_code(error) is not None and not all(map(readable, messages)))
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
    """Whether it is what its schema says for Python's reader too, which takes a millisecond."""
    try:
        (usage_void if usage_void.is_void(message.payload) else usage_batch).decode(message.payload)
    except usage_batch.UnreadableBatch:
        return False
    return True


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


def account(epoch: int, letters: Sequence[DeadLetter], gaps: Sequence[Gap], engine: Engine) -> None:
    """A row in ingest_batches for what has no events, so that coverage stays contiguous."""
    rows = [(letter.partition, letter.offset, letter.offset + 1, letter.reason) for letter in letters]
    rows += [(gap.partition, gap.first, gap.after, gap.reason) for gap in gaps]
    if not rows:
        return
    now = datetime.now(UTC)
    data = [[epoch, p, first, after, bytes(16), now, now, 0, 0, reason] for p, first, after, reason in rows]
    while (
        error := engine.attempt(lambda client: client.insert("ingest_batches", data, column_names=_ACCOUNT_COLUMNS))
    ) is not None:
        engine.wait(error)
