"""The topic takes what the gateway writes: said when it is made, checked at start, never altered."""

import pytest
from confluent_kafka.admin import (
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import TopicMismatch, admin_client, answer_of, create_topics
from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX, RECORD_BATCH_BYTES_MAX, USAGE_EVENTS, topic_name


def bytes_max(settings: Settings) -> str | None:
    admin = admin_client(settings)
    resource = ConfigResource(ResourceType.TOPIC, topic_name(settings, USAGE_EVENTS))
    return answer_of(admin.describe_configs([resource])[resource], 30)["max.message.bytes"].value


def test_a_new_topic_says_what_it_takes_whatever_the_cluster_says(kafka: KafkaBroker, topic_prefix: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix)
    create_topics(settings)
    assert bytes_max(settings) == str(RECORD_BATCH_BYTES_MAX)
    assert create_topics(settings) == []


def test_a_topic_that_takes_less_than_the_gateway_writes_is_refused(kafka: KafkaBroker, topic_prefix: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix)
    admin, limit = admin_client(settings), str(MESSAGE_BYTES_MAX)
    name = topic_name(settings, USAGE_EVENTS)
    topic = NewTopic(name, settings.event_partitions, 1, config={"max.message.bytes": limit})
    answer_of(admin.create_topics([topic])[name], 30)
    with pytest.raises(TopicMismatch, match=r"max\.message\.bytes"):
        create_topics(settings)
    assert bytes_max(settings) == limit
