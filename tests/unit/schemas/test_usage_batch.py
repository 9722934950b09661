"""UsageBatch: our column-wise encoder writes what fastavro writes, and nothing but a batch is read as one."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from unittest.mock import Mock

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import usage_batch
from schemas.avro_column_reader import Irregular
from schemas.avro_columns import text_item, varint
from schemas.usage_batch import (
    HEADER_LENGTH,
    SCHEMA_JSON,
    UnreadableBatch,
    UsageBatch,
    decimal_of,
    decode,
    encode,
    message_hash,
    unscaled_bytes,
)

INSTANTS = st.integers(0, 2**53)
OF_OUR_TIME = st.integers(1 << 48, (1 << 55) - 1)
UNSCALED = st.integers(-(10**27) + 1, 10**27 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@st.composite
def batches(draw: st.DrawFn) -> UsageBatch:
    n = draw(st.integers(1, 40))

    def column(items: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(items, min_size=n, max_size=n))

    return UsageBatch(
        draw(st.binary(min_size=16, max_size=16)),
        draw(INSTANTS),
        column(st.sampled_from(["default", "org_ü"])),
        column(TEXT),
        column(TEXT),
        column(draw(st.sampled_from([INSTANTS, OF_OUR_TIME]))),
        column(st.none() | UNSCALED.map(unscaled_bytes)),
        draw(st.sampled_from([[], column(TEXT)])),
        draw(st.sampled_from([[], column(st.dictionaries(TEXT, TEXT, max_size=2))])),
    )


def by_fastavro(batch: UsageBatch) -> bytes:
    out = io.BytesIO()
    names = ("batch_id", "received_at", *usage_batch._COLUMNS)  # pyright: ignore[reportPrivateUsage]
    fastavro.schemaless_writer(
        out,
        usage_batch._PLAIN,  # pyright: ignore[reportPrivateUsage]
        {name: getattr(batch, name) for name in names},
    )
    return out.getvalue()


@given(batches())
def test_encodes_as_fastavro_does_and_reads_it_back(batch: UsageBatch) -> None:
    message = encode(batch)
    assert message[HEADER_LENGTH:] == by_fastavro(batch)
    assert decode(message) == batch


@given(batches())
def test_a_message_is_known_by_all_that_it_says(batch: UsageBatch) -> None:
    message = encode(batch)
    known = decode(message).message_hash
    assert known == decode_by_fastavro(message).message_hash == message_hash(message)
    assert bool(known) == any(batch.batch_id)
    others = (replace(batch, received_at=batch.received_at + 1), replace(batch, batch_id=b"another's batch!"))
    for other in others:
        assert message_hash(encode(other)) != known or not known


def test_the_hash_of_a_message_is_stored_and_stays_as_it_is() -> None:
    message = encode(UsageBatch(b"0123456789abcdef", 1, ["o"], ["c"], ["e"], [2], [None]))
    assert message_hash(message) == 6013745294203511944


def verdict(read: Callable[[bytes], UsageBatch], message: bytes) -> UsageBatch | None:
    try:
        return read(message)
    except UnreadableBatch:
        return None


def decode_by_fastavro(message: bytes) -> UsageBatch:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(usage_batch, "_read_columns", Mock(side_effect=Irregular))
        return decode(message)


@given(batches(), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3), st.data())
def test_both_readers_have_one_verdict_on_damaged_messages(
    batch: UsageBatch, damage: list[tuple[float, int]], data: st.DataObject
) -> None:
    message = bytearray(encode(batch))
    for where, byte in damage:
        message[HEADER_LENGTH + int(where * (len(message) - HEADER_LENGTH))] = byte
    cut = data.draw(st.integers(0, 3)) if damage else 0
    damaged = bytes(message[: len(message) - cut])
    assert verdict(decode, damaged) == verdict(decode_by_fastavro, damaged)


def in_blocks(items: Sequence[bytes], sized: bool) -> bytes:
    """An array with a block an item, each with its size in bytes or without, as other encoders may write it."""
    blocks = (varint(-1) + varint(len(item)) + item if sized else varint(1) + item for item in items)
    return b"".join(blocks) + b"\x00"


@pytest.mark.parametrize("sized", [False, True], ids=["counted", "sized"])
def test_arrays_in_several_blocks_are_read(sized: bool) -> None:
    def of_texts(*column: str) -> bytes:
        return in_blocks([text_item(text) for text in column], sized)

    message = b"".join(
        [
            GOOD[:HEADER_LENGTH],
            b"x" * 16,
            varint(1),
            of_texts("o", "o"),
            of_texts("a", "b"),
            of_texts("e", "e"),
            in_blocks([varint(1), varint(2)], sized),
            in_blocks([b"\x00", b"\x02\x02\x01"], sized),
            of_texts("c:1", ""),
            b"\x00",
        ]
    )
    assert decode(message) == decode(GOOD)


def test_what_encode_writes_needs_no_fastavro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_batch, "_read_by_fastavro", Mock(side_effect=AssertionError("the slow reader was asked")))
    n = 1000
    decode(
        encode(
            UsageBatch(
                b"x" * 16,
                1_774_872_000_000_000,
                ["default"] * n,
                [f"cus_{number % 80}" for number in range(n)],
                ["ü" * 100] * n,
                [1_774_872_000_000_000 + number for number in range(n)],
                [None if number % 3 else unscaled_bytes(number * -(10**20)) for number in range(n)],
                [f"c:{number:0100}" for number in range(n)],
            )
        )
    )


@given(st.integers(-(2**63), 2**63 - 1))
def test_varint_is_avros_long(number: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", number)
    assert varint(number) == out.getvalue()


@given(UNSCALED)
def test_values_are_exact(unscaled: int) -> None:
    assert decimal_of(unscaled_bytes(unscaled)) == Decimal((unscaled < 0, tuple(map(int, str(abs(unscaled)))), -9))


def test_any_avro_reader_sees_decimals_and_instants() -> None:
    """With the published schema, logical types and all."""
    batch = UsageBatch(b"x" * 16, 0, ["o"], ["c"], ["e"], [1_774_872_000_000_000], [unscaled_bytes(-1_500_000_000)])
    read = fastavro.schemaless_reader(
        io.BytesIO(encode(batch)[HEADER_LENGTH:]), fastavro.parse_schema(SCHEMA_JSON), None
    )
    assert isinstance(read, dict)
    assert read["value"] == [Decimal("-1.5")]
    assert read["timestamp"][0].isoformat() == "2026-03-30T12:00:00+00:00"


GOOD = encode(UsageBatch(b"x" * 16, 1, ["o", "o"], ["a", "b"], ["e", "e"], [1, 2], [None, b"\x01"], ["c:1", ""]))


@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_message_is_unreadable(length: int) -> None:
    with pytest.raises(UnreadableBatch):
        decode(GOOD[:length])


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00" * 40,
        GOOD + b"\x00",
        GOOD.replace(b"\x02a", b"\x03a"),  # a length of -2
        GOOD.replace(b"\x02\x02\x01", b"\x02\x03\x01"),
        GOOD.replace(b"\x02\x02\x01", b"\x04\x02\x01"),  # a third branch
        GOOD[:4] + b"\x63" + GOOD[5:],  # another schema id
        b"\x01" + GOOD[1:],
        encode(UsageBatch(b"x" * 16, 1, ["o"], ["a", "b"], ["e", "e"], [1, 2], [None, None])),
        encode(UsageBatch(b"x" * 16, 1, ["o"], ["a"], ["e"], [1], [None], ["c:1", "c:2"])),
        encode(UsageBatch(b"x" * 16, 1, [], [], [], [], [])),
        encode(UsageBatch(b"x" * 16, 1, ["o"] * 1025, ["a"] * 1025, ["e"] * 1025, [1] * 1025, [None] * 1025)),
    ],
)
def test_what_is_no_batch_is_unreadable(message: bytes) -> None:
    with pytest.raises(UnreadableBatch):
        decode(message)


@given(st.binary(max_size=200))
def test_garbage_is_unreadable_and_nothing_else(tail: bytes) -> None:
    with pytest.raises(UnreadableBatch):
        decode(GOOD[:HEADER_LENGTH] + tail)
