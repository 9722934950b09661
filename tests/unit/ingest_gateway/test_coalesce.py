"""Splitting and coalescing: every event in one message, in order, with its own columns, and a claim for each request."""

from hypothesis import given
from hypothesis import strategies as st

from ingest_gateway.coalesce import Coalescer, Columns, identities, split
from ingest_gateway.decode import Events
from schemas.usage_batch import EVENTS_PER_MESSAGE_MAX

IDS = st.one_of(st.none(), st.sampled_from(["a", "b"]))
PROPERTIES = st.one_of(st.none(), st.just({}), st.just({"region": "eu"}))


@st.composite
def posted(draw: st.DrawFn, events_max: int = 30) -> Events:
    n = draw(st.integers(1, events_max))
    rows = [(draw(st.sampled_from("uvwxyz")), draw(IDS), draw(PROPERTIES)) for _ in range(n)]
    return Events(
        [customer for customer, _, _ in rows],
        [f"n{i}" for i in range(n)],
        list(range(n)),
        [bytes([i]) for i in range(n)],
        [event_id for _, event_id, _ in rows],
        [properties for _, _, properties in rows],
    )


def partition(customer_id: str) -> int:
    return ord(customer_id) % 3


def rows_of(columns: Columns) -> list[tuple[object, ...]]:
    n = len(columns)
    return list(
        zip(
            columns.organization_id,
            columns.customer_id,
            columns.event_name,
            columns.timestamp,
            columns.value,
            columns.identity or [""] * n,
            columns.properties or [{}] * n,
            strict=True,
        )
    )


@given(posted(), st.sampled_from([None, "key"]))
def test_split_keeps_every_event_whole_and_in_order(events: Events, key: str | None) -> None:
    named = identities(events, key) or [""] * len(events)
    expected: dict[int, list[tuple[object, ...]]] = {}
    for i in range(len(events)):
        row = (
            "org",
            events.customer_id[i],
            events.event_name[i],
            events.timestamp[i],
            events.value[i],
            named[i],
            events.properties[i] or {},
        )
        expected.setdefault(partition(events.customer_id[i]), []).append(row)
    assert {number: rows_of(part) for number, part in split(events, "org", key, partition).items()} == expected


@given(st.lists(posted(), min_size=1, max_size=6))
def test_claims_find_every_request_its_events(requests: list[Events]) -> None:
    coalescer: Coalescer[int] = Coalescer()
    parts = [split(events, f"org{i}", None, partition) for i, events in enumerate(requests)]
    for owner, by_partition in enumerate(parts):
        for number, columns in by_partition.items():
            coalescer.add(owner, number, columns)
    assert coalescer.events == sum(map(len, requests))
    found: dict[tuple[int, int], list[tuple[object, ...]]] = {}
    for number, batch, claims in coalescer.drain(lambda: b"x" * 16, 1):
        assert len(batch) == sum(claim.events for claim in claims)
        rows, start = rows_of(Columns(*(list(getattr(batch, name)) for name in Columns.__slots__))), 0
        for claim in claims:
            found[claim.owner, number] = rows[start : start + claim.events]
            start += claim.events
    assert found == {(owner, n): rows_of(columns) for owner, part in enumerate(parts) for n, columns in part.items()}
    assert coalescer.events == 0
    assert list(coalescer.drain(lambda: b"x" * 16, 1)) == []


def test_no_message_is_larger_than_the_log_allows() -> None:
    coalescer: Coalescer[int] = Coalescer()
    for owner in range(7):
        coalescer.add(owner, 0, Columns(["o"] * 400, ["c"] * 400, ["e"] * 400, [0] * 400, [None] * 400))
    messages = list(coalescer.drain(lambda: b"x" * 16, 1))
    assert sum(len(batch) for _, batch, _ in messages) == 2800
    assert all(len(batch) <= EVENTS_PER_MESSAGE_MAX for _, batch, _ in messages)
    assert [claim.owner for _, _, claims in messages for claim in claims] == list(range(7))


def test_identities() -> None:
    events = Events(["c"] * 3, ["e"] * 3, [0] * 3, [None] * 3, ["x", None, "y"], [None] * 3)
    assert identities(events, None) == ["c:x", "", "c:y"]
    assert identities(events, "k:1") == ["c:x", "k:k:1:1", "c:y"]
    assert identities(Events(["c"], ["e"], [0], [None], [None], [None]), None) == []
