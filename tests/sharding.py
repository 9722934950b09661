"""One server or several that share usage, real ones: a log put into each as sinks do, and the tables beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from deploy.local.clickhouse_http import ClickHouseLocal
from schemas.settings import Settings
from stream_processors.avro_splice import Message, by_schema, container, read_head
from stream_processors.inserts import DOORS, INSERT_SETTINGS
from tests.history import Log, encoded
from warehouse.migrate import migrate
from warehouse.shards import Shards, Store, open_shards, shards_of

BATCH_COLUMNS = ("kafka_epoch", "kafka_partition", "kafka_offset", "next_offset", "events")


def settings_of(engines: Sequence[ClickHouseLocal], database: str, partitions: int, **more: Any) -> Settings:
    """Of the servers as shards, or of the one there is."""
    dsns = [engine.dsn(database) for engine in engines]
    values: dict[str, Any] = {"clickhouse_dsn": dsns[0], "event_partitions": partitions}
    if len(dsns) > 1:
        values["clickhouse_shards"] = ",".join(dsns)
    return Settings(**{**values, **more})


def migrated(engines: Sequence[ClickHouseLocal], database: str, partitions: int) -> Shards:
    """Shards of a new database on each; close them after use."""
    settings = settings_of(engines, database, partitions)
    migrate(settings)
    return open_shards(settings)


def insert_log(store: Store, log: Log) -> None:
    """Later messages first: the order of inserts must not matter. Those repeated once more."""
    every = [(read_head(*place, encoded(message), None), message.repeated) for place, message in log.items()]
    for some in ([head for head, _ in reversed(every)], [head for head, repeated in every if repeated]):
        by_partition: dict[int, list[Message]] = defaultdict(list)
        for head in some:
            by_partition[head.partition].append(head)
        for partition, of_partition in by_partition.items():
            for schema_id, of_schema in by_schema(of_partition).items():
                body = b"".join(container(of_schema, b"0" * 16))
                client = shards_of(store).of(partition)
                client.raw_insert(DOORS[schema_id], insert_block=body, fmt="Avro", settings=INSERT_SETTINGS)


def insert_row(store: Store, table: str, **values: Any) -> None:
    """A row of a catalog or ledger table on every server, as the sink projects the catalog."""
    shards = shards_of(store)
    for index in range(shards.count):
        shards.at(index).insert(table, [list(values.values())], column_names=list(values))
