"""Who is at fault when an insert fails: found by bisection, and never a good message's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from schemas.usage_batch import SCHEMA_ID, UsageBatch, encode
from stream_processors.avro_splice import Message
from stream_processors.inserts import Fault, Refused, fault_of, insert, is_value

DATA, MEMORY, UNKNOWN = 469, 241, 60
WHOLE = encode(UsageBatch(b"b" * 16, 1, ["o"], ["c"], ["e"], [1], [None]))


def message(offset: int, payload: bytes = WHOLE) -> Message:
    return Message(1, 0, offset, payload, None, SCHEMA_ID, 1, 1)


class FakeEngine:
    """Takes what `verdict` allows: the bytes of an insert → None or an error."""

    def __init__(self, verdict: Callable[[bytes], Exception | None]) -> None:
        self._verdict = verdict
        self.bodies: list[bytes] = []
        self.tokens: list[str] = []
        self.waits = 0

    def raw_insert(self, _table: str, *, insert_block: Any, fmt: str, settings: dict[str, Any]) -> None:
        assert fmt == "Avro"
        assert settings["async_insert"] == 0
        self.tokens.append(settings["insert_deduplication_token"])
        body = b"".join(insert_block)
        if error := self._verdict(body):
            raise error
        self.bodies.append(body)

    def attempt(self, work: Callable[[Any], object]) -> Exception | None:
        try:
            work(self)
        except (DatabaseError, OSError) as error:
            return error
        return None

    def wait(self, error: Exception) -> None:
        self.waits += 1
        assert self.waits < 50, "it waits for ever"


def marked(offset: int) -> Message:
    return message(offset, WHOLE.replace(b"\x02c", b"\x02" + bytes([65 + offset])))


def test_only_the_poisoned_are_refused_and_every_neighbour_is_inserted() -> None:
    messages = [marked(offset) for offset in range(20)]
    poisoned = {3, 4, 19}
    error = DatabaseError("Constraint `text` for table usage.usage_batches_in is violated", code=DATA)
    engine = FakeEngine(lambda body: error if any(b"\x02" + bytes([65 + p]) in body for p in poisoned) else None)
    assert list(insert(messages, engine)) == [Refused(messages[p], error) for p in sorted(poisoned)]
    inserted = b"".join(engine.bodies)
    for offset in set(range(20)) - poisoned:
        assert inserted.count(messages[offset].payload[5:]) == 1
    assert engine.waits == 0


def test_an_engine_that_is_away_is_waited_for_and_nothing_is_set_aside() -> None:
    errors: list[Exception | None] = [OperationalError("away"), ConnectionError("reset"), None]
    engine = FakeEngine(lambda _: errors.pop(0))
    assert list(insert([message(0), message(1)], engine)) == []
    assert engine.waits == 2
    assert len(engine.bodies) == 1


def test_an_error_that_does_not_speak_of_data_is_waited_out_for_a_readable_message() -> None:
    errors: list[Exception | None] = [*[DatabaseError("no such table", code=UNKNOWN)] * 5, None]
    engine = FakeEngine(lambda _: errors.pop(0))
    assert list(insert([message(0)], engine)) == []
    assert engine.waits == 5


def test_an_unknown_error_is_held_against_a_message_that_no_one_can_read() -> None:
    good, bad = message(0), message(1, WHOLE[:-2])
    error = DatabaseError("strange", code=UNKNOWN)
    engine = FakeEngine(lambda body: error if bad.payload[5:] in body and WHOLE[5:] not in body else None)
    assert list(insert([bad], engine)) == [Refused(bad, error)]
    assert list(insert([good], engine)) == []


def test_too_little_memory_makes_inserts_smaller() -> None:
    error = DatabaseError("memory", code=MEMORY)
    engine = FakeEngine(lambda body: error if body.count(WHOLE[5:]) > 3 else None)
    assert list(insert([message(offset) for offset in range(10)], engine)) == []
    assert [body.count(WHOLE[5:]) for body in engine.bodies] == [2, 3, 2, 3]
    assert engine.waits == 0


def test_too_little_memory_for_one_message_is_waited_out() -> None:
    errors: list[Exception | None] = [*[DatabaseError("memory", code=MEMORY)] * 3, None]
    engine = FakeEngine(lambda _: errors.pop(0))
    assert list(insert([message(0)], engine)) == []
    assert engine.waits == 3


OURS = "while pushing to view usage.usage_to_events (9d5b)"
THEIRS = "Cannot parse string 'x' as UInt64: while executing FUNCTION: while pushing to view usage.`their view`: "


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (DatabaseError("Constraint `magnitude` for table usage.usage_batches_in (9d5b) is violated", code=469), Fault.DATA),
        (DatabaseError(f"Decimal overflow: {OURS}", code=407), Fault.DATA),
        (DatabaseError(f"too many parts: {OURS}", code=252), Fault.PASSING),
        (DatabaseError(THEIRS + OURS, code=6), Fault.FOREIGN),
        (DatabaseError("Value is non-zero: while pushing to view analysts.mine", code=395), Fault.FOREIGN),
        (DatabaseError(f"Constraint `few` for table usage.theirs is violated: {OURS}", code=469), Fault.FOREIGN),
        (DatabaseError(f"Constraint `few` for table usage.usage_events is violated: {OURS}", code=469), Fault.FOREIGN),
        # Whose fault these are is told by reading the messages.
        (DatabaseError("bytes of a decimal", code=321), Fault.PASSING),
        (DatabaseError("type: avro::Exception, e.what() = EOF reached", code=1001), Fault.PASSING),
        (DatabaseError("filesystem error: No space left on device", code=1001), Fault.PASSING),
        (DatabaseError("memory", code=241), Fault.SIZE),
        (DatabaseError("not enough space", code=243), Fault.PASSING),
        (OperationalError("time-out"), Fault.PASSING),
        (ConnectionError("reset"), Fault.PASSING),
    ],
)  # fmt: skip
def test_faults(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


def test_the_bytes_are_at_fault_only_where_no_one_can_read_them() -> None:
    """Of an error that speaks of data and names nothing of ours."""
    error = DatabaseError("Cannot read all data", code=33)
    assert list(insert([message(0, WHOLE[:-2])], FakeEngine(lambda _: error)))
    errors: list[Exception | None] = [error, None]
    assert list(insert([message(0)], FakeEngine(lambda _: errors.pop(0)))) == []


def test_a_view_of_somebody_else_sets_no_message_aside_not_even_beside_an_unreadable_one() -> None:
    errors: list[Exception | None] = [*[DatabaseError(THEIRS + OURS, code=6)] * 3, None]
    engine = FakeEngine(lambda _: errors.pop(0))
    assert list(insert([message(0), message(1)], engine)) == []
    assert engine.waits == 3
    assert len(engine.bodies) == 1


def test_retries_of_an_insert_have_one_token_and_inserts_have_different_ones() -> None:
    errors: list[Exception | None] = [ConnectionError("reset"), None, None]
    engine = FakeEngine(lambda _: errors.pop(0))
    for _ in range(2):
        assert list(insert([message(0)], engine)) == []
    first, again, other = engine.tokens
    assert first == again != other


@pytest.mark.parametrize(
    ("unscaled", "verdict"),
    [
        (b"", False),
        (b"\x01", True),
        (b"\xff" * 16, True),
        (b"\x01" * 17, False),
        ((10**27 - 1).to_bytes(12, "big"), True),
        ((10**27).to_bytes(12, "big"), False),
        ((-(10**27)).to_bytes(12, "big", signed=True), False),
    ],
)
def test_values_are_as_the_tables_have_them(unscaled: bytes, verdict: bool) -> None:
    assert is_value(unscaled) is verdict
