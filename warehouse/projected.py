"""catalog, ledger, alerts, dead letters ↔ ClickHouse's tables of them: what is in no table, and what stands still.

The sink says how far its tables are in projection_progress, and which records no table takes in projection_failures.
"""

from __future__ import annotations

import time

from confluent_kafka import TopicPartition

from runtime.kafka.clients import create_reader
from runtime.kafka.log_ends import log_bounds
from schemas.settings import Settings
from schemas.topics import BILLING_LEDGER, CATALOG, USAGE_ALERTS, USAGE_DEAD_LETTERS, topic_name
from warehouse.audit import Fault, Tally
from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.shards import Shards, Store, shards_of

PROJECTED = (CATALOG, BILLING_LEDGER, USAGE_ALERTS, USAGE_DEAD_LETTERS)
WAIT_SECONDS = 10.0
"""For what was written a moment ago to be in the tables."""
_KAFKA_SECONDS = 10.0
_POLL_SECONDS = 0.2
_FAILURES = """
    SELECT
        kafka_topic, organization_id, count(),
        groupArraySorted(5)((kafka_partition, kafka_offset, table_name, reason))
    FROM projection_failures FINAL
    WHERE {organization_id:String} IN ('', organization_id) OR organization_id = ''
    GROUP BY kafka_topic, organization_id ORDER BY kafka_topic, organization_id
"""

Places = dict[tuple[str, int], int]
"""(topic, partition) → next offset."""


def projection_faults(
    store: Store, settings: Settings, organization_id: str | None = None, *, wait_seconds: float = WAIT_SECONDS
) -> tuple[Fault, ...]:
    """What the tables of the other logs lack; of one organization (and of what is nobody's) or of all.

    Raises KafkaException, WarehouseUnavailable.
    """
    try:
        shards = shards_of(store)
        return (*_set_aside(shards.first, organization_id), *_behind(shards, settings, wait_seconds))
    except ClickHouseError as error:
        raise unavailable(error) from error


def _set_aside(client: Client, organization_id: str | None) -> list[Fault]:
    faults: list[Fault] = []
    rows = client.query(_FAILURES, parameters={"organization_id": organization_id or ""}).result_rows
    for topic, whose, records, first in rows:
        # What is of nobody known may be another tenant's.
        told = organization_id is None or whose == organization_id
        places = "; ".join(
            f"{topic}/{partition}/{offset}{f' for {table}' if table else ''}{f': {reason}' if told else ''}"
            for partition, offset, table, reason in first
        )
        faults.append(Fault("record in no table", whose, Tally(int(records)), (), places))
    return faults


def _behind(shards: Shards, settings: Settings, wait_seconds: float) -> list[Fault]:
    """Logs whose tables have not come, within some seconds, to where the logs ended at first."""
    ends = _ends(settings)
    deadline = time.monotonic() + wait_seconds
    while True:
        reached = _progress_of(shards, topic_name(settings, CATALOG))
        behind = {place: end - reached.get(place, 0) for place, end in ends.items() if reached.get(place, 0) < end}
        if not behind or time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    lacking: dict[str, int] = {}
    for (topic, _), records in behind.items():
        lacking[topic] = lacking.get(topic, 0) + records
    return [
        Fault("tables stand still", "", Tally(records), (), f"{records} records of {topic} are in no table yet")
        for topic, records in lacking.items()
    ]


def _ends(settings: Settings) -> Places:
    """Where the logs end that have any record left."""
    consumer = create_reader(settings.kafka_properties, topic_name(settings, "projected-ends"))
    found: Places = {}
    try:
        for topic in (topic_name(settings, each) for each in PROJECTED):
            known = consumer.list_topics(topic, timeout=_KAFKA_SECONDS).topics[topic]
            for partition in known.partitions:
                low, high = log_bounds(consumer, TopicPartition(topic, partition), _KAFKA_SECONDS)
                if low < high:
                    found[topic, partition] = high
    finally:
        consumer.close()
    return found


def _progress_of(shards: Shards, catalog: str) -> Places:
    """Of the catalog, whose tables every shard has since the audit joins usage with them, the lowest of all."""
    reached = _progress(shards.first)
    for shard in range(1, shards.count):
        of_shard = _progress(shards.at(shard))
        reached |= {
            place: min(after, of_shard.get(place, 0)) for place, after in reached.items() if place[0] == catalog
        }
    return reached


def _progress(client: Client) -> Places:
    query = "SELECT kafka_topic, kafka_partition, max(next_offset) FROM projection_progress GROUP BY ALL"
    return {(topic, int(partition)): int(after) for topic, partition, after in client.query(query).result_rows}
