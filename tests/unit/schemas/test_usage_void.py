"""UsageVoid: what is written is read, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import usage_batch
from schemas.usage_batch import HEADER_LENGTH, UnreadableBatch
from schemas.usage_void import UsageVoids, decode, encode, is_void
from stream_processors.avro_splice import WRITERS, read_head

VOIDS = UsageVoids(b"v" * 16, 5, ["default"] * 2, ["a", "ü"], ["calls"] * 2, ["c:1", "c:é"], ["a test", ""])


@given(
    st.binary(min_size=16, max_size=16), st.integers(0, 2**53), st.lists(st.text(min_size=1), min_size=1, max_size=9)
)
def test_what_is_written_is_read(batch_id: bytes, received_at: int, texts: list[str]) -> None:
    voids = UsageVoids(batch_id, received_at, texts, texts[::-1], texts, texts, texts)
    message = encode(voids)
    assert is_void(message)
    assert decode(message) == voids


def test_the_head_is_where_a_batch_has_it() -> None:
    """So the sink reads it without knowing which of the two it is."""
    head = read_head(1, 2, 3, encode(VOIDS), None)
    assert (head.received_at, head.events) == (5, 2)
    assert head.schema_id in WRITERS


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="empty"),
        pytest.param(encode(VOIDS)[:-1], id="cut short"),
        pytest.param(encode(VOIDS) + b"\0", id="a byte more"),
        pytest.param(encode(VOIDS)[:HEADER_LENGTH], id="only a header"),
        pytest.param(b"\0\0\0\0\1" + encode(VOIDS)[HEADER_LENGTH:], id="schema of a batch"),
    ],
)
def test_nothing_else_is_read(message: bytes) -> None:
    with pytest.raises(UnreadableBatch):
        decode(message)


def test_columns_have_one_length() -> None:
    with pytest.raises(UnreadableBatch, match="0 tombstones"):
        decode(encode(UsageVoids(b"v" * 16, 5, [], [], [], [], [])))
    with pytest.raises(UnreadableBatch, match="1 of reason"):
        decode(encode(UsageVoids(b"v" * 16, 5, ["o"] * 2, ["a"] * 2, ["n"] * 2, ["c:1"] * 2, [""])))


def test_a_batch_is_no_tombstone() -> None:
    with pytest.raises(UnreadableBatch):
        usage_batch.decode(encode(VOIDS))
