"""The topic takes what the gateway writes: said when it is made, checked at start, never altered."""

import pytest
from confluent_kafka.admin import (
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from deploy.local.kafka import KafkaBroker
from runtime.topics import TopicMismatch, admin_client, answer_of, create_topics
from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX, RECORD_BATCH_BYTES_MAX, USAGE_EVENTS, topic_name


def test_a_topic_that_takes_less_than_the_gateway_writes_is_refused(kafka: KafkaBroker, topic_prefix: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix)
    create_topics(settings)

    def bytes_max(change: int | None = None) -> str | None:
        admin = admin_client(settings)
        resource = ConfigResource(ResourceType.TOPIC, topic_name(settings, USAGE_EVENTS))
        if change is not None:
            entry = ConfigEntry("max.message.bytes", str(change), incremental_operation=AlterConfigOpType.SET)
            altered = ConfigResource(ResourceType.TOPIC, resource.name, incremental_configs=[entry])
            (future,) = admin.incremental_alter_configs([altered]).values()
            answer_of(future, 30)
        return answer_of(admin.describe_configs([resource])[resource], 30)["max.message.bytes"].value

    assert bytes_max() == str(RECORD_BATCH_BYTES_MAX)
    assert create_topics(settings) == []
    bytes_max(MESSAGE_BYTES_MAX)
    with pytest.raises(TopicMismatch, match=r"max\.message\.bytes"):
        create_topics(settings)
    assert bytes_max() == str(MESSAGE_BYTES_MAX)
