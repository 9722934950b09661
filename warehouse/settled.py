"""coverage, the sink's commits → up to where ClickHouse has everything of usage.events, and all of it visible."""

from __future__ import annotations

from confluent_kafka import (
    ConsumerGroupTopicPartitions,  # pyright: ignore[reportPrivateImportUsage]
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from runtime.topics import admin_client, answer_of, describe_topic
from schemas.settings import Settings
from schemas.topics import SINK_GROUP, USAGE_EVENTS, topic_name
from schemas.watermark import Watermark
from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.coverage import coverage
from warehouse.epochs import lookup_epoch

_REQUEST_SECONDS = 10.0


def settled(client: Client, settings: Settings, admin: AdminClient | None = None) -> tuple[str, Watermark]:
    """Id of usage.events as it is now, and the watermark below which every row of it can be seen.

    Rows of one insert become visible in no fixed order, so a partition counts up to the lower of what ClickHouse covers
    and what the sink has committed. Raises UnknownTopic (no sink has read the topic), KafkaException,
    WarehouseUnavailable.
    """
    admin = admin or admin_client(settings)
    topic = describe_topic(settings, USAGE_EVENTS, admin)
    try:
        epoch = lookup_epoch(client, topic.topic_id)
        committed = _committed(settings, topic.partitions, admin)
        covered = coverage(client, epoch, topic.partitions)
    except ClickHouseError as error:
        raise unavailable(error) from error
    return topic.topic_id, Watermark(epoch, {p: min(at, committed.get(p, 0)) for p, at in covered.offsets.items()})


def _committed(settings: Settings, partitions: int, admin: AdminClient) -> dict[int, int]:
    group = topic_name(settings, SINK_GROUP)
    topic = topic_name(settings, USAGE_EVENTS)
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    request = ConsumerGroupTopicPartitions(group, places)
    future = admin.list_consumer_group_offsets([request], request_timeout=_REQUEST_SECONDS)[group]
    found = answer_of(future, _REQUEST_SECONDS).topic_partitions
    return {place.partition: max(0, place.offset) for place in found}
