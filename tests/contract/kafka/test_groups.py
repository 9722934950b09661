"""A group's offsets and members, also through an outage of the broker: answered, or refused in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from deploy.local.kafka import KafkaBroker
from runtime.kafka import groups
from runtime.kafka.admin import admin_client, create_topics
from runtime.kafka.groups import committed_offsets, group_members
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from tests.waiting import until


def test_they_are_told_before_and_after_an_outage_and_refused_during_it(
    kafka_factory: Callable[[], KafkaBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = kafka_factory()
    broker.start()
    settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers, event_partitions=2)
    create_topics(settings)
    topic = topic_name(settings, USAGE_EVENTS)
    member = Consumer({**settings.kafka_properties, "group.id": "readers", "enable.auto.commit": False})
    member.commit(offsets=[TopicPartition(topic, 1, 7)], asynchronous=False)
    member.close()

    def told() -> dict[int, int]:
        return committed_offsets(settings, "readers", topic, range(2))

    member = Consumer({**settings.kafka_properties, "group.id": "readers"})
    member.subscribe([topic])
    admin = admin_client(settings)

    def joined() -> bool:
        member.poll(0.1)
        try:
            return group_members(admin, "readers") == 1
        except KafkaException:  # it has not found that the broker is back
            return False

    assert group_members(admin, "readers") == 0
    assert told() == {0: 0, 1: 7}
    until(joined)
    broker.kill()
    monkeypatch.setattr(groups, "_COMMITTED_SECONDS", 0.5)
    monkeypatch.setattr(groups, "_MEMBERS_SECONDS", 0.5)
    with pytest.raises(KafkaException):
        told()
    with pytest.raises(KafkaException):
        group_members(admin, "readers")
    monkeypatch.undo()
    broker.start()
    assert told() == {0: 0, 1: 7}
    until(joined)
    member.close()
