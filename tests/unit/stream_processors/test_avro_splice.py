"""Messages become one Avro file by concatenation: any Avro reader finds in it what was sent, and where."""

from __future__ import annotations

import io
import os
from typing import Any

import fastavro
import pytest

from schemas.usage_batch import HEADER_LENGTH, SCHEMA_ID, UsageBatch, encode, unscaled_bytes
from stream_processors.avro_splice import Message, Unreadable, by_schema, container, known_by, long_bytes, read_head

RECEIVED_AT = 1_774_872_000_000_000
SYNC = b"0123456789abcdef"


def payload(events: int = 3, identity: str = "") -> bytes:
    return encode(
        UsageBatch(
            batch_id=b"b" * 16,
            received_at=RECEIVED_AT,
            organization_id=["default"] * events,
            customer_id=[f"c{i}" for i in range(events)],
            event_name=["calls"] * events,
            timestamp=[RECEIVED_AT + i for i in range(events)],
            value=[None if i == 0 else unscaled_bytes(-i) for i in range(events)],
            identity=[f"{identity}{i}" for i in range(events)] if identity else (),
        )
    )


def read(parts: list[bytes | memoryview]) -> list[dict[str, Any]]:
    return list(fastavro.reader(io.BytesIO(b"".join(parts))))  # pyright: ignore[reportReturnType]


def test_an_avro_reader_finds_coordinates_and_columns() -> None:
    places = [(1, 0, 0), (1, 11, 2**44 - 1), (1023, 1023, 77)]
    messages = [read_head(*place, payload(n + 1, "c:é"), b"key") for n, place in enumerate(places)]
    found = read(container(messages, SYNC))
    assert [(r["kafka_epoch"], r["kafka_partition"], r["kafka_offset"]) for r in found] == places
    assert [len(r["customer_id"]) for r in found] == [1, 2, 3]
    assert found[2]["identity"] == ["c:é0", "c:é1", "c:é2"]
    assert found[2]["customer_id"] == ["c0", "c1", "c2"]
    assert all(r["guard_before"] == r["guard_after"] == SYNC for r in found)


def test_bytes_at_the_end_do_not_meet_the_guard() -> None:
    """What the engine compares: the guard is read right behind the datum, wherever that ends."""
    longer = Message(1, 0, 0, payload() + b"x" * 16, None, SCHEMA_ID, RECEIVED_AT, 3)
    block = b"".join(container([longer], SYNC))
    assert block.count(SYNC) == 4  # head, guard, guard, end
    assert block.index(b"x" * 16) < block.rindex(SYNC + SYNC)


def test_no_payload_is_copied() -> None:
    message = read_head(1, 0, 0, payload(), None)
    views = [part for part in container([message], SYNC) if isinstance(part, memoryview)]
    assert [view.obj for view in views] == [message.payload]


def test_the_head_tells_when_and_how_many() -> None:
    found = read_head(2, 3, 4, payload(1000), b"key")
    assert (found.epoch, found.partition, found.offset, found.key) == (2, 3, 4, b"key")
    assert (found.schema_id, found.received_at, found.events) == (SCHEMA_ID, RECEIVED_AT, 1000)


def test_a_message_is_known_by_its_bytes_or_else_by_its_place() -> None:
    assert known_by(read_head(1, 2, 3, payload(), None)) == known_by(read_head(1, 2, 9, payload(), None))
    nameless = payload()[:HEADER_LENGTH] + bytes(16) + payload()[HEADER_LENGTH + 16 :]
    found = {known_by(read_head(1, 2, offset, nameless, None)) for offset in (3, 9)}
    assert len(found) == 2
    assert 0 not in found
    assert known_by(read_head(1, 2, 3, nameless, None)) in found


GOOD = payload()


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (None, "framing"),
        (b"", "framing"),
        (b"\0\0\0", "framing"),
        (b"\1" + GOOD[1:], "framing"),
        (b"{}", "framing"),
        (b"\0\0\0\0\3" + GOOD[5:], "unknown_schema"),
        (b"\0\xff\xff\xff\xff" + GOOD[5:], "unknown_schema"),
        (GOOD[:5], "truncated"),
        (GOOD[:21], "truncated"),
        (GOOD[:21] + b"\xff" * 20, "truncated"),
        (GOOD[:21] + b"\0" + long_bytes(0), "event_count"),
        (GOOD[:21] + b"\0" + long_bytes(1025), "event_count"),
        (GOOD[:21] + b"\0" + long_bytes(2**62), "event_count"),
    ],
)
def test_a_head_that_is_none_is_refused(bad: bytes | None, code: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read_head(1, 0, 0, bad, None)
    assert refused.value.code == code


@pytest.mark.parametrize("number", [0, 1, -1, 63, 64, -64, -65, 2**31, 2**44 - 1, 2**63 - 1, -(2**63)])
def test_longs_are_as_avro_writes_them(number: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, {"type": "long"}, number)
    assert long_bytes(number) == out.getvalue()


def test_files_are_of_one_schema() -> None:
    first, second, third = (
        Message(1, 0, offset, GOOD, None, schema, 0, 1) for offset, schema in ((0, 1), (1, 9), (2, 1))
    )
    assert by_schema([first, second, third]) == {1: [first, third], 9: [second]}
    with pytest.raises(AssertionError):
        container([first, second], SYNC)


def test_a_marker_that_protects_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError):
        container([read_head(1, 0, 0, GOOD, None)], os.urandom(15))
