"""A sink under test: real broker and engine, sink processes, what was sent, and what ClickHouse has of it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics, describe_topic
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import encode
from tests.flow.metering import Event, batch_of
from tests.services import Service, environment
from tests.waiting import until
from warehouse.client import Client, connect
from warehouse.coverage import coverage
from warehouse.epochs import lookup_epoch, lookup_epochs
from warehouse.migrate import migrate
from warehouse.settled import stored_commits
from warehouse.shards import Shards, open_shards

PARTITIONS = 3


class SinkWorld:
    """Topics and a database of its own. A context manager; sinks are killed at the end, the database dropped."""

    def __init__(
        self, kafka: KafkaBroker, clickhouse: ClickHouseLocal, name: str, directory: Path, **settings: Any
    ) -> None:
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": f"{name}.",
            "event_partitions": PARTITIONS,
            "clickhouse_dsn": clickhouse.dsn(name),
        }
        self.settings = Settings(**{**values, **settings})
        self.topic = topic_name(self.settings, USAGE_EVENTS)
        self.client: Client
        self.shards: Shards
        self._name = name
        self._directory = directory
        self._sinks: list[Service] = []
        create_topics(self.settings)
        self.producer = Producer({**self.settings.kafka_properties, "acks": "all", "enable.idempotence": True})

    def __enter__(self) -> SinkWorld:
        migrate(self.settings)
        self.client = connect(self.settings)
        self.shards = open_shards(self.settings)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sink in self._sinks:
            sink.kill()
        self.client.command(f"DROP DATABASE {self._name} SYNC")
        self.client.close()
        self.shards.close()

    def sink(self) -> Service:
        """A sink, not started."""
        sink = Service("sink", environment(self.settings), self._directory)
        self._sinks.append(sink)
        return sink

    # -- in ------------------------------------------------------------------------------------------------------------

    def send(self, *events: Event) -> None:
        """A message for each partition concerned, in order, acknowledged on return."""
        by_partition: dict[int, list[Event]] = {}
        for event in events:
            partition = partition_of(DEFAULT_ORGANIZATION, event.customer, self.settings.event_partitions)
            by_partition.setdefault(partition, []).append(event)
        for partition, some in by_partition.items():
            self.send_bytes(partition, encode(batch_of(some)))
        self.flush()

    def send_bytes(self, partition: int, message: bytes | None, key: bytes | None = None) -> None:
        """Enqueue one message as it is."""
        self.producer.produce(self.topic, message, key, partition=partition)

    def flush(self) -> None:
        assert self.producer.flush(30) == 0

    # -- out -----------------------------------------------------------------------------------------------------------

    def settle(self, seconds: float = 40.0) -> None:
        """Wait until all that is in the log is stored and committed."""
        until(lambda: self.committed() == self.ends() == self.stored(), seconds)

    def stored(self) -> dict[int, int]:
        """Partition → first offset that ClickHouse does not have."""
        epochs = lookup_epochs(self.client, describe_topic(self.settings, USAGE_EVENTS).topic_id)
        return dict(coverage(self.shards, epochs.base, self.settings.event_partitions, epochs.own).offsets)

    def epoch(self) -> int:
        return lookup_epoch(self.client, describe_topic(self.settings, USAGE_EVENTS).topic_id)

    def ends(self) -> dict[int, int]:
        """Partition → next offset of the log."""
        consumer = self._consumer("ends")
        try:
            return {
                p: consumer.get_watermark_offsets(TopicPartition(self.topic, p), timeout=10)[1]
                for p in range(self.settings.event_partitions)
            }
        finally:
            consumer.close()

    def committed(self) -> dict[int, int]:
        """Partition → next offset that the sink committed; 0 before its first commit."""
        return stored_commits(self.shards, self.settings, range(self.settings.event_partitions))

    def _consumer(self, group: str) -> Consumer:
        return Consumer({**self.settings.kafka_properties, "group.id": group, "enable.auto.commit": False})

    def rows(self, query: str, **parameters: Any) -> Sequence[tuple[Any, ...]]:
        """Of every server, one after the other."""
        servers = [self.shards.at(index) for index in range(self.shards.count)]
        return [tuple(row) for server in servers for row in server.query(query, parameters=parameters).result_rows]

    def count_and_sum(self, customer: str) -> tuple[int, Decimal]:
        """Of what counts once, as an analyst sees it."""
        query = "SELECT count(), ifNull(sum(value), 0) FROM usage WHERE customer_id = {customer:String}"
        server = self.shards.of_customer(DEFAULT_ORGANIZATION, customer)
        (found,) = server.query(query, parameters={"customer": customer}).result_rows
        return found[0], found[1]
