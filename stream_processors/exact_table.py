"""Faust, made exact: states per partition in a changelog, loaded in bulk, written with proof, committed after that.

Faust gives group membership, assignment and buffering. Its own table writes, recovery and commits can lose or double
events when a worker dies (docs/decisions/aggregator.md), so this module does the three itself. It is the only
one that touches private parts of the pinned library; tests/unit/stream_processors/test_exact_table.py fails when a
version changes one of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import faust
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from faust.auth import SASLCredentials, SSLCredentials
from faust.types import TP, AppT
from yarl import URL

from runtime.kafka.acked_producer import NotAcknowledged
from runtime.kafka.clients import create_producer, create_reader, is_partition_end
from runtime.kafka.log_ends import end_offsets

log = structlog.get_logger(__name__)
_FAUST_LOGGER = logging.getLogger("faust")  # what Faust says of its parts goes where it says all else

DELIVERY_SECONDS_MAX = 30
_REQUEST_SECONDS = 15.0
_LOAD_BATCH = 20_000
_LOAD_SILENCE_SECONDS_MAX = 60.0
_QUEUE_MESSAGES_MAX = 1_000_000

Record = tuple[bytes, bytes | None]


def die(reason: str, error: BaseException | None = None) -> NoReturn:
    """End the process at once, loudly: what is not proven to be written comes again from the log.

    Faust swallows some exceptions, restarts what raised others and may wait for ever while it stops; none of that is
    safe here, and a supervisor starts the process again.
    """
    log.critical("aggregator_died", reason=reason, exc_info=error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)


# -- the changelog's writer --------------------------------------------------------------------------------------------


class DurableProducer:
    """librdkafka's producer with one promise: after flush(), everything sent before it is acknowledged by all replicas.

    Seven times as fast as Faust's own, whose failures are only logged. send() from one thread at a time.
    """

    def __init__(self, properties: Mapping[str, str]) -> None:
        self._errors: list[KafkaError] = []
        self._producer = create_producer(
            properties,
            delivery_seconds=DELIVERY_SECONDS_MAX,
            more={
                "compression.type": "lz4",
                "linger.ms": 5,
                "batch.num.messages": 50_000,
                "queue.buffering.max.messages": _QUEUE_MESSAGES_MAX,
                "delivery.report.only.error": True,
            },
        )

    def send(self, topic: str, partition: int, records: Iterable[Record]) -> None:
        """Enqueue in order, blocking while the queue is full. Raises KafkaException for what can't be sent."""
        produce, failed = self._producer.produce, self._failed
        for key, value in records:
            while True:
                try:
                    produce(topic, value, key, partition, failed)
                    break
                except BufferError:
                    self._producer.poll(0.05)

    async def flush(self) -> None:
        """Raises NotAcknowledged."""
        left = await asyncio.to_thread(self._producer.flush, DELIVERY_SECONDS_MAX + 1)
        if left or self._errors:
            raise NotAcknowledged(f"{left} records not acknowledged, errors: {self._errors[:3]}")

    def _failed(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._errors.append(error)


# -- the table ---------------------------------------------------------------------------------------------------------


class State(Protocol):
    """What is kept of a partition. restore() gets the changelog's records in their order, then restored() is called."""

    def restore(self, key: bytes, value: bytes | None) -> None: ...

    def restored(self) -> None: ...


S = TypeVar("S", bound=State)


class _Load(Generic[S]):
    """The loading of one partition, in a thread. cancelled: the partition was taken away meanwhile."""

    def __init__(self, state: S) -> None:
        self.state = state
        self.cancelled = False
        self.finished = False


class ExactTable(faust.Table[Any, Any], Generic[S]):
    """The states of this worker's partitions.

    To Faust it is a table whose changelog never needs recovery. In truth each newly assigned partition is loaded in
    the background, so that heartbeats go on however long it takes (they stop during Faust's rebalance callbacks), and
    `state_of()` waits for it.
    """

    logger = _FAUST_LOGGER

    def __init__(self, *args: Any, new_state: Callable[[int], S], properties: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new_state = new_state
        self._properties = dict(properties)
        self._loads: dict[int, _Load[S]] = {}
        self._ends: dict[TP, int] = {}

    # What this worker has.

    @property
    def states(self) -> dict[int, S]:
        """Partition → state, of those that are loaded."""
        return {partition: load.state for partition, load in self._loads.items() if load.finished}

    @property
    def loading(self) -> list[int]:
        return [partition for partition, load in self._loads.items() if not load.finished]

    async def state_of(self, partition: int, generation: int) -> S | None:
        """The state, as soon as it is loaded; None when a rebalance comes first: the messages will come again."""
        while True:
            if self.app.consumer_generation_id != generation or (load := self._loads.get(partition)) is None:
                return None
            if load.finished:
                return load.state
            if not flowing(self.app):
                return None  # a rebalance or a stop waits for these messages: don't make it wait for the load
            await asyncio.sleep(0.02)

    # What Faust calls.

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        topic = self.changelog_topic_name
        mine = {tp.partition for tp in assigned if tp.topic == topic}
        for partition in set(self._loads) - mine:
            self._loads.pop(partition).cancelled = True
        new = sorted(mine - set(self._loads))
        self._ends = await asyncio.to_thread(self._read_ends, sorted(mine))
        if new:
            loads = {partition: _Load(self._new_state(partition)) for partition in new}
            self._loads.update(loads)
            threading.Thread(target=self._load_or_die, args=(loads,), name="load", daemon=True).start()

    def persisted_offset(self, tp: TP) -> int | None:
        """All of the changelog, says this table, so that Faust recovers nothing."""
        end = self._ends.get(tp, 0)
        return end - 1 if end else None

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        """A frozen worker may write between our look at the end and Faust's; the loader reads it, Faust need not."""

    def send_changelog(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("write states through DurableProducer: Faust's own writes can't be proven to have arrived")

    # Loading.

    def _read_ends(self, partitions: Sequence[int]) -> dict[TP, int]:
        topic = self.changelog_topic_name
        ends = end_offsets(self._properties, f"{topic}-load", topic, partitions, _REQUEST_SECONDS)
        return {TP(topic, partition): end for partition, end in ends.items()}

    def _consumer(self) -> Consumer:
        return create_reader(
            self._properties,
            f"{self.changelog_topic_name}-load",
            out_of_range="earliest",
            partition_eof=True,
            more={"queued.max.messages.kbytes": 65_536},
        )

    def _load_or_die(self, loads: Mapping[int, _Load[S]]) -> None:
        try:
            self._load(loads)
        except BaseException as error:  # noqa: BLE001 - a partition that is never loaded would stand still in silence
            die("the changelog could not be loaded", error)

    def _load(self, loads: Mapping[int, _Load[S]]) -> None:
        """Read each partition up to where it ends, newest state last, and mark its load finished."""
        topic, started, count = self.changelog_topic_name, time.monotonic(), 0
        consumer = self._consumer()
        try:
            unread = dict(loads)
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread])
            heard = time.monotonic()
            while unread:
                for partition in [p for p, load in unread.items() if load.cancelled]:
                    del unread[partition]
                for message in consumer.consume(_LOAD_BATCH, 0.5):
                    heard = time.monotonic()
                    partition, error = message.partition(), message.error()
                    assert partition is not None
                    load = unread.get(partition)
                    if load is None:
                        continue
                    if error is None:
                        load.state.restore(message.key() or b"", message.value())
                        count += 1
                    elif is_partition_end(error):
                        # The end, as it was asked for after the assignment: an owner before us has written all of its
                        # own by then, and what a frozen one writes later is only old.
                        load.state.restored()
                        load.finished = True
                        del unread[partition]
                    elif error.fatal() or not error.retriable():
                        raise KafkaException(error)
                if time.monotonic() - heard > _LOAD_SILENCE_SECONDS_MAX:
                    raise TimeoutError(f"nothing heard of {topic} for {_LOAD_SILENCE_SECONDS_MAX:g} s")
        finally:
            consumer.close()
        log.info("states_loaded", partitions=sorted(loads), records=count, seconds=round(time.monotonic() - started, 2))


# -- messages, offsets, commits ----------------------------------------------------------------------------------------


class _EveryOffset(dict[TP, Any]):
    """Faust's notes of what it has read, kept blank.

    It drops messages below the last offset read. After a seek back, what was fetched before it still comes and moves
    that offset on, and then the very messages that were sought would be dropped.
    """

    def __getitem__(self, tp: TP) -> None:
        return None


class ExactApp(faust.App):
    """A Faust app whose consumer delivers whatever it fetches: the states know what they have."""

    logger = _FAUST_LOGGER

    def _new_consumer(self) -> Any:
        consumer: Any = super()._new_consumer()
        consumer._read_offset = _EveryOffset()
        return consumer


def flowing(app: AppT) -> bool:
    """False: a rebalance or a stop has begun, and waits for the messages that are being worked on."""
    consumer: Any = app.consumer
    return bool(consumer.flow_active)


def of_generation(events: Iterable[Any], generation: int) -> dict[int, dict[int, Any]]:
    """partition → offset → event, offsets ascending, of those that were fetched in this generation of the group.

    Others sit in Faust's buffers after a rebalance; and one message can come twice in one take.
    """
    found: dict[int, dict[int, Any]] = {}
    for event in events:
        message = event.message
        if message.generation_id == generation:
            found.setdefault(message.partition, {})[message.offset] = event
    return {partition: dict(sorted(by_offset.items())) for partition, by_offset in sorted(found.items())}


def assigned(app: AppT, topic: str, partition: int) -> bool:
    """Whether the partition is this worker's now, as far as it knows."""
    return TP(topic, partition) in app.consumer.assignment()


def knows(app: AppT, topic: str) -> bool:
    """Whether the group's client has seen the topic in the cluster. A leader that has not gives nobody partitions."""
    consumer: Any = app.consumer
    return bool(consumer._thread._ensure_consumer().partitions_for_topic(topic))


async def rewind(app: faust.App, topic: str, partition: int, offset: int) -> None:
    """Read on from an offset. What is in buffers still comes first."""
    await app.consumer.seek(TP(topic, partition), offset)


async def commit(app: faust.App, topic: str, next_offsets: Mapping[int, int], generation: int) -> None:
    """Commit what is proven to be written. For the group's eyes: a state knows its own next offset.

    Nothing is committed when the group has moved on; whoever has the partition then commits.
    """
    if next_offsets and app.consumer_generation_id == generation:
        consumer: Any = app.consumer
        await consumer._commit_offsets({TP(topic, p): offset for p, offset in next_offsets.items()})


def release(app: faust.App, events: Iterable[Any]) -> None:
    """Acknowledge to Faust, so that a rebalance or a stop need not wait for these messages any more.

    Its lists of acknowledged offsets are emptied: they get gaps after a rebalance, and it would commit by them.
    """
    consumer: Any = app.consumer
    touched: set[TP] = set()
    for event in events:
        event.message.ack(consumer)
        touched.add(event.message.tp)
    for tp in touched:
        consumer._acked[tp] = []
        consumer._acked_index[tp] = set()


def exact_app_settings() -> dict[str, Any]:
    """Settings of a Faust app that leave offsets, topics and errors to us."""
    return {
        "store": "memory://",
        "web_enabled": False,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "table_standby_replicas": 0,
        "agent_supervisor": "mode.CrashingSupervisor",
        "broker_commit_interval": 100_000.0,
        "broker_commit_every": 10**9,
        "consumer_auto_offset_reset": "earliest",
        # What a killed worker leaves behind is another's after this time; the least that a broker allows by default.
        "broker_session_timeout": 6.0,
        "broker_heartbeat_interval": 1.5,
        # A look at the cluster that fails is not repeated before this time is over (five minutes otherwise), and a
        # leader that has seen no topics gives nobody a partition until then.
        "consumer_metadata_max_age_ms": 5_000,
        "worker_redirect_stdouts": False,
    }


# -- security ----------------------------------------------------------------------------------------------------------


class UnsupportedSecurity(ValueError):
    """A security setting of librdkafka's that has no counterpart in Faust's client."""


def broker_urls(properties: Mapping[str, str]) -> list[URL]:
    """Faust's form of bootstrap.servers. `SASL_SSL://host:9092` → kafka://host:9092."""
    servers = (server.strip().rpartition("://")[2] for server in properties["bootstrap.servers"].split(","))
    return [URL(f"kafka://{server}") for server in servers if server]


def credentials(properties: Mapping[str, str]) -> SASLCredentials | SSLCredentials | None:
    """Faust's form of librdkafka's security.protocol, sasl.*, ssl.*; None: plain text. Raises UnsupportedSecurity."""
    protocol = properties.get("security.protocol", "plaintext").upper()
    context = _ssl_context(properties) if protocol in ("SSL", "SASL_SSL") else None
    match protocol:
        case "PLAINTEXT":
            return None
        case "SSL":
            return SSLCredentials(context)
        case "SASL_PLAINTEXT" | "SASL_SSL":
            mechanism = (properties.get("sasl.mechanism") or properties.get("sasl.mechanisms") or "").upper()
            if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
                raise UnsupportedSecurity(f"sasl.mechanism {mechanism or 'is not set'}: PLAIN or SCRAM-SHA-… is needed")
            return SASLCredentials(
                username=properties.get("sasl.username", ""),
                password=properties.get("sasl.password", ""),
                ssl_context=context,
                mechanism=mechanism,
            )
        case _:
            raise UnsupportedSecurity(f"security.protocol {protocol}")


def _ssl_context(properties: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=properties.get("ssl.ca.location"), cadata=properties.get("ssl.ca.pem"))
    if certificate := properties.get("ssl.certificate.location"):
        context.load_cert_chain(certificate, properties.get("ssl.key.location"), properties.get("ssl.key.password"))
    if properties.get("ssl.endpoint.identification.algorithm", "https") == "none":
        context.check_hostname = False
    if properties.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
