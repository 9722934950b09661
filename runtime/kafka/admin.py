"""topic specs → Kafka: created with explicit settings, checked at every start, never altered."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import stamina
import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from runtime.kafka.clients import Properties, create_admin_client
from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX, USAGE_EVENTS, topic_name, topic_specs

log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS = 15.0
_RECORD_OVERHEAD_BYTES = 1024  # of a record and its batch around a message
_BROKERS_OWN = -1  # as many replicas as the broker's default.replication.factor
_SPREAD_SECONDS = 5.0  # until every broker knows a new topic
A = TypeVar("A")


class TopicMismatch(Exception):
    """A topic differs from the settings: customers would move to other partitions, or messages would be refused."""


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the cluster has it. topic_id: Kafka's; a recreated topic has a new one."""

    name: str
    partitions: int
    topic_id: str


def admin_client(settings: Settings) -> AdminClient:
    """A client that learned of a cluster without brokers never works again: create a new one after a failure."""
    return create_admin_client(settings.kafka_properties)


def metadata_problem(properties: Properties, seconds: float) -> str | None:
    """None when the cluster answers a metadata request and names brokers, else why not."""
    try:
        client = create_admin_client(properties, seconds=seconds)
        return None if client.list_topics(timeout=seconds).brokers else "no broker is known"
    except KafkaException as error:
        return str(error.args[0])


def answer_of(future: Future[A], seconds: float) -> A:
    """The result of an admin client's request. Raises KafkaException, also when Kafka does not answer in time."""
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, "the broker did not answer in time")) from error


def _is_unknown(error: Exception) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def create_topics(settings: Settings) -> list[str]:
    """Create missing topics, and return their names.

    Raises TopicMismatch when usage.events has another number of partitions, or refuses messages of the gateway's size.
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
    created: list[str] = []
    if wanted:
        for name, future in admin.create_topics(wanted, operation_timeout=_TIMEOUT_SECONDS).items():
            try:
                answer_of(future, _TIMEOUT_SECONDS)
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another service was first
                    raise
    check_partitions(settings)
    if topic_name(settings, USAGE_EVENTS) not in created:
        check_message_size(settings, admin)
    return created


def check_message_size(settings: Settings, admin: AdminClient) -> None:
    """Raises TopicMismatch when usage.events refuses messages that the gateway may write."""
    name = topic_name(settings, USAGE_EVENTS)
    resource = ConfigResource(ResourceType.TOPIC, name)
    try:
        found = answer_of(admin.describe_configs([resource])[resource], _TIMEOUT_SECONDS)
    except KafkaException as error:  # reading a topic's settings is a permission of its own
        log.warning("topic_settings_unknown", topic=name, error=str(error))
        return
    bytes_max = int(found["max.message.bytes"].value)
    if bytes_max < MESSAGE_BYTES_MAX + _RECORD_OVERHEAD_BYTES:
        raise TopicMismatch(
            f"{name} takes messages of {bytes_max} bytes, the gateway writes up to {MESSAGE_BYTES_MAX}: "
            f"raise its max.message.bytes"
        )


def describe_topic(settings: Settings, topic: str, admin: AdminClient | None = None) -> TopicState:
    """Raises KafkaException when it does not exist or the cluster does not answer. admin: an existing client."""
    name = topic_name(settings, topic)
    # The client is referenced until the answer is there: its futures never complete once it is garbage collected.
    admin = admin or admin_client(settings)
    # A topic that was created a moment ago is not known to every broker yet.
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
