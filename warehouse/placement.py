"""records of each shard → which shard has a partition of usage.events. Pure but for reading and writing them.

All rows of a partition lie on one shard, so FINAL, voids and the audit's groups are right on each shard alone. Where a
partition lies is recorded on every shard, not computed: another number of shards would move it otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, server_code, unavailable

_UNKNOWN_TABLE = 60
_TABLE = "partition_shards"
_COLUMNS = ("kafka_partition", "shard", "recorded_on", "moves")


class Misplaced(WarehouseUnavailable):
    """The servers of the settings are not those that usage was spread over: a count would miss some of it."""


@dataclass(frozen=True, slots=True)
class Placed:
    """shard: from 0. moves: how often the partition was moved."""

    shard: int
    moves: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """What one shard says. own: its place among the shards, from 0; None: it has no record."""

    own: int | None
    placed: Mapping[int, Placed]
    has_usage: bool = False


def read_record(client: Client, *, with_usage: bool = False) -> Record:
    """Of the client's database; an empty one before the first migration. Raises WarehouseUnavailable.

    with_usage: look whether there is any, too.
    """
    try:
        rows = client.query(f"SELECT {', '.join(_COLUMNS)} FROM {_TABLE} FINAL").result_rows
        has_usage = with_usage and bool(client.query("SELECT 1 FROM ingest_batches LIMIT 1").result_rows)
    except ClickHouseError as error:
        if server_code(error) == _UNKNOWN_TABLE:
            return Record(None, {})
        raise unavailable(error) from error
    owns = {int(own) - 1 for _, _, own, _ in rows}
    if len(owns) > 1:
        raise Misplaced(f"{_TABLE} has rows of several servers: {sorted(own + 1 for own in owns)}")
    return Record(
        next(iter(owns), None),
        {int(partition): Placed(int(shard) - 1, int(moves)) for partition, shard, _, moves in rows},
        has_usage,
    )


def write_record(client: Client, own: int, placed: Mapping[int, Placed]) -> None:
    """Have the client's shard say this. Raises ClickHouseError."""
    rows = [[partition, at.shard + 1, own + 1, at.moves] for partition, at in sorted(placed.items())]
    client.insert(_TABLE, rows, column_names=_COLUMNS)


def check_record(record: Record, index: int, shards: int) -> None:
    """That a server is the one that its place in the settings says. Raises Misplaced.

    One server alone needs no record, and may have none that speaks of others.
    """
    if record.own is not None and record.own != index:
        raise Misplaced(
            f"the server at place {index + 1} of USAGE_CLICKHOUSE_SHARDS is recorded as shard {record.own + 1}:"
            " keep the order of the first start"
        )
    if beyond := sorted({at.shard + 1 for at in record.placed.values() if at.shard >= shards}):
        raise Misplaced(
            f"partitions lie on shard {', '.join(map(str, beyond))} too: USAGE_CLICKHOUSE_SHARDS is to name all shards"
        )


def placement(records: Sequence[Record], partitions: int) -> dict[int, Placed]:
    """Where each partition is from now on, by what every shard says. Pure. Raises Misplaced.

    What is recorded holds. At first, partitions are dealt out in turn; where the first server has usage already, all of
    them stay there.
    """
    known: dict[int, Placed] = {}
    for index, record in enumerate(records):
        check_record(record, index, len(records))
        if index and record.own is None and record.has_usage:
            raise Misplaced(f"shard {index + 1} has usage and no record of its partitions: it was a server of its own")
        for partition, at in record.placed.items():
            before = known.setdefault(partition, at)
            if at.moves == before.moves and at.shard != before.shard:
                raise Misplaced(f"partition {partition} is recorded on shard {before.shard + 1} and {at.shard + 1}")
            known[partition] = max(before, at, key=_moves)
    if beyond := [partition for partition in known if partition >= partitions]:
        raise Misplaced(f"partition {max(beyond)} is recorded; USAGE_EVENT_PARTITIONS is {partitions}")
    only_first = not known and records[0].has_usage
    return {
        partition: known.get(partition, Placed(0 if only_first else partition % len(records)))
        for partition in range(partitions)
    }


def _moves(placed: Placed) -> int:
    return placed.moves
