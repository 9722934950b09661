"""The local broker, as clients see it that outlive it."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import Producer

from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from tests.waiting import until

CLIENTS = 40
RESTARTS = 3


def test_every_client_works_again_after_it_ended_in_order(kafka_factory: Callable[[], KafkaBroker]) -> None:
    """librdkafka forgets all brokers for good when it is told that there are none: of a hundred clients, one or so.

    They ask what there is all the time, so that many ask in the moment when the broker ends.
    """
    broker = kafka_factory()
    broker.start()
    settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers, event_partitions=2)
    create_topics(settings)
    topic = topic_name(settings, USAGE_EVENTS)
    asks = {"topic.metadata.refresh.interval.ms": 50, "topic.metadata.refresh.fast.interval.ms": 50}
    clients = [Producer({**settings.kafka_properties, **asks, "message.timeout.ms": 60_000}) for _ in range(CLIENTS)]

    def all_delivered() -> bool:
        for client in clients:
            client.poll(0)
        return not any(map(len, clients))

    for _ in range(RESTARTS):
        for client in clients:
            client.produce(topic, b"", partition=0)
        until(all_delivered, 30)
        broker.stop()
        broker.start()
    for client in clients:
        client.produce(topic, b"", partition=0)
    until(all_delivered, 30)
