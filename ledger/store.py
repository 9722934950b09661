"""billing.ledger ⇄ memory: a thread follows the log and folds it; an append is answered by its fate in the log."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from ledger.records import LedgerRecord, UnreadableLedgerRecord, decode, encode, record_key
from ledger.view import InvoiceLedger
from runtime.kafka.admin import log_bounds
from runtime.kafka.client_watch import LOST_PLACE, end_process_of_lost_log, poll_producer, watched
from runtime.one_by_one import OneByOne
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import BILLING_LEDGER, topic_name

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_LOAD_BATCH = 10_000
_APPENDED_AT_ONCE = (
    5_000  # so that neither the producer's queue nor the time for an answer depends on how many there are
)


Place = tuple[int, int]
"""(partition, offset) of a record."""


class LedgerUnavailable(Exception):
    """The ledger could not be read or written in time. Whether a record was written is unknown then."""


class RecordTooLarge(ValueError):
    """Kafka takes no message of that size: this record can't be written, others can."""


class LedgerLog:
    """The ledger as one process has it: `state` is the fold of all that was read.

    start() returns when everything that was in the log then is folded. append() returns when the record written is
    folded too, with its verdict, so that a writer works only from what the log says. Thread-safe. A context manager.
    """

    def __init__(self, settings: Settings, *, timeout_seconds: float = 10.0) -> None:
        self.state = InvoiceLedger()
        self.writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._topic = topic_name(settings, BILLING_LEDGER)
        self._properties = settings.kafka_properties
        self._partitions = settings.event_partitions
        self._timeout = timeout_seconds
        self._next_offsets: dict[int, int] = {}
        self._lock = threading.Lock()  # of the two below: fates of our own records
        self._verdicts: dict[Place, bool] = {}  # read before their writer asked
        self._waiting: dict[Place, Future[bool]] = {}  # asked for before they were read
        self._stopping = threading.Event()
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        self._last_poll = 0.0
        # Readers of the same code come to the same verdict: a record that it can't fold is in force for none.
        self._loop = OneByOne("ledger", lambda _: False)
        self._producer = Producer(
            {
                **watched(self._properties),
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,
                "compression.type": "lz4",
                "delivery.timeout.ms": int(timeout_seconds * 1000),
            }
        )
        self._threads = (
            threading.Thread(target=self._run, name="ledger", daemon=True),
            threading.Thread(target=self._deliver, name="ledger-delivery", daemon=True),
        )

    def __enter__(self) -> LedgerLog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Raises LedgerUnavailable when the log can't be read: no broker, no topic, or its beginning is missing."""
        for thread in self._threads:
            thread.start()
        # Loading takes as long as the log is long; what is bounded is the time without progress.
        while not self._loaded.wait(_POLL_SECONDS):
            if self._last_poll and time.monotonic() - self._last_poll > self._timeout:
                self._failure = TimeoutError("no progress")
                break
        if self._failure is not None:
            self.stop()
            raise LedgerUnavailable(f"ledger {self._topic} could not be read: {self._failure}") from self._failure

    def stop(self) -> None:
        self._producer.flush(self._timeout)
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._timeout)

    @property
    def next_offsets(self) -> dict[int, int]:
        """Partition → offset up to which the fold has everything."""
        return dict(self._next_offsets)

    def check(self) -> str | None:
        """None while the log is being followed, else why not: for /readyz."""
        if self._failure is not None:
            return f"the ledger is not followed: {self._failure}"
        if not self._loaded.is_set():
            return "the ledger is being read"
        return None if time.monotonic() - self._last_poll < 5.0 else "the ledger is not polled"

    def append(self, record: LedgerRecord) -> bool:
        """Write, wait until the fold has it, and return whether it is in force. Raises LedgerUnavailable."""
        return self.append_all([record])[0]

    def append_all(self, records: Sequence[LedgerRecord]) -> list[bool]:
        """append, for records that do not wait for one another; those of one customer keep their order."""
        verdicts: list[bool] = []
        for start in range(0, len(records), _APPENDED_AT_ONCE):
            verdicts += self._append_some(records[start : start + _APPENDED_AT_ONCE])
        return verdicts

    def _append_some(self, records: Sequence[LedgerRecord]) -> list[bool]:
        written: list[Place | str | None] = [None] * len(records)
        left = threading.Semaphore(0)

        def callback(index: int) -> Callable[[object, Message], None]:
            def delivered(error: object, message: Message) -> None:
                partition, offset = message.partition(), message.offset()
                if error is not None or partition is None or offset is None:
                    written[index] = f"ledger not written: {error}"
                else:
                    written[index] = (partition, offset)
                left.release()

            return delivered

        for index, record in enumerate(records):
            partition = partition_of(record.organization_id, record.customer_id, self._partitions)
            try:
                self._producer.produce(
                    self._topic,
                    encode(record),
                    key=record_key(record),
                    partition=partition,
                    on_delivery=callback(index),
                )
            except KafkaException as error:
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise RecordTooLarge(f"the ledger takes no record as large as this one: {error}") from error
                raise LedgerUnavailable(f"ledger not written: {error}") from error
            except BufferError as error:
                raise LedgerUnavailable(f"ledger not written: {error}") from error
        deadline = time.monotonic() + self._timeout + 1
        for _ in records:
            if not left.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise LedgerUnavailable("the ledger did not acknowledge in time; whether it was written is unknown")
        return [self._verdict(place, deadline + self._timeout) for place in written]

    def _verdict(self, place: Place | str | None, deadline: float) -> bool:
        if not isinstance(place, tuple):
            raise LedgerUnavailable(place or "ledger not written")
        with self._lock:
            if place in self._verdicts:
                return self._verdicts.pop(place)
            if self._failure is not None:
                raise LedgerUnavailable(f"a record was written to the ledger and can't be read: {self._failure}")
            fate = self._waiting[place] = Future()
        try:
            return fate.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise LedgerUnavailable("a record was written to the ledger and was not read back in time") from error

    def _deliver(self) -> None:
        while not self._stopping.is_set():
            poll_producer(self._producer, _POLL_SECONDS)

    # -- following -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # the thread is the last that could tell
            log.exception("ledger_follower_died", topic=self._topic)
            with self._lock:
                self._failure = error
                for fate in self._waiting.values():
                    fate.set_exception(LedgerUnavailable(f"the ledger can't be read any more: {error}"))
                self._waiting.clear()
        finally:
            self._loaded.set()

    def _follow(self) -> None:
        consumer = Consumer(
            {
                **watched(self._properties),
                "group.id": f"{self._topic}-view",  # never joined and never committed: every process reads all
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",  # a gap in the ledger is a fault, not something to jump over
                "fetch.wait.max.ms": 200,
            }
        )
        try:
            self._load(consumer)
            self._loaded.set()
            while not self._stopping.is_set():
                # One by one: consume() would wait for a batch to fill, and a writer is waiting for this record.
                message = consumer.poll(_POLL_SECONDS)
                self._last_poll = time.monotonic()
                if message is not None:
                    self._take([message])
        finally:
            consumer.close()

    def _load(self, consumer: Consumer) -> None:
        found = consumer.list_topics(self._topic, timeout=self._timeout).topics[self._topic]
        if found.error is not None:
            raise LedgerUnavailable(str(found.error))
        if len(found.partitions) != self._partitions:
            raise LedgerUnavailable(
                f"it has {len(found.partitions)} partitions, USAGE_EVENT_PARTITIONS is {self._partitions}"
            )
        ends: dict[int, int] = {}
        for partition in range(self._partitions):
            place = TopicPartition(self._topic, partition)
            low, ends[partition] = log_bounds(consumer, place, self._timeout)
            if low != 0:
                raise LedgerUnavailable(f"partition {partition} begins at offset {low}: records are missing")
            self._next_offsets[partition] = 0
        consumer.assign([TopicPartition(self._topic, partition, 0) for partition in ends])
        self._last_poll = time.monotonic()
        while any(self._next_offsets[partition] < end for partition, end in ends.items()):
            if self._stopping.is_set():
                return
            messages = consumer.consume(_LOAD_BATCH, _POLL_SECONDS)
            if messages:
                self._last_poll = time.monotonic()
            self._take(messages)

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            error = message.error()
            if error is None:
                self._fold(message)
            elif error.fatal() or error.code() in LOST_PLACE:
                if error.code() in LOST_PLACE:
                    end_process_of_lost_log(self._topic, error)
                raise KafkaException(error)
            else:  # librdkafka goes on by itself
                log.warning("ledger_read_error", error=str(error))

    def _fold(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        try:
            record = decode(message.value() or b"")
        except UnreadableLedgerRecord as error:
            log.warning("ledger_record_unreadable", partition=partition, offset=offset, error=str(error))
            self._next_offsets[partition] = offset + 1
            return
        in_force = False
        with self._loop.one(f"{partition}/{offset}"):
            in_force = self.state.apply(record)
        self._next_offsets[partition] = offset + 1
        if record.writer == self.writer:
            with self._lock:
                fate = self._waiting.pop((partition, offset), None)
                if fate is None:
                    self._verdicts[partition, offset] = in_force
            if fate is not None:
                fate.set_result(in_force)
