"""coverage, the sink's commits → up to where ClickHouse has everything of usage.events, and all of it visible."""

from __future__ import annotations

from confluent_kafka.admin import AdminClient

from runtime.kafka.admin import describe_topic
from runtime.kafka.groups import committed_offsets
from schemas.settings import Settings
from schemas.topics import SINK_GROUP, USAGE_EVENTS, topic_name
from schemas.watermark import Watermark
from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.coverage import coverage
from warehouse.epochs import Epochs, lookup_epochs


def settled(client: Client, settings: Settings, admin: AdminClient | None = None) -> tuple[Epochs, Watermark]:
    """The epochs of usage.events as it is now, and the watermark below which every row of it can be seen.

    Rows of one insert become visible in no fixed order, so a partition counts up to the lower of what ClickHouse covers
    and what the sink has committed. Raises UnknownTopic (no sink has read the topic), KafkaException,
    WarehouseUnavailable.
    """
    topic = describe_topic(settings, USAGE_EVENTS, admin)
    try:
        epochs = lookup_epochs(client, topic.topic_id)
        group = topic_name(settings, SINK_GROUP)
        committed = committed_offsets(settings, group, topic.name, range(topic.partitions))
        covered = coverage(client, epochs.base, topic.partitions, epochs.own)
    except ClickHouseError as error:
        raise unavailable(error) from error
    offsets = {p: min(at, committed.get(p, 0)) for p, at in covered.offsets.items()}
    return epochs, Watermark(epochs.base, offsets, epochs.own)
