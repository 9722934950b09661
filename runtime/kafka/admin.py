"""Topic specs → Kafka: made explicitly, checked at every start, never altered behind an operator's back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import stamina
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX, USAGE_EVENTS, topic_name, topic_specs

log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS = 15.0
_RECORD_OVERHEAD_BYTES = 1024  # of a record and its batch around a message
_BROKERS_OWN = -1  # as many replicas as its default.replication.factor says
_SPREAD_SECONDS = 5.0
_COMMITTED_SECONDS = 10.0
_MEMBERS_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 0.2
A = TypeVar("A")


class TopicMismatch(Exception):
    """A topic is not as it was first made; going on would send customers to other partitions."""


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the cluster has it. topic_id: Kafka's, new whenever a topic is made again."""

    name: str
    partitions: int
    topic_id: str


def admin_client(settings: Settings) -> AdminClient:
    return AdminClient({**settings.kafka_properties, "socket.timeout.ms": 10_000})


def answer_of(future: Future[A], seconds: float) -> A:
    """What Kafka answered to an admin client. Raises KafkaException, also where it did not answer in time."""
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, "the broker did not answer in time")) from error


def _is_unknown(error: Exception) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def create_topics(settings: Settings) -> list[str]:
    """Make what is missing; the names made.

    Raises TopicMismatch when usage.events has another number of partitions, or takes no messages of the gateway's size.
    """
    specs = {spec.name: spec for spec in topic_specs(settings)}
    admin = admin_client(settings)
    existing = admin.list_topics(timeout=_TIMEOUT_SECONDS).topics
    replicas = settings.kafka_replication_factor or _BROKERS_OWN
    wanted = [
        NewTopic(spec.name, spec.partitions, replicas, config=spec.config)
        for spec in specs.values()
        if spec.name not in existing
    ]
    made: list[str] = []
    if wanted:
        for name, future in admin.create_topics(wanted, operation_timeout=_TIMEOUT_SECONDS).items():
            try:
                answer_of(future, _TIMEOUT_SECONDS)
                made.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another service was first
                    raise
    check_partitions(settings)
    if topic_name(settings, USAGE_EVENTS) not in made:
        check_message_size(settings, admin)
    return made


def check_message_size(settings: Settings, admin: AdminClient) -> None:
    """Raises TopicMismatch when usage.events refuses messages that the gateway may write."""
    name = topic_name(settings, USAGE_EVENTS)
    resource = ConfigResource(ResourceType.TOPIC, name)
    try:
        found = answer_of(admin.describe_configs([resource])[resource], _TIMEOUT_SECONDS)
    except KafkaException as error:  # to describe a topic's settings is a permission of its own
        log.warning("topic_settings_unknown", topic=name, error=str(error))
        return
    bytes_max = int(found["max.message.bytes"].value)
    if bytes_max < MESSAGE_BYTES_MAX + _RECORD_OVERHEAD_BYTES:
        raise TopicMismatch(
            f"{name} takes messages of {bytes_max} bytes, the gateway writes up to {MESSAGE_BYTES_MAX}: "
            f"raise its max.message.bytes"
        )


def describe_topic(settings: Settings, topic: str, admin: AdminClient | None = None) -> TopicState:
    """Raises KafkaException when it does not exist or the cluster does not answer. admin: one that is at hand."""
    name = topic_name(settings, topic)
    # Held until the answer is there: a collected client takes its futures with it.
    admin = admin or admin_client(settings)
    # A topic made a moment ago is not known to every broker yet.
    for attempt in stamina.retry_context(on=_is_unknown, attempts=None, timeout=_SPREAD_SECONDS, wait_max=0.5):
        with attempt:
            futures = admin.describe_topics(TopicCollection([name]), request_timeout=_TIMEOUT_SECONDS)
            description = answer_of(futures[name], _TIMEOUT_SECONDS)
            return TopicState(name, len(description.partitions), str(description.topic_id))
    raise AssertionError("stamina raises or returns")


def topic_ids(settings: Settings, admin: AdminClient) -> dict[str, str]:
    """Name → Kafka's id of each of our topics that exists. Raises KafkaException."""
    names = [spec.name for spec in topic_specs(settings)]
    found: dict[str, str] = {}
    for name, future in admin.describe_topics(TopicCollection(names), request_timeout=_TIMEOUT_SECONDS).items():
        try:
            found[name] = str(answer_of(future, _TIMEOUT_SECONDS).topic_id)
        except KafkaException as error:
            if not _is_unknown(error):
                raise
    return found


def check_partitions(settings: Settings) -> TopicState:
    """The state of usage.events. Raises TopicMismatch when its partitions are not the configured number."""
    state = describe_topic(settings, USAGE_EVENTS)
    if state.partitions != settings.event_partitions:
        raise TopicMismatch(
            f"{state.name} has {state.partitions} partitions, USAGE_EVENT_PARTITIONS is {settings.event_partitions}: "
            "a customer's events would no longer meet in one partition"
        )
    return state


def committed_offsets(settings: Settings, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Partition → next offset that a group has committed, 0 where it has none. Raises KafkaException.

    Asked by a consumer that never joins: the admin client's requests to a group's coordinator may abort the process, or
    get no answer for minutes, when the broker goes away meanwhile (librdkafka 2.16; its issues 3663 and 4605).
    """
    places = [TopicPartition(topic, partition) for partition in partitions]
    consumer = Consumer({**settings.kafka_properties, "group.id": group, "enable.auto.commit": False})

    def ask(seconds: float) -> dict[int, int]:
        found = consumer.committed(places, timeout=seconds)
        for place in found:
            if place.error is not None:
                raise KafkaException(place.error)
        return {place.partition: max(0, place.offset) for place in found}

    try:
        return _asked_again(ask, _COMMITTED_SECONDS)  # a broker that has just started hands its groups to itself
    finally:
        consumer.close()


def log_bounds(consumer: Consumer, place: TopicPartition, seconds: float) -> tuple[int, int]:
    """First and next offset of a partition's log. Raises KafkaException.

    A partition made a moment ago, or one whose leader has just gone, has none: it is asked again, for these seconds.
    """
    return _asked_again(lambda left: consumer.get_watermark_offsets(place, timeout=left), seconds)


def _asked_again(ask: Callable[[float], A], seconds: float) -> A:
    """The first answer within these seconds; ask gets those that are left. Raises KafkaException.

    By hand: a library would log each attempt of a thing that is usual for a moment.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            return ask(max(_ASK_AGAIN_SECONDS, left))
        except KafkaException:
            if left <= 0:
                raise
        time.sleep(_ASK_AGAIN_SECONDS)


def group_members(admin: AdminClient, group: str) -> int:
    """How many members a consumer group has; 0 also for one that does not exist. Raises KafkaException.

    By the synchronous call: describe_consumer_groups may abort the process as said above.
    """
    return sum(len(found.members) for found in admin.list_groups(group, timeout=_MEMBERS_SECONDS))
