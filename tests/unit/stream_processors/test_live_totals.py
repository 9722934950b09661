"""usage.totals → a snapshot at one place of the log, whatever was written late or broke off."""

from __future__ import annotations

import msgspec
import pytest

from schemas.totals import (
    BEGUN_KEY,
    CLOSED_KEY,
    PROGRESS_KEY,
    Closed,
    Partial,
    Progress,
    UnreadableTotal,
    UsageTotal,
    encode,
    partial_key,
    total_key,
)
from stream_processors.live_totals import LiveSnapshot, snapshot_of

TOTAL = UsageTotal("default", "c", "calls", 0, 10, "1", 1, None, "topic", 2, 0, 0, 1)
KEY = total_key("default", "c", "calls", 0, 10)
OTHER = total_key("default", "d", "calls", 0, 10)


def total(count: int, last_offset: int, repairs: int = 0, customer: str = "c") -> bytes:
    changed = {"count": count, "last_offset": last_offset, "repairs": repairs, "customer_id": customer}
    return encode(msgspec.structs.replace(TOTAL, **changed))


def progress(next_offset: int, topic_id: str = "topic") -> bytes:
    return encode(Progress(topic_id, 2, next_offset, 0, 0))


def counts(*records: tuple[bytes, bytes | None]) -> tuple[int | None, dict[bytes, int]]:
    found = snapshot_of(2, [(BEGUN_KEY, b"1"), *records])
    return found.progress and found.progress.next_offset, {key: each.count for key, each in found.totals.items()}


def test_a_snapshot_ends_with_the_last_flush_that_is_whole() -> None:
    whole = [(KEY, total(1, 0)), (OTHER, total(1, 0, customer="d")), (PROGRESS_KEY, progress(1))]
    assert counts(*whole) == (1, {KEY: 1, OTHER: 1})
    assert counts(*whole, (KEY, total(2, 1))) == (1, {KEY: 1, OTHER: 1}), "the flush has no progress yet"
    assert counts(*whole, (KEY, total(2, 1)), (PROGRESS_KEY, progress(2))) == (2, {KEY: 2, OTHER: 1})


def test_what_a_frozen_worker_writes_late_changes_nothing() -> None:
    records = [
        (KEY, total(5, 4, repairs=1)),
        (PROGRESS_KEY, progress(5)),
        (KEY, total(2, 1)),
        (PROGRESS_KEY, progress(2)),
    ]
    assert counts(*records) == (5, {KEY: 5})


def test_a_topic_made_again_begins_anew() -> None:
    assert counts((PROGRESS_KEY, progress(5)), (PROGRESS_KEY, progress(1, "new"))) == (1, {})


def test_totals_of_closed_cycles_are_none_whatever_is_written_late() -> None:
    closed = (CLOSED_KEY, encode(Closed(2, 10)))
    whole = [(BEGUN_KEY, b"1"), (KEY, total(1, 0)), (PROGRESS_KEY, progress(1))]
    assert set(snapshot_of(2, [*whole, closed]).totals) == {KEY}, "the flush has no progress yet"
    for records in ([*whole, closed, (KEY, None)], [*whole, closed, (KEY, None), (KEY, total(1, 0))], [*whole, closed]):
        found = snapshot_of(2, [*records, (PROGRESS_KEY, progress(2))])
        assert (found.totals, found.closed_before) == ({}, 10)


def test_an_organization_is_partial_until_it_is_taken_back() -> None:
    key, record = partial_key("default"), encode(Partial("default", 2, 7))
    begun = [(BEGUN_KEY, b"1"), (key, record), (PROGRESS_KEY, progress(8))]
    assert snapshot_of(2, begun).partial == {"default": 7}
    assert snapshot_of(2, [*begun, (key, None), (PROGRESS_KEY, progress(9))]).partial == {}


def test_what_lacks_its_beginning_counts_for_nothing() -> None:
    """As of a topic that was made again while a worker ran; until another one deletes what it wrote, and begins anew."""
    partial = [(KEY, total(9, 8)), (PROGRESS_KEY, progress(9))]
    assert snapshot_of(2, partial) == LiveSnapshot(2)
    anew = [(PROGRESS_KEY, None), (KEY, None), (BEGUN_KEY, b"1"), (OTHER, total(1, 0, customer="d"))]
    found = snapshot_of(2, [*partial, *anew, (PROGRESS_KEY, progress(1))])
    assert found.progress is not None
    assert (found.progress.next_offset, set(found.totals)) == (1, {OTHER})


def test_nothing_written_is_no_progress() -> None:
    assert counts() == (None, {})
    assert counts((KEY, total(1, 0))) == (None, {})


def test_other_book_keeping_and_tombstones_are_passed_over() -> None:
    records = [(b"\0ids\0x", b"?"), (b"\0ids\0x", None), (KEY, total(1, 0)), (PROGRESS_KEY, progress(1))]
    assert counts(*records, (KEY, None), (PROGRESS_KEY, progress(2))) == (2, {})


def test_what_is_no_total_is_told() -> None:
    with pytest.raises(UnreadableTotal):
        counts((KEY, b"{}"))
