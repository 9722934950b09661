"""Records are in the log when write() returns, or the writer learns that they may not be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaException

from deploy.local.kafka import KafkaBroker
from runtime.kafka.acked_producer import AckedProducer, NotAcknowledged, Record
from runtime.kafka.log_ends import end_offsets
from schemas.settings import Settings
from tests.contract.kafka.topics import create_topic
from tests.waiting import until


def records(count: int, partition: int = 0) -> list[Record]:
    return [Record(partition, None, f"{number}".encode()) for number in range(count)]


def ends(settings: Settings, topic: str, partitions: int = 1) -> dict[int, int]:
    return end_offsets(settings.kafka_properties, f"{topic}-ends", topic, range(partitions), 10.0)


def test_more_records_than_the_client_queues_are_written_in_order(kafka: KafkaBroker, unique: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers)
    create_topic(settings, unique, 2)
    producer = AckedProducer(
        settings.kafka_properties,
        delivery_seconds=20,
        records_at_once=3,
        more={"queue.buffering.max.messages": 3},
    )
    assert producer.write(unique, [*records(7), *records(1, partition=1), *records(2)]) == [*range(7), 0, 7, 8]
    assert producer.write(unique, []) == []
    assert ends(settings, unique, 2) == {0: 9, 1: 1}


def test_a_record_too_large_fails_and_the_next_write_works(kafka: KafkaBroker, unique: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers)
    create_topic(settings, unique)
    producer = AckedProducer(settings.kafka_properties, delivery_seconds=20, more={"message.max.bytes": 1000})
    with pytest.raises(NotAcknowledged, match="1 of 1 records"):
        producer.write(unique, [Record(0, None, b"x" * 2000)])
    assert producer.write(unique, records(1)) == [0]


def test_an_outage_is_reported_in_time_and_the_next_write_works(
    kafka_factory: Callable[[], KafkaBroker], unique: str
) -> None:
    broker = kafka_factory()
    broker.start()
    settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    create_topic(settings, unique)
    producer = AckedProducer(settings.kafka_properties, delivery_seconds=2)
    until(lambda: is_written(producer, unique), 30)
    broker.kill()
    with pytest.raises(NotAcknowledged, match="1 of 1 records"):
        producer.write(unique, records(1))
    broker.start()
    until(lambda: is_written(producer, unique), 30)


def is_written(producer: AckedProducer, topic: str) -> bool:
    try:
        producer.write(topic, records(1))
    except NotAcknowledged:
        return False
    return True


def test_the_end_of_a_topic_that_does_not_exist_is_an_error(kafka: KafkaBroker, unique: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers)
    with pytest.raises(KafkaException):
        end_offsets(settings.kafka_properties, f"{unique}-ends", unique, [0], 1.0)
