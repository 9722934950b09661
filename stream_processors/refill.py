"""offsets of usage.events → ClickHouse once more: rows that the audit misses are stored again, all others collapse."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from runtime.kafka.admin import describe_topic
from runtime.kafka.clients import create_reader, is_partition_end, raw
from runtime.kafka.log_ends import log_bounds
from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX, USAGE_EVENTS, topic_name
from stream_processors import avro_splice, inserts
from stream_processors.avro_splice import Unreadable
from stream_processors.log_probe import LogProbe
from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, unavailable
from warehouse.epochs import Epochs, lookup_epochs
from warehouse.shards import Store, shards_of

_REQUEST_SECONDS = 10.0
_IDLE_SECONDS_MAX = 30.0
_ATTEMPTS_MAX = 5
_RETRY_SECONDS = 0.5
_RANGE = re.compile(
    r"(\d{1,4})/(\d{1,5})/(\d{1,14})(?:/\d{1,4})?(?:\.\.(?:(\d{1,4})/(\d{1,5})/)?(\d{1,14})(?:/\d{1,4})?)?"
)


class InvalidRange(ValueError):
    """No range of places."""


class LogChanged(Exception):
    """The log has other messages there than those that were stored: nothing is stored."""


@dataclass(frozen=True, slots=True)
class Range:
    """Messages of one partition, from first on and up to last, this one included."""

    epoch: int
    partition: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.partition}/{self.first}..{self.last}"


@dataclass(slots=True)
class Refilled:
    """messages, events: stored, again or for the first time. expired: offsets that the log does not have any more.
    set_aside: place and reason of each message that can't be stored.
    """

    messages: int = 0
    events: int = 0
    expired: int = 0
    set_aside: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])


def parse_range(text: str) -> Range:
    """`1/3/1871`, `1/3/1871/0` (as the audit names an event), `1/3/1871..1900` or `1/3/1871..1/3/1900`.

    Raises InvalidRange.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidRange(f"{text!r} is no range: EPOCH/PARTITION/OFFSET, or EPOCH/PARTITION/OFFSET..OFFSET")
    epoch, partition, first, to_epoch, to_partition, last = match.groups()
    if (to_epoch or epoch, to_partition or partition) != (epoch, partition):
        raise InvalidRange(f"{text!r}: both ends are to be of one epoch and partition")
    found = Range(int(epoch), int(partition), int(first), int(last or first))
    if found.last < found.first:
        raise InvalidRange(f"{text!r} ends before it begins")
    return found


def refill(
    settings: Settings, store: Store, wanted: Range, progress: Callable[[int], None] = lambda done: None
) -> Refilled:
    """Read the messages of a range from the log and insert them as the sink does; sinks may run meanwhile.

    progress: gets the number of offsets done. Raises LogChanged, UnknownTopic, WarehouseUnavailable, KafkaException.
    """
    topic = describe_topic(settings, USAGE_EVENTS)
    client = shards_of(store).of(wanted.partition)
    try:
        epochs = lookup_epochs(client, topic.topic_id)
        _check_epoch(epochs, wanted)
        _check_batches(settings, client, topic.name, wanted)
    except ClickHouseError as error:
        raise unavailable(error) from error
    done = Refilled()
    for messages in _batches(settings, wanted, done):
        _store(client, wanted, messages, done)
        progress((messages[-1].offset() or 0) + 1 - wanted.first)
    return done


def _check_epoch(epochs: Epochs, wanted: Range) -> None:
    for offset in (wanted.first, wanted.last):
        if (found := epochs.at(wanted.partition, offset)) != wanted.epoch:
            raise LogChanged(f"the log's offset {offset} of partition {wanted.partition} is of epoch {found} now")


def _check_batches(settings: Settings, client: Client, topic: str, wanted: Range) -> None:
    """By the ids of the batches that are stored: another one at the same offset is another message."""
    probe = LogProbe(settings, topic)
    try:
        low, high = probe.bounds(wanted.partition)
        first, after = max(low, wanted.first), min(high, wanted.last + 1)
        kept = probe.kept_to(client, wanted.epoch, wanted.partition, first, after) if first < after else None
    finally:
        probe.close()
    if kept is not None:
        raise LogChanged(f"from offset {kept} on, the log of partition {wanted.partition} is not what was stored of it")


def _batches(settings: Settings, wanted: Range, done: Refilled) -> Iterator[list[Message]]:
    """Messages for an insert each. Counts in done what is gone."""
    topic = topic_name(settings, USAGE_EVENTS)
    consumer = create_reader(
        settings.kafka_properties,
        topic_name(settings, "usage-refill"),
        partition_eof=True,
        more={"fetch.message.max.bytes": 32 * MESSAGE_BYTES_MAX},
    )
    try:
        low, high = log_bounds(consumer, TopicPartition(topic, wanted.partition), _REQUEST_SECONDS)
        at, after = max(low, wanted.first), min(high, wanted.last + 1)
        done.expired += (wanted.last - wanted.first + 1) - max(0, after - at)
        if at >= after:
            return
        consumer.assign([TopicPartition(topic, wanted.partition, at)])
        some, size, heard_at = list[Message](), 0, time.monotonic()
        while at < after:
            message = consumer.poll(0.5)
            if message is None:
                if time.monotonic() - heard_at > _IDLE_SECONDS_MAX:
                    raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, f"offset {at} is not read"))
                continue
            heard_at, offset = time.monotonic(), message.offset() or 0
            error = message.error()
            if error is not None and not is_partition_end(error):
                raise KafkaException(error)
            done.expired += max(0, min(offset, after) - at)
            at = offset + 1 if error is None else offset
            if error is None and offset < after:
                some.append(message)
                size += len(message)
            if some and (at >= after or size >= inserts.ENOUGH_BYTES):
                yield some
                some, size = [], 0
    finally:
        consumer.close()


def _store(client: Client, wanted: Range, messages: Sequence[Message], done: Refilled) -> None:
    heads: list[avro_splice.Message] = []
    for message in messages:
        offset, key, value = message.offset() or 0, raw(message.key()), raw(message.value())
        try:
            heads.append(avro_splice.read_head(wanted.epoch, wanted.partition, offset, value, key))
        except Unreadable as error:
            done.set_aside.append((offset, error.code))
    refused = {each.message.offset: str(each.error) for each in inserts.insert(heads, _Patient(client))}
    done.set_aside += refused.items()
    stored = [head for head in heads if head.offset not in refused]
    done.messages += len(stored)
    done.events += sum(head.events for head in stored)


class _Patient:
    """ClickHouse for a command: tried some times (inserts.Engine)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._failures = 0

    def attempt(self, work: Callable[[Client], object]) -> Exception | None:
        try:
            work(self._client)
        except (ClickHouseError, OSError) as error:
            return error
        self._failures = 0
        return None

    def wait(self, error: Exception) -> None:
        """Raises WarehouseUnavailable when it has waited often enough."""
        self._failures += 1
        if self._failures >= _ATTEMPTS_MAX:
            raise WarehouseUnavailable(" ".join(str(error).split())[:500]) from error
        time.sleep(_RETRY_SECONDS * self._failures)
