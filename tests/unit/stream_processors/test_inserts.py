"""Who is at fault when an insert fails: found by bisection, and never a good message's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from schemas.usage_batch import SCHEMA_ID, UsageBatch, encode
from stream_processors.avro_splice import Message
from stream_processors.inserts import Fault, Refused, fault_of, insert

DATA, MEMORY, UNKNOWN = 469, 241, 60
WHOLE = encode(UsageBatch(b"b" * 16, 1, ["o"], ["c"], ["e"], [1], [None]))


def message(offset: int, payload: bytes = WHOLE) -> Message:
    return Message(1, 0, offset, payload, None, SCHEMA_ID, 1, 1)


class FakeEngine:
    """Takes what `verdict` allows: the bytes of an insert → None or an error."""

    def __init__(self, verdict: Callable[[bytes], Exception | None]) -> None:
        self._verdict = verdict
        self.bodies: list[bytes] = []
        self.waits = 0

    def raw_insert(self, _table: str, *, insert_block: Any, fmt: str, settings: dict[str, Any]) -> None:
        assert fmt == "Avro"
        assert settings["async_insert"] == 0
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
    error = DatabaseError("refused", code=DATA)
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


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (DatabaseError("a constraint", code=469), Fault.DATA),
        (DatabaseError("bytes of a decimal", code=321), Fault.DATA),
        (DatabaseError("type: avro::Exception, e.what() = EOF reached", code=1001), Fault.DATA),
        (DatabaseError("filesystem error: No space left on device", code=1001), Fault.PASSING),
        (DatabaseError("memory", code=241), Fault.SIZE),
        (DatabaseError("too many parts", code=252), Fault.PASSING),
        (DatabaseError("not enough space", code=243), Fault.PASSING),
        (OperationalError("time-out"), Fault.PASSING),
        (ConnectionError("reset"), Fault.PASSING),
    ],
)
def test_faults(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault
