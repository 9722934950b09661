"""librdkafka properties → clients. The only place that creates them: tests/unit/runtime/test_kafka_clients.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient  # pyright: ignore[reportPrivateImportUsage]

Properties = Mapping[str, Any]
"""librdkafka's, as Settings.kafka_properties; `client_watch.watched` adds what a client that lives on needs."""

_LOST_OFFSET = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,  # pyright: ignore[reportPrivateUsage]
        KafkaError._LOG_TRUNCATION,  # pyright: ignore[reportPrivateUsage]
        KafkaError.OFFSET_OUT_OF_RANGE,
    }
)


def is_lost_offset(error: KafkaError) -> bool:
    """Whether the log no longer has the records that were read: it was truncated, or they expired unread.

    librdkafka reports it with auto.offset.reset=error only, and once: it fetches nothing more of that partition.
    """
    return error.code() in _LOST_OFFSET


def is_partition_end(error: KafkaError | None) -> bool:
    """Whether the message is the marker that `partition_eof` asks for, instead of a record or a failure."""
    return error is not None and error.code() == KafkaError._PARTITION_EOF  # pyright: ignore[reportPrivateUsage]


def create_admin_client(properties: Properties, *, seconds: float = 10.0) -> AdminClient:
    """seconds: until a request without an answer fails; librdkafka's default is a minute.

    A client that learned of a cluster without brokers never works again: create a new one after a failure.
    """
    return AdminClient({**properties, "socket.timeout.ms": int(seconds * 1000)})


def create_reader(
    properties: Properties,
    name: str,
    *,
    out_of_range: Literal["error", "earliest", "latest"] = "error",
    partition_eof: bool = False,
    more: Properties | None = None,
) -> Consumer:
    """A consumer for `assign`, and for questions about offsets. It joins no group and commits nothing.

    name: its group.id, which librdkafka requires and a broker's access rules may name.
    out_of_range: the next offset when the log lacks the wanted one; "error": report the gap (is_lost_offset).
    partition_eof: report each partition's end as a message (is_partition_end). The end of a log can't be known from
        offsets alone: compaction and aborted transactions leave offsets without a record before it.
    """
    return Consumer(
        {
            **properties,
            "group.id": name,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": out_of_range,
            "enable.partition.eof": partition_eof,
            **(more or {}),
        }
    )


def create_member(properties: Properties, group: str, more: Properties) -> Consumer:
    """A consumer for `subscribe`. It commits only what its owner commits: after the work, never by a timer."""
    return Consumer({**properties, "group.id": group, "enable.auto.commit": False, **more})


def create_producer(
    properties: Properties, *, delivery_seconds: float | None = None, more: Properties | None = None
) -> Producer:
    """A producer whose records are acknowledged by all replicas in sync, each once and in order.

    delivery_seconds: until a record without an acknowledgement is reported as failed; whether the log has it is unknown
        then. None: as `properties` say.
    """
    delivery = {} if delivery_seconds is None else {"delivery.timeout.ms": int(delivery_seconds * 1000)}
    return Producer({**properties, **delivery, "acks": "all", "enable.idempotence": True, **(more or {})})


def raw(data: str | bytes | None) -> bytes | None:
    """A record's key or value. The client's types allow text, which Kafka never returns."""
    return data.encode() if isinstance(data, str) else data
