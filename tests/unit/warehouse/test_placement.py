"""Which server has a partition: recorded once, the same on every server, and never moved by adding one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from warehouse.placement import Misplaced, Placed, Record, check_record, placement

NEW = Record(None, {})


def at(*shards: int) -> dict[int, Placed]:
    """partition → its shard, in order."""
    return {partition: Placed(shard) for partition, shard in enumerate(shards)}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([NEW, NEW], at(0, 1, 0, 1)),
        ([Record(None, {}, has_usage=True), NEW], at(0, 0, 0, 0)),
        ([Record(0, at(0, 1, 0, 1)), Record(1, at(0, 1, 0, 1)), NEW], at(0, 1, 0, 1)),
        # A run that was killed between the servers is finished.
        ([Record(0, at(0, 1, 0, 1)), NEW], at(0, 1, 0, 1)),
        ([NEW, Record(1, at(1, 1, 0, 1))], at(1, 1, 0, 1)),
        # One of them is an older copy, of before a move.
        ([Record(0, at(0, 1, 0, 1)), Record(1, {**at(0, 1, 0, 1), 2: Placed(1, 1)})], {**at(0, 1, 0, 1), 2: Placed(1, 1)}),
    ],
    ids=["at first", "one has usage", "a third", "killed", "killed before the first", "moved"],
)  # fmt: skip
def test_what_is_recorded_holds(records: Sequence[Record], expected: dict[int, Placed]) -> None:
    assert placement(records, 4) == expected


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([Record(1, at(0, 1, 0, 1)), Record(0, at(0, 1, 0, 1))], "keep the order"),
        ([Record(0, at(0, 1, 2, 0)), Record(1, at(0, 1, 2, 0))], "name all shards"),
        ([NEW, Record(None, {}, has_usage=True)], "a server of its own"),
        ([Record(0, at(0, 1, 0, 1)), Record(1, at(1, 1, 0, 1))], "recorded on shard 1 and 2"),
        ([Record(0, at(0, 1, 0, 1, 0)), Record(1, at(0, 1, 0, 1, 0))], "USAGE_EVENT_PARTITIONS is 4"),
    ],
    ids=["other order", "one left out", "usage of its own", "contradiction", "fewer partitions"],
)
def test_servers_that_are_not_those_of_before_are_refused(records: Sequence[Record], reason: str) -> None:
    with pytest.raises(Misplaced, match=reason):
        placement(records, 4)


def test_one_server_alone_needs_no_record_and_has_none_of_others() -> None:
    check_record(NEW, 0, 1)
    with pytest.raises(Misplaced, match="name all shards"):
        check_record(Record(0, at(0, 1)), 0, 1)
