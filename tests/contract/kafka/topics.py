"""Topics of the tests of runtime/kafka, on the session's broker."""

from __future__ import annotations

from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic  # pyright: ignore[reportPrivateImportUsage]

from runtime.kafka.admin import admin_client, answer_of
from schemas.settings import Settings


def create_topic(settings: Settings, name: str, partitions: int = 1, **config: str) -> None:
    wanted = NewTopic(name, partitions, 1, config={key.replace("_", "."): value for key, value in config.items()})
    admin = admin_client(settings)
    answer_of(admin.create_topics([wanted], operation_timeout=30)[name], 30)


def delete_records(settings: Settings, topic: str, partition: int, before: int) -> None:
    """Delete the records below `before`, as retention does."""
    place = TopicPartition(topic, partition, before)
    admin = admin_client(settings)
    answer_of(admin.delete_records([place])[place], 30)
