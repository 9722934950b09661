"""events tail|send|void|import: usage events in and out by hand."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
from confluent_kafka import Consumer, TopicPartition
from cyclopts import App, Parameter

from runtime.signals import stop_on_signals
from runtime.topics import describe_topic, log_bounds
from schemas.decimals import plain
from schemas.event import NO_IDENTITY
from schemas.period import format_rfc3339
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import UnreadableBatch, UsageBatch, decimal_of, decode
from schemas.usage_void import UsageVoids, is_void
from schemas.usage_void import decode as decode_voids
from usage_billing.client import EventsRefused, NoAnswer, UsageClient
from usage_billing.console import DONE, errors, fail, settings_for, wrong_usage

app = App(name="events", help="Usage events: look at them as they come, send some, void one, import a file.")
app.command("usage_billing.commands.events_import:import_", name="import")

Key = Annotated[
    str | None, Parameter(help="API key with the scope ingest; also USAGE_API_KEY, else USAGE_ADMIN_KEY.", name="--key")
]
Address = Annotated[
    str | None, Parameter(help="Address of the gateway; by default USAGE_HTTP_HOST and _PORT.", name="--address")
]


# -- tail --------------------------------------------------------------------------------------------------------------


@app.command
def tail(
    *,
    from_beginning: Annotated[bool, Parameter(help="Start at the oldest event that is kept.", negative="")] = False,
    limit: Annotated[int | None, Parameter(help="End after so many events.")] = None,
    organization: str | None = None,
    customer: str | None = None,
    event_name: str | None = None,
) -> int:
    """Print events as JSON lines with their coordinates, until Ctrl-C."""
    settings = settings_for("events-tail")
    stopping = stop_on_signals()
    consumer = Consumer({**settings.kafka_properties, "group.id": "usage-events-tail", "enable.auto.commit": False})
    printed = 0
    try:
        consumer.assign(_starts(settings, consumer, from_beginning))
        while not stopping.is_set():
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                errors.print(f"[yellow]{message.error()}")
                continue
            try:
                lines = rows(message.value() or b"", message.partition() or 0, message.offset() or 0)
            except UnreadableBatch as error:
                errors.print(f"[yellow]partition {message.partition()} offset {message.offset()}: {error}")
                continue
            for line in lines:
                wanted = (
                    organization in (None, line["organization_id"])
                    and customer in (None, line["customer_id"])
                    and event_name in (None, line["event_name"])
                )
                if wanted:
                    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
                    printed += 1
                    if printed == limit:
                        return DONE
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        consumer.close()
    return DONE


def _starts(settings: Settings, consumer: Consumer, from_beginning: bool) -> list[TopicPartition]:
    topic = topic_name(settings, USAGE_EVENTS)
    partitions = [TopicPartition(topic, p) for p in range(describe_topic(settings, USAGE_EVENTS).partitions)]
    ends = [log_bounds(consumer, partition, 10) for partition in partitions]
    return [
        TopicPartition(topic, partition.partition, low if from_beginning else high)
        for partition, (low, high) in zip(partitions, ends, strict=True)
    ]


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


# -- send and void -----------------------------------------------------------------------------------------------------


@app.command
def send(
    *,
    customer: Annotated[str, Parameter(help="customer_id")],
    event_name: Annotated[str, Parameter(help="event_name")],
    value: Annotated[str | None, Parameter(help="A decimal number.", allow_leading_hyphen=True)] = None,
    timestamp: Annotated[str | None, Parameter(help="RFC 3339 with offset; by default now.")] = None,
    event_id: str | None = None,
    key: Key = None,
    address: Address = None,
) -> int:
    """Send one event and print the receipt."""
    settings = settings_for("events-send")
    event = {
        "customer_id": customer,
        "event_name": event_name,
        "timestamp": timestamp or format_rfc3339(time.time_ns() // 1000),
        **({} if value is None else {"value": value}),
        **({} if event_id is None else {"event_id": event_id}),
    }
    try:
        with client_for(settings, key, address) as client:
            receipt = client.send([event])
    except (EventsRefused, NoAnswer) as error:
        fail(str(error))
    print(msgspec.json.encode(receipt).decode())
    return DONE


@app.command
def void(
    *,
    customer: Annotated[str, Parameter(help="customer_id")],
    event_name: Annotated[str, Parameter(help="event_name")],
    event_id: Annotated[str, Parameter(help="As the event's producer named it.")],
    reason: Annotated[str, Parameter(help="Why it is not to count; kept with the tombstone.")],
    key: Annotated[
        str | None, Parameter(help="API key with the scope admin; also USAGE_API_KEY, else USAGE_ADMIN_KEY.")
    ] = None,
    address: Address = None,
) -> int:
    """Void an event, so that it does not count, and print where its tombstone lies."""
    settings = settings_for("events-void")
    try:
        with client_for(settings, key, address) as client:
            partition, offset = client.void(customer, event_name, event_id, reason)
    except (EventsRefused, NoAnswer) as error:
        fail(str(error))
    print(msgspec.json.encode({"partition": partition, "offset": offset}).decode())
    return DONE


def client_for(
    settings: Settings, key: str | None, address: str | None, *, on_wait: Callable[[str], None] = lambda reason: None
) -> UsageClient:
    """A client with the key that was given, of the environment, or of the operator. Ends with 2 without any."""
    admin = settings.admin_key.get_secret_value() if settings.admin_key else None
    secret = key or os.environ.get("USAGE_API_KEY") or admin
    if not secret:
        wrong_usage("no key: give --key or set USAGE_API_KEY; `usage-billing keys create --scope ingest` makes one")
    return UsageClient(address or f"http://{settings.http_host}:{settings.http_port}", secret, on_wait=on_wait)
