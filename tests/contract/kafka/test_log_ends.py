"""Bounds of a log, also where retention has deleted its beginning."""

from __future__ import annotations

from deploy.local.kafka import KafkaBroker
from runtime.kafka.acked_producer import AckedProducer, Record
from runtime.kafka.log_ends import LogEnds, end_offsets
from schemas.settings import Settings
from tests.contract.kafka.topics import create_topic, delete_records


def test_bounds_and_first_kept_record(kafka: KafkaBroker, unique: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers)
    create_topic(settings, unique, 2)
    producer = AckedProducer(settings.kafka_properties, delivery_seconds=20)
    producer.write(unique, [Record(0, None, b"x")] * 5)
    delete_records(settings, unique, 0, 3)

    ends = LogEnds(settings.kafka_properties, f"{unique}-ends", 10.0)
    try:
        assert ends.of(unique, 0) == (3, 5)
        assert ends.of(unique, 1) == (0, 0)
        assert [ends.first_kept(unique, 0, offset) for offset in (0, 3, 4, 5, 9)] == [3, 3, 4, 5, 9]
    finally:
        ends.close()
    assert end_offsets(settings.kafka_properties, f"{unique}-ends", unique, [0, 1], 10.0) == {0: 5, 1: 0}
