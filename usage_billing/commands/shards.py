"""shards list|move|drop-left: which ClickHouse server has a partition, and how one gets to another."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from confluent_kafka import KafkaException, TopicPartition
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.table import Table

from runtime.kafka.admin import check_partitions
from runtime.kafka.clients import create_reader
from runtime.kafka.log_ends import log_bounds
from schemas.settings import Settings
from usage_billing.console import DONE, fail, out, settings_for, wrong_usage
from warehouse.client import WarehouseUnavailable
from warehouse.epochs import UnknownTopic, lookup_epochs
from warehouse.moving import NotThere, check_fillable, drop_left
from warehouse.moving import move as move_partition
from warehouse.shards import Shards, open_shards

app = App(name="shards", help="Which server of USAGE_CLICKHOUSE_SHARDS has a partition of usage.events.")

Partition = Annotated[int, Parameter(help="Of usage.events.", validator=Number(gte=0))]
_KAFKA_SECONDS = 10.0


@app.command(name="list")
def list_() -> int:
    """Print each server with its partitions."""
    settings = settings_for("shards")
    table = Table("shard", "server", "partitions")
    try:
        with open_shards(settings) as shards:
            for index, dsn in enumerate(settings.clickhouse_dsns):
                mine = [str(partition) for partition, at in sorted(shards.placed.items()) if at == index]
                parts = urlsplit(dsn)
                table.add_row(str(index + 1), f"{parts.hostname}:{parts.port}{parts.path}", ", ".join(mine))
    except WarehouseUnavailable as error:
        fail(str(error))
    out.print(table)
    return DONE


@app.command
def move(partition: Partition, shard: Annotated[int, Parameter(help="From 1.", validator=Number(gte=1))], /) -> int:
    """Give a partition to another server, which the sink then fills from the log. End all services before.

    Invoices wait until the server has all of it. Refused while it lacks what the log does not have any more.
    """
    settings = settings_for("shards")
    partitions = _partitions(settings, partition)
    if shard > len(settings.clickhouse_dsns):
        wrong_usage(f"USAGE_CLICKHOUSE_SHARDS names {len(settings.clickhouse_dsns)} servers")
    try:
        with open_shards(settings) as shards:
            epoch, low = _beginning(settings, shards, partition)
            check_fillable(shards, partition, shard - 1, epoch, low)
            move_partition(shards, partition, shard - 1, partitions)
    except (WarehouseUnavailable, NotThere, UnknownTopic, KafkaException) as error:
        fail(str(error))
    out.print(f"  partition {partition} is on shard {shard}: start the services, then `usage-billing audit`")
    return DONE


@app.command(name="drop-left")
def drop_left_(partition: Partition, /) -> int:
    """Delete a partition's rows on the servers that it was moved away from, once the audit balances."""
    settings = settings_for("shards")
    _partitions(settings, partition)
    try:
        with open_shards(settings) as shards:
            done = drop_left(shards, partition)
    except WarehouseUnavailable as error:
        fail(str(error))
    out.print(f"  deleted on shard {', '.join(str(index + 1) for index in done)}" if done else "  nothing to delete")
    return DONE


def _partitions(settings: Settings, partition: int) -> int:
    count = check_partitions(settings).partitions
    if partition >= count:
        wrong_usage(f"usage.events has partitions 0 to {count - 1}")
    return count


def _beginning(settings: Settings, shards: Shards, partition: int) -> tuple[int, int]:
    """Epoch and offset of the first message that the log has."""
    topic = check_partitions(settings)
    consumer = create_reader(settings.kafka_properties, f"{topic.name}-shards")
    try:
        low, _ = log_bounds(consumer, TopicPartition(topic.name, partition), _KAFKA_SECONDS)
    finally:
        consumer.close()
    return lookup_epochs(shards.of(partition), topic.topic_id).at(partition, low), low
