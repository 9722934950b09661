"""usage.events → the newest events as JSON lines, then those that follow."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from threading import Event
from typing import Annotated, Any

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition
from cyclopts import Parameter

from runtime.kafka.admin import describe_topic
from runtime.kafka.clients import create_reader, is_partition_end
from runtime.kafka.log_ends import log_bounds
from runtime.signals import stop_on_signals
from schemas.decimals import plain
from schemas.event import NO_IDENTITY
from schemas.period import format_rfc3339
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import UnreadableBatch, UsageBatch, decimal_of, decode
from schemas.usage_void import UsageVoids, is_void
from schemas.usage_void import decode as decode_voids
from usage_billing.console import DONE, errors, settings_for

_BOUNDS_SECONDS = 10.0


def tail(
    *,
    from_beginning: Annotated[bool, Parameter(help="Start at the oldest event that is kept.", negative="")] = False,
    last: Annotated[
        int, Parameter(help="Newest events to print first. Filters apply to the last messages of each partition.")
    ] = 10,
    limit: Annotated[int | None, Parameter(help="End after so many events.")] = None,
    organization: str | None = None,
    customer: str | None = None,
    event_name: str | None = None,
) -> int:
    """Print the newest events as JSON lines with their coordinates, then those that follow, until Ctrl-C."""
    settings = settings_for("events-tail")
    stopping = stop_on_signals()
    filters = {"organization_id": organization, "customer_id": customer, "event_name": event_name}
    consumer = create_reader(settings.kafka_properties, "usage-events-tail", out_of_range="latest", partition_eof=True)

    def matches(row: dict[str, Any]) -> bool:
        return all(wanted in (None, row[name]) for name, wanted in filters.items())

    printed = 0
    try:
        for row in _rows(settings, consumer, None if from_beginning else max(0, last), matches, stopping):
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
            sys.stdout.flush()
            printed += 1
            if printed == limit:
                break
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        consumer.close()
    return DONE


def _rows(
    settings: Settings,
    consumer: Consumer,
    last: int | None,
    matches: Callable[[dict[str, Any]], bool],
    stopping: Event,
) -> Iterator[dict[str, Any]]:
    """Rows that match, the newest `last` of the log first (all of it without a number), then those that follow."""
    topic = topic_name(settings, USAGE_EVENTS)
    partitions = [TopicPartition(topic, p) for p in range(describe_topic(settings, USAGE_EVENTS).partitions)]
    bounds = [log_bounds(consumer, partition, _BOUNDS_SECONDS) for partition in partitions]
    consumer.assign(
        [
            TopicPartition(topic, partition.partition, low if last is None else max(low, high - last))
            for partition, (low, high) in zip(partitions, bounds, strict=True)
        ]
    )
    behind = set[int]() if last is None else {partition.partition for partition in partitions}
    newest: list[dict[str, Any]] = []
    while not stopping.is_set():
        message = consumer.poll(0.2)
        if message is None:
            continue
        error = message.error()
        if error is None:
            found = [row for row in _readable(message) if matches(row)]
            if behind:
                newest += found
            else:
                yield from found
        elif not is_partition_end(error):
            errors.print(f"[yellow]{error}")
        elif behind:
            behind.discard(message.partition() or 0)
            if not behind and last:
                yield from sorted(newest, key=lambda row: row["received_at"])[-last:]


def _readable(message: Message) -> Iterator[dict[str, Any]]:
    """A message's rows; the reason on stderr where it is unreadable."""
    partition, offset = message.partition() or 0, message.offset() or 0
    try:
        yield from rows(message.value() or b"", partition, offset)
    except UnreadableBatch as error:
        errors.print(f"[yellow]partition {partition} offset {offset}: {error}")


def rows(message: bytes, partition: int, offset: int) -> Iterator[dict[str, Any]]:
    """What a message of usage.events holds, events or tombstones, as people read it. Raises UnreadableBatch."""
    if is_void(message):
        return _void_rows(decode_voids(message), partition, offset)
    return _event_rows(decode(message), partition, offset)


def _void_rows(voids: UsageVoids, partition: int, offset: int) -> Iterator[dict[str, Any]]:
    for index in range(len(voids)):
        yield {
            "organization_id": voids.organization_id[index],
            "customer_id": voids.customer_id[index],
            "event_name": voids.event_name[index],
            "event_id": voids.identity[index].removeprefix("c:"),
            "voided": voids.reason[index],
            "received_at": format_rfc3339(voids.received_at),
            "partition": partition,
            "offset": offset,
            "index": index,
        }


def _event_rows(batch: UsageBatch, partition: int, offset: int) -> Iterator[dict[str, Any]]:
    """A batch's events as people read them: decimals as strings, instants in RFC 3339, with coordinates."""
    for index in range(len(batch)):
        value = batch.value[index]
        identity = batch.identity[index] if batch.identity else NO_IDENTITY
        yield {
            "organization_id": batch.organization_id[index],
            "customer_id": batch.customer_id[index],
            "event_name": batch.event_name[index],
            "timestamp": format_rfc3339(batch.timestamp[index]),
            "value": None if value is None else plain(decimal_of(value).normalize()),
            "event_id": identity.removeprefix("c:") if identity.startswith("c:") else None,
            "properties": batch.properties[index] if batch.properties else {},
            "received_at": format_rfc3339(batch.received_at),
            "partition": partition,
            "offset": offset,
            "index": index,
        }
