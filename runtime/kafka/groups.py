"""consumer groups → their committed offsets and members."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient  # pyright: ignore[reportPrivateImportUsage]

from runtime.kafka.clients import create_reader
from runtime.kafka.log_ends import retried
from schemas.settings import Settings

_COMMITTED_SECONDS = 10.0
_MEMBERS_SECONDS = 5.0


def committed_offsets(settings: Settings, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Partition → next offset that a group has committed, 0 without a commit. Raises KafkaException.

    A consumer that never joins makes the request. The admin client's requests to a group's coordinator may abort the
    process, or get no answer for minutes, when the broker goes away meanwhile (librdkafka 2.16; issues 3663 and 4605).
    """
    wanted = [TopicPartition(topic, partition) for partition in partitions]
    consumer = create_reader(settings.kafka_properties, group)

    def request(seconds: float) -> dict[int, int]:
        found = consumer.committed(wanted, timeout=seconds)
        for partition in found:
            if partition.error is not None:
                raise KafkaException(partition.error)
        return {partition.partition: max(0, partition.offset) for partition in found}

    try:
        # Retried: a broker that has just started loads its groups before it answers for them.
        return retried(request, _COMMITTED_SECONDS)
    finally:
        consumer.close()


def group_members(admin: AdminClient, group: str) -> int:
    """How many members a consumer group has; 0 also for a group that does not exist. Raises KafkaException.

    By the synchronous call: describe_consumer_groups may abort the process, as above.
    """
    return sum(len(found.members) for found in admin.list_groups(group, timeout=_MEMBERS_SECONDS))
