"""A partition → another shard: recorded on every shard, once the new one can be filled to what the old one has.

The sink fills it from the log. What the log does not have any more is copied before, by the administrator: servers
don't read each other with the services' rights.
"""

from __future__ import annotations

from dataclasses import replace

from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.placement import Misplaced, placement, read_record, write_record
from warehouse.shards import Shards

TABLES = ("usage_events", "usage_voids", "usage_accepted", "accepted_batches", "ingest_batches")
"""What an insert fills, the one that says that it is stored last."""
_BEFORE_THE_LOG = """
    SELECT count(), ifNull(sum(events), 0) FROM ingest_batches FINAL
    WHERE kafka_partition = {partition:UInt16}
        AND (kafka_epoch < {epoch:UInt16} OR (kafka_epoch = {epoch:UInt16} AND kafka_offset < {low:Int64}))
"""


class NotThere(Exception):
    """The new shard lacks what the log can't give it: it is to be copied first."""


def check_fillable(shards: Shards, partition: int, to: int, epoch: int, low: int) -> None:
    """That the shard has what the partition's log begins after. epoch, low: of the log's first message.

    Raises NotThere, WarehouseUnavailable.
    """
    has, lacks = _before(shards.of(partition), partition, epoch, low), _before(shards.at(to), partition, epoch, low)
    if has != lacks:
        raise NotThere(
            f"the log of partition {partition} begins at offset {low} of epoch {epoch}; before that, shard"
            f" {shards.shard_of(partition) + 1} has {has[0]} messages with {has[1]} events, shard {to + 1} has"
            f" {lacks[0]} with {lacks[1]}: copy {', '.join(TABLES)} WHERE kafka_partition = {partition}"
        )


def _before(client: Client, partition: int, epoch: int, low: int) -> tuple[int, int]:
    try:
        ((messages, events),) = client.query(
            _BEFORE_THE_LOG, parameters={"partition": partition, "epoch": epoch, "low": low}
        ).result_rows
    except ClickHouseError as error:
        raise unavailable(error) from error
    return int(messages), int(events)


def move(shards: Shards, partition: int, to: int, partitions: int) -> None:
    """Record it on every shard; services see it when they start. to: from 0. Raises WarehouseUnavailable."""
    clients = [shards.at(index) for index in range(shards.count)]
    placed = placement([read_record(client) for client in clients], partitions)
    before = placed[partition]
    if before.shard == to:
        raise Misplaced(f"partition {partition} is on shard {to + 1} already")
    placed[partition] = replace(before, shard=to, moves=before.moves + 1)
    try:
        for index, client in enumerate(clients):
            write_record(client, index, placed)
    except ClickHouseError as error:
        raise unavailable(error) from error


def drop_left(shards: Shards, partition: int) -> list[int]:
    """Delete the partition's rows where it is no more; the shards concerned, from 0. Raises WarehouseUnavailable."""
    done: list[int] = []
    try:
        for index in range(shards.count):
            client = shards.at(index)
            if index == shards.shard_of(partition):
                continue
            for table in (*reversed(TABLES), "coverage_checkpoints"):
                client.command(f"DELETE FROM {table} WHERE kafka_partition = {partition:d}")
            done.append(index)
    except ClickHouseError as error:
        raise unavailable(error) from error
    return done
