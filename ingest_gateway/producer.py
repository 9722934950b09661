"""messages → usage.events: produced with acks=all, each answered by its offset or its error."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog
from confluent_kafka import KafkaError, KafkaException, Message

from ingest_gateway import metrics
from runtime.kafka.client_watch import poll_producer, watched
from runtime.kafka.clients import create_producer
from schemas.settings import Settings
from schemas.topics import RECORD_BATCH_BYTES_MAX, USAGE_EVENTS, topic_name

Settled = Callable[[int | None, str | None], None]
"""Called in the event loop with the message's offset, or with the reason why it has none."""

log = structlog.get_logger(__name__)

_DELIVERY_MS = 5 * 60 * 1000  # see docs/decisions/gateway.md before it is made shorter
_SOCKET_MS = 10_000
"""How long a broker may leave a request unanswered before it is sent to the partition's leader of that moment, with the
same sequence numbers. The library's own 60 s would stop all ingest for as long where one broker of three hangs."""
_BATCH_OVERHEAD_BYTES = 1024
_TELL_AGAIN_SECONDS = 30.0


class EventProducer:
    """An idempotent producer whose delivery reports come back to the event loop.

    One thread polls librdkafka; the reports of one poll cross into the loop together.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._topic = topic_name(settings, USAGE_EVENTS)
        self._loop = loop
        self._producer = create_producer(
            {
                "compression.type": "lz4",
                "delivery.timeout.ms": _DELIVERY_MS,
                "socket.timeout.ms": _SOCKET_MS,
                **watched(settings.kafka_properties),
            },
            more={
                "linger.ms": 0,  # requests are coalesced before they come here
                # Of a message and of the messages that go to a broker at once.
                "message.max.bytes": RECORD_BATCH_BYTES_MAX - _BATCH_OVERHEAD_BYTES,
                # The pipeline's own bound is met first: it knows requests, and refuses them whole.
                "queue.buffering.max.kbytes": 2 * settings.queue_bytes_max // 1024,
                "queue.buffering.max.messages": 2 * settings.queue_events_max,
                "error_cb": self._on_error,
            },
        )
        self._reports: deque[tuple[Settled, int | None, str | None]] = deque()
        self.unreachable = False
        """No broker answers; found out by librdkafka, cleared once the topic's metadata comes through again."""
        self.fatal: str | None = None
        """Why this producer can never produce again; the process has to end."""
        self._acknowledged: dict[int, int] = {}  # partition → offset after the last one that Kafka acknowledged
        self._told: dict[int, float] = {}  # error's code → when it was logged last; an outage repeats it all the time
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="delivery-reports", daemon=True)
        self._thread.start()

    def produce(self, partition: int, key: bytes | None, value: bytes, settled: Settled) -> None:
        """Enqueue; `settled` is called exactly once, unless this raises BufferError (the queue is full)."""

        def delivered(error: object, message: Message) -> None:
            offset = None if error is not None else message.offset()
            if offset is not None:
                self._mind_lost_end(partition, offset)
            self._reports.append((settled, offset, None if error is None else str(error)))

        try:
            self._producer.produce(self._topic, value, key, partition=partition, on_delivery=delivered)
        except KafkaException as error:
            raise BufferError(str(error)) from error

    def _mind_lost_end(self, partition: int, offset: int) -> None:
        """Acknowledgements of a partition come in the order of its log, unless the log has lost its end since."""
        reached = self._acknowledged.get(partition, 0)
        if 0 <= offset < reached:
            # Where nobody had read what is gone, nobody else can know of it.
            metrics.ENDS_LOST.labels(partition).inc()
            log.error("acknowledged_messages_lost", partition=partition, first=offset, next=reached)
        if offset >= 0:
            self._acknowledged[partition] = offset + 1

    def close(self, timeout_seconds: float) -> int:
        """Wait for what is under way; the number of messages whose outcome stays unknown."""
        try:
            left = self._producer.flush(timeout_seconds)
        except KafkaException as error:
            self.fatal, left = str(error), len(self._producer)
        if left:
            log.warning("messages_left", messages=left, detail="whether they are in the log is not known")
        self._stopping.set()
        self._thread.join(timeout_seconds)
        self._hand_over()
        return left

    def _on_error(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._told.get(error.code(), -math.inf) > _TELL_AGAIN_SECONDS:
            self._told[error.code()] = now
            log.warning("kafka_error", error=str(error))
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # pyright: ignore[reportPrivateUsage]
            self.unreachable = True

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self.fatal = poll_producer(self._producer, 0.1) or self.fatal
            self._hand_over()
            if self.unreachable:
                self._look_again()

    def _look_again(self) -> None:
        try:
            self._producer.list_topics(self._topic, timeout=0.5)
        except KafkaException:
            return
        self.unreachable = False
        log.info("kafka_reachable_again")

    def _hand_over(self) -> None:
        reports = list[tuple[Settled, int | None, str | None]]()
        while self._reports:
            reports.append(self._reports.popleft())
        if reports:
            self._loop.call_soon_threadsafe(_settle_all, reports)


def _settle_all(reports: list[tuple[Settled, int | None, str | None]]) -> None:
    for settled, offset, reason in reports:
        settled(offset, reason)
