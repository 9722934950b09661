"""Kafka topics ⇄ files of a backup, record by record in the order of each partition."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from runtime.kafka.clients import create_producer, create_reader, is_partition_end, raw
from runtime.kafka.log_ends import log_bounds
from schemas.settings import Settings
from schemas.topics import (
    BILLING_LEDGER,
    CATALOG,
    USAGE_ALERTS,
    USAGE_DEAD_LETTERS,
    USAGE_EVENTS,
    USAGE_WEBHOOK_DELIVERIES,
    topic_name,
)
from usage_billing.backup.files import DamagedBackup, compressed, lines
from usage_billing.backup.manifest import SavedPartition, SavedTopic
from usage_billing.backup.records import Record, decode, encode

# In the order in which they are read. What an invoice rests on must not be older than the invoice: the ledger is first,
# ClickHouse and the tail of usage.events, which it counts, are last. An alert without its delivery would be sent again.
READ_ORDER = (
    BILLING_LEDGER,
    CATALOG,
    USAGE_ALERTS,
    USAGE_WEBHOOK_DELIVERIES,
    USAGE_DEAD_LETTERS,
    USAGE_EVENTS,
)
# In which they are written: without a catalog nothing is billed or sent, so it comes last.
WRITE_ORDER = (
    BILLING_LEDGER,
    USAGE_WEBHOOK_DELIVERIES,
    USAGE_ALERTS,
    USAGE_DEAD_LETTERS,
    USAGE_EVENTS,
    CATALOG,
)
WHOLE = (CATALOG, BILLING_LEDGER)
"""Kept for ever: a log that begins later has lost something."""

_BATCH = 5_000
_WAIT_SECONDS = 0.5
_REQUEST_SECONDS = 15.0
_IDLE_SECONDS_MAX = 60.0
_FLUSH_SECONDS = 120.0
Progress = Callable[[int], None]


class IncompleteLog(Exception):
    """A log does not begin with its first record, or ends before its end was reached."""


class NotEmpty(Exception):
    """There are records already where a backup is to go."""


class NotRestored(Exception):
    """Kafka did not acknowledge all. `--continue` goes on from what it has."""


# -- Kafka → file ------------------------------------------------------------------------------------------------------


def save_topic(settings: Settings, topic: str, directory: Path, starts: Mapping[int, int] | None = None) -> SavedTopic:
    """What the topic holds now. starts: partition → offset to begin with, where it is later than the log's.

    Raises IncompleteLog, KafkaException, OSError.
    """
    name = topic_name(settings, topic)
    consumer = _consumer(settings, name)
    partitions: list[SavedPartition] = []
    file = f"{topic}.jsonl.zst"
    try:
        bounds = _bounds(consumer, name)
        with compressed(directory / file) as out:
            for partition, (low, end) in bounds.items():
                if low != 0 and topic in WHOLE:
                    raise IncompleteLog(f"{name}/{partition} begins at offset {low}: records are missing")
                first = max(low, min(end, (starts or {}).get(partition, 0)))
                count = 0
                for record in _read(consumer, name, partition, first, end):
                    out.write(encode(record) + b"\n")
                    count += 1
                partitions.append(SavedPartition(partition, first, end, count))
    finally:
        consumer.close()
    return SavedTopic(topic, file, out.summary.size, out.summary.sha256, partitions)


def _consumer(settings: Settings, name: str) -> Consumer:
    return create_reader(settings.kafka_properties, f"{name}-backup", partition_eof=True)


def _bounds(consumer: Consumer, name: str) -> dict[int, tuple[int, int]]:
    """Partition → first and next offset."""
    found = consumer.list_topics(name, timeout=_REQUEST_SECONDS).topics[name]
    if found.error is not None:
        raise KafkaException(found.error)
    return {
        partition: log_bounds(consumer, TopicPartition(name, partition), _REQUEST_SECONDS)
        for partition in sorted(found.partitions)
    }


def _read(consumer: Consumer, name: str, partition: int, first: int, end: int) -> Iterator[Record]:
    """The records of a partition from first to below end. Raises IncompleteLog, KafkaException."""
    if first >= end:
        return
    consumer.assign([TopicPartition(name, partition, first)])
    heard = time.monotonic()
    while True:
        messages = consumer.consume(_BATCH, _WAIT_SECONDS)
        if messages:
            heard = time.monotonic()
        elif time.monotonic() - heard > _IDLE_SECONDS_MAX:
            raise IncompleteLog(f"{name}/{partition}: no answer from the broker")
        for message in messages:
            error = message.error()
            if error is not None:
                if not is_partition_end(error):
                    raise KafkaException(error)
                if (message.offset() or 0) >= end:  # what lay before the end was compacted away
                    return
                continue
            record = _record(message)
            if record.offset < end:
                yield record
            if record.offset >= end - 1:
                return


def _record(message: Message) -> Record:
    kind, timestamp = message.timestamp()
    headers = tuple((name, raw(value)) for name, value in message.headers() or ())
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return Record(partition, offset, timestamp if kind else None, raw(message.key()), raw(message.value()), headers)


# -- file → Kafka ------------------------------------------------------------------------------------------------------


def saved_records(directory: Path, saved: SavedTopic) -> Iterator[Record]:
    """Every record, checked against what the manifest says of it. Raises DamagedBackup."""
    path = directory / saved.file
    expected = {each.partition: each for each in saved.partitions}
    records = (decode(line) for line in lines(path))
    for partition, of_partition in itertools.groupby(records, key=attrgetter("partition")):
        said = expected.pop(partition, None)
        if said is None:
            raise DamagedBackup(f"{path}: partition {partition} is unknown, or in two places")
        count, after = 0, said.first_offset
        for record in of_partition:
            if not after <= record.offset < said.next_offset:
                raise DamagedBackup(f"{path}: offset {record.offset} of partition {partition} is out of order")
            count, after = count + 1, record.offset + 1
            yield record
        if count != said.records:
            raise DamagedBackup(f"{path}: {count} records of partition {partition}, not {said.records}")
    for said in expected.values():
        if said.records:
            raise DamagedBackup(f"{path}: no record of partition {said.partition}, not {said.records}")


def present_records(settings: Settings, directory: Path, saved: SavedTopic, *, going_on: bool) -> dict[int, int]:
    """Partition → how many of its saved records the topic has already; none unless going_on.

    Raises NotEmpty where it has any, or (going_on) other ones than the backup begins with.
    """
    name = topic_name(settings, saved.topic)
    consumer = _consumer(settings, name)
    try:
        bounds = _bounds(consumer, name)
        if len(bounds) != len(saved.partitions):
            raise NotEmpty(f"{name} has {len(bounds)} partitions; the backup has {len(saved.partitions)}")
        present = {partition: end - low for partition, (low, end) in bounds.items()}
        # A topic whose records have all expired is not new either: a ledger must begin at 0.
        touched = [partition for partition, (_, end) in bounds.items() if end > 0]
        if touched and not going_on:
            raise NotEmpty(
                f"{name} is not empty (partition {touched[0]} ends at {bounds[touched[0]][1]}): restore into a new "
                "cluster, delete the topic, or use --continue after a restore that was interrupted"
            )
        if touched:
            _compare(consumer, name, directory, saved, bounds)
        return present
    finally:
        consumer.close()


def _compare(
    consumer: Consumer, name: str, directory: Path, saved: SavedTopic, bounds: Mapping[int, tuple[int, int]]
) -> None:
    expected = itertools.groupby(saved_records(directory, saved), key=attrgetter("partition"))
    unmet = {partition for partition, (_, end) in bounds.items() if end > 0}
    for partition, records in expected:
        low, end = bounds[partition]
        for mine in _read(consumer, name, partition, low, end):
            theirs = next(records, None)
            if low != 0 or theirs is None or not mine.says_same_as(theirs):
                raise NotEmpty(f"{name}/{partition} has another record at offset {mine.offset} than the backup")
        unmet.discard(partition)
    if unmet:
        raise NotEmpty(f"{name}/{min(unmet)} has records, and the backup has none for it")


def restore_topic(
    settings: Settings, directory: Path, saved: SavedTopic, present: Mapping[int, int], progress: Progress
) -> int:
    """Write what is not present, in order, each record with its key, headers and timestamp; how many.

    Events get the time of now: by their own, those of an old backup would expire before the sink has read them.

    Raises NotRestored, DamagedBackup.
    """
    name = topic_name(settings, saved.topic)
    more = {"compression.type": "lz4", "linger.ms": 20}
    producer = create_producer(settings.kafka_properties, delivery_seconds=_FLUSH_SECONDS, more=more)
    failures: list[str] = []

    def delivered(error: object, _: Message) -> None:
        if error is not None:
            failures.append(str(error))

    written = 0
    for _, records in itertools.groupby(saved_records(directory, saved), key=attrgetter("partition")):
        for index, record in enumerate(records):
            if index < present.get(record.partition, 0):
                continue
            if saved.topic == USAGE_EVENTS:
                record = replace(record, timestamp=None)
            _produce(producer, name, record, delivered)
            written += 1
            if failures:
                raise NotRestored(f"{name}: {failures[0]}")
            if written % _BATCH == 0:
                producer.poll(0)
                progress(_BATCH)
    left = producer.flush(_FLUSH_SECONDS + 1)
    if left or failures:
        raise NotRestored(f"{name}: {left} records unacknowledged; {'; '.join(failures[:1])}")
    progress(written % _BATCH)
    return written


def _produce(producer: Producer, name: str, record: Record, delivered: Callable[[object, Message], None]) -> None:
    while True:
        try:
            producer.produce(
                name,
                record.value,
                record.key,
                partition=record.partition,
                headers=list(record.headers),
                on_delivery=delivered,
                timestamp=record.timestamp or 0,  # 0: now
            )
        except BufferError:  # its queue is full: wait for acknowledgements
            producer.poll(_WAIT_SECONDS)
        except KafkaException as error:
            raise NotRestored(f"{name}: offset {record.offset} of the backup: {error}") from error
        else:
            return
