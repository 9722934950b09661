"""Cutting by bytes: whatever is within the limits of a batch becomes messages that the log takes, and nothing is lost."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import count, pairwise

from hypothesis import given
from hypothesis import strategies as st

from ingest_gateway.coalesce import Claim
from ingest_gateway.cut import EVENT_BYTES_MAX, HEAD_BYTES_MAX, event_bytes, messages
from schemas.event import (
    EVENTS_PER_BATCH_MAX,
    PROPERTIES_MAX,
    PROPERTY_KEY_LENGTH_MAX,
    PROPERTY_VALUE_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    client_identity,
    request_identity,
)
from schemas.topics import MESSAGE_BYTES_MAX, RECORD_BATCH_BYTES_MAX
from schemas.usage_batch import UsageBatch, decode, encode, unscaled_bytes

WIDEST = "\U0001f9ee"  # 4 bytes of UTF-8
SMALL = HEAD_BYTES_MAX + EVENT_BYTES_MAX  # the least that a message may be allowed
LABELS = st.builds(lambda letter, length: letter * length, st.sampled_from(["a", "ü", WIDEST]), st.integers(1, 256))
PROPERTIES = st.builds(
    lambda letter, length, size: {f"{n:02}{letter * (length // 5)}": letter * length for n in range(size)},
    st.sampled_from(["a", "ü", WIDEST]),
    st.integers(0, 256),
    st.integers(0, PROPERTIES_MAX),
)
VALUES = st.one_of(st.none(), st.integers(-(10**27) + 1, 10**27 - 1).map(unscaled_bytes))
IDENTITIES = st.one_of(st.just(""), LABELS.map(client_identity))


@st.composite
def batches(draw: st.DrawFn, events_max: int = 60) -> UsageBatch:
    n = draw(st.integers(1, events_max))
    seeds = [(draw(LABELS), draw(VALUES), draw(IDENTITIES), draw(PROPERTIES)) for _ in range(min(n, 5))]
    rows = [draw(st.sampled_from(seeds)) for _ in range(n)]
    return UsageBatch(
        b"0" * 16,
        draw(st.integers(0, 2**53)),
        [draw(LABELS)] * n,
        [label for label, *_ in rows],
        ["event"] * n,
        [draw(st.integers(0, 2**53))] * n,
        [value for _, value, _, _ in rows],
        [identity for _, _, identity, _ in rows] if draw(st.booleans()) else [],
        [properties for *_, properties in rows] if draw(st.booleans()) else [],
    )


@st.composite
def claimed(draw: st.DrawFn, events: int) -> list[Claim[int]]:
    ends = sorted({*draw(st.lists(st.integers(1, events), max_size=8)), events})
    return [Claim(owner, end - start) for owner, (start, end) in enumerate(pairwise([0, *ends]))]


def rows(parts: Sequence[UsageBatch]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for part in parts:
        n = len(part)
        columns = [getattr(part, each.name) for each in fields(part) if each.name not in ("batch_id", "received_at")]
        found += zip(*(column or [None] * n for column in columns if isinstance(column, (list, tuple))), strict=True)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return found


@given(st.data())
def test_every_batch_becomes_messages_that_fit(data: st.DataObject) -> None:
    batch = data.draw(batches())
    claims = data.draw(claimed(len(batch)))
    numbers = count()
    made = list(messages(batch, claims, lambda: next(numbers).to_bytes(16, "big"), SMALL))
    assert all(len(message) <= SMALL for message, _ in made)
    read = [decode(message) for message, _ in made]
    assert rows(read) == rows([batch])
    assert {part.received_at for part in read} == {batch.received_at}
    assert len({part.batch_id for part in read}) == len(read)
    # Each owner has its events, in order, and is cut only where one message could not hold them.
    assert [len(part) for part in read] == [sum(claim.events for claim in mine) for _, mine in made]
    owners = [claim for _, mine in made for claim in mine]
    assert list(dict.fromkeys(each.owner for each in owners)) == [claim.owner for claim in claims]
    sizes, at = event_bytes(batch), 0
    for claim in claims:
        mine = [each.events for each in owners if each.owner == claim.owner]
        assert sum(mine) == claim.events
        assert len(mine) == 1 or sum(sizes[at : at + claim.events]) > SMALL - HEAD_BYTES_MAX
        at += claim.events


@given(batches())
def test_sizes_are_bounds_that_are_hardly_more(batch: UsageBatch) -> None:
    counted = sum(event_bytes(batch)) + HEAD_BYTES_MAX
    texts = sum(4 + 2 * len(properties) for properties in batch.properties or [{}] * len(batch))
    assert len(encode(batch)) <= counted <= len(encode(batch)) + HEAD_BYTES_MAX + len(batch) * 26 + 3 * texts


def test_the_largest_event_fits_with_room_to_spare() -> None:
    widest = WIDEST * TEXT_LENGTH_MAX
    properties = {
        f"{n:02}" + WIDEST * (PROPERTY_KEY_LENGTH_MAX - 2): WIDEST * PROPERTY_VALUE_LENGTH_MAX
        for n in range(PROPERTIES_MAX)
    }
    identities = [client_identity(widest), request_identity("k" * TEXT_LENGTH_MAX, EVENTS_PER_BATCH_MAX - 1)]
    for identity in identities:
        largest = unscaled_bytes(-(10**27) + 1)
        one = UsageBatch(b"1" * 16, 2**62, [widest], [widest], [widest], [2**62], [largest], [identity], [properties])
        assert event_bytes(one)[0] <= EVENT_BYTES_MAX
        assert len(encode(one)) <= HEAD_BYTES_MAX + EVENT_BYTES_MAX
    assert HEAD_BYTES_MAX + EVENT_BYTES_MAX < MESSAGE_BYTES_MAX < RECORD_BATCH_BYTES_MAX


def test_a_batch_that_fits_is_not_touched() -> None:
    batch = UsageBatch(b"1" * 16, 1, ["o"], ["c"], ["e"], [0], [None])
    claims = [Claim("owner", 1)]
    assert list(messages(batch, claims, lambda: b"2" * 16)) == [(encode(batch), claims)]
