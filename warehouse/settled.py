"""coverage, the sink's commits → up to where ClickHouse has everything of usage.events, and all of it visible."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka.admin import AdminClient

from runtime.kafka.admin import describe_topic
from runtime.kafka.groups import committed_offsets
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, sink_group, topic_name
from schemas.watermark import Watermark
from warehouse.client import ClickHouseError, unavailable
from warehouse.coverage import coverage
from warehouse.epochs import Epochs, lookup_epochs
from warehouse.shards import Store, shards_of


def settled(
    store: Store, settings: Settings, admin: AdminClient | None = None, *, only: Sequence[int] | None = None
) -> tuple[Epochs, Watermark]:
    """The epochs of usage.events as it is now, and the watermark below which every row of it can be seen.

    only: these partitions.

    Rows of one insert become visible in no fixed order, so a partition counts up to the lower of what ClickHouse covers
    and what the sink has committed. Raises UnknownTopic (no sink has read the topic), KafkaException,
    WarehouseUnavailable.
    """
    topic = describe_topic(settings, USAGE_EVENTS, admin)
    try:
        wanted = range(topic.partitions) if only is None else only
        # Every shard knows the epochs of what it has.
        epochs = lookup_epochs(shards_of(store).of(wanted[0]), topic.topic_id)
        committed = stored_commits(store, settings, wanted)
        covered = coverage(store, epochs.base, topic.partitions, epochs.own, only=only)
    except ClickHouseError as error:
        raise unavailable(error) from error
    offsets = {p: min(at, committed.get(p, 0)) for p, at in covered.offsets.items()}
    return epochs, Watermark(epochs.base, offsets, epochs.own)


def stored_commits(store: Store, settings: Settings, partitions: Sequence[int]) -> dict[int, int]:
    """Partition → next offset that the sink of its shard has committed, 0 where it has none.

    Raises KafkaException, WarehouseUnavailable.
    """
    shards, topic = shards_of(store), topic_name(settings, USAGE_EVENTS)
    found: dict[int, int] = {}
    for shard in range(shards.count):
        mine = [partition for partition in partitions if shards.shard_of(partition) == shard]
        if mine:
            found |= committed_offsets(settings, sink_group(settings, shard), topic, mine)
    return found
