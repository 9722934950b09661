"""A log in Kafka ⇄ memory: a thread loads it and follows it; an append is answered by its record's verdict.

Two writers may disagree, and the log's order decides: a writer appends, waits until the follower has applied its own
record, and learns whether the record is valid. Every process that applies the same log comes to the same verdict.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from runtime.kafka.client_watch import end_process_of_lost_log, poll_producer, watched
from runtime.kafka.clients import Properties, create_producer, create_reader, is_lost_offset, raw
from runtime.kafka.log_ends import log_bounds

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_POLL_AGE_SECONDS_MAX = 5.0
_LOAD_BATCH = 10_000
_VERDICTS_MAX = 100_000

V = TypeVar("V")
Coordinates = tuple[int, int]
"""(partition, offset) of a record."""


class LogUnavailable(Exception):
    """The log could not be read or written in time. Whether a record was written is unknown then.

    Each log has its own subclass.
    """


class RecordTooLarge(ValueError):
    """Kafka takes no record of this size: this record can't be written, others can."""


class LogRecord(NamedTuple):
    """A record as it was read. value: b"" for a tombstone."""

    partition: int
    offset: int
    value: bytes


class FollowedLog(Generic[V]):
    """A log as one process has it. Thread-safe.

    apply: called with each record, each partition's in order, in the follower's thread; returns the record's verdict.
        An exception ends the follower.
    name: of the log in messages and thread names.
    unavailable: the exception that this log raises.
    partitions: how many the log has.
    more_partitions: whether its topic may have more; they are not read.
    seconds: until a request to Kafka fails, and until a load without progress fails.
    delivery_seconds: until a record without an acknowledgement fails.
    producer: more properties of the producer.
    """

    def __init__(
        self,
        properties: Properties,
        topic: str,
        apply: Callable[[LogRecord], V],
        *,
        name: str,
        unavailable: type[LogUnavailable],
        partitions: int,
        more_partitions: bool = False,
        seconds: float,
        delivery_seconds: float,
        producer: Properties | None = None,
    ) -> None:
        self._properties = properties
        self._topic = topic
        self._apply = apply
        self._name = name
        self._unavailable = unavailable
        self._partitions = partitions
        self._more_partitions = more_partitions
        self._seconds = seconds
        self._delivery_seconds = delivery_seconds
        self._producer_properties = producer or {}
        self._next_offsets: dict[int, int] = {}
        self._lock = threading.Lock()  # of the next five
        self._producer: Producer | None = None
        self._unacknowledged = 0  # own records
        self._verdicts: dict[Coordinates, V] = {}  # of records that were read before a delivery report named them
        self._waiting: dict[Coordinates, Future[V]] = {}  # own records that are acknowledged and not read yet
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._loaded = threading.Event()
        self._polled_at = 0.0
        self._follower = threading.Thread(target=self._run, name=name, daemon=True)
        self._deliverer = threading.Thread(target=self._deliver, name=f"{name}-delivery", daemon=True)

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns when every record that was in the log at this call is applied.

        Raises LogUnavailable when the log can't be read: no broker, no topic, or its beginning is missing.
        """
        self._follower.start()
        # Loading takes as long as the log is long; bounded is the time without progress.
        while not self._loaded.wait(_POLL_SECONDS):
            if self._polled_at and time.monotonic() - self._polled_at > self._seconds:
                self._failure = TimeoutError("no progress")
                break
        if self._failure is not None:
            self.stop()
            raise self._unavailable(f"{self._name} {self._topic} could not be read: {self._failure}") from self._failure

    def stop(self) -> None:
        """Deliver what was appended, and end the threads."""
        if self._producer is not None:
            self._producer.flush(self._seconds)
        self._stopping.set()
        for thread in (self._follower, self._deliverer):
            if thread.is_alive():
                thread.join(self._seconds)

    @property
    def next_offsets(self) -> dict[int, int]:
        """Partition → offset up to which every record is applied."""
        return dict(self._next_offsets)

    def check(self) -> str | None:
        """None while the log is being followed, else why not: for /readyz."""
        if self._failure is not None:
            return f"the {self._name} is not followed: {self._failure}"
        if not self._loaded.is_set():
            return f"the {self._name} is being read"
        is_polled = time.monotonic() - self._polled_at < _POLL_AGE_SECONDS_MAX
        return None if is_polled else f"the {self._name} is not polled"

    # -- appending -----------------------------------------------------------------------------------------------------

    def append(self, partition: int, key: bytes | None, value: bytes) -> Future[V]:
        """Write without waiting. The future is the record's verdict; its record is applied by then.

        The future raises LogUnavailable. Raises LogUnavailable when the client's queue is full, and RecordTooLarge.
        """
        verdict: Future[V] = Future()

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._delivered(verdict, error, message)

        producer = self._writer()
        try:
            producer.produce(self._topic, value, key, partition, on_delivery=delivered)
        except BufferError as error:
            self._forget_one()
            raise self._unavailable(f"{self._name} not written: {error}") from error
        except KafkaException as error:
            self._forget_one()
            if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise RecordTooLarge(f"the {self._name} takes no record as large as this one: {error}") from error
            raise self._unavailable(f"{self._name} not written: {error}") from error
        return verdict

    def verdict_of(self, appended: Future[V], deadline: float) -> V:
        """Wait for an append's verdict. deadline: of time.monotonic(). Raises LogUnavailable."""
        try:
            return appended.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise self._unavailable(
                f"the {self._name} did not answer in time; whether the record was written is unknown"
            ) from error

    def _delivered(self, verdict: Future[V], error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        found: V | LogUnavailable
        with self._lock:
            self._unacknowledged -= 1
            if error is not None or partition is None or offset is None:
                found = self._unavailable(f"{self._name} not written: {error}")
            elif (partition, offset) in self._verdicts:
                found = self._verdicts.pop((partition, offset))
            elif self._failure is not None:
                found = self._unavailable(f"the {self._name} can't be read any more: {self._failure}")
            # The offset is negative when the broker only recognised a repetition of an idempotent write.
            elif offset < self._next_offsets.get(partition, 0):
                found = self._unavailable("the verdict on the record is no longer known; read the object again")
            else:
                self._waiting[partition, offset] = verdict
                return
            if not self._unacknowledged:
                self._verdicts.clear()
        if isinstance(found, LogUnavailable):
            verdict.set_exception(found)
        else:
            verdict.set_result(found)

    def _writer(self) -> Producer:
        """The producer, with one more record counted as unacknowledged. A process that only reads never creates it."""
        with self._lock:
            if self._producer is None:
                more = {"linger.ms": 0, **self._producer_properties}
                self._producer = create_producer(
                    watched(self._properties), delivery_seconds=self._delivery_seconds, more=more
                )
                self._deliverer.start()
            self._unacknowledged += 1
            return self._producer

    def _forget_one(self) -> None:
        with self._lock:
            self._unacknowledged -= 1

    def _deliver(self) -> None:
        assert self._producer is not None
        while not self._stopping.is_set():
            poll_producer(self._producer, _POLL_SECONDS)

    # -- following -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # nothing else would report the end of this thread
            log.exception(f"{self._name}_follower_died", topic=self._topic)
            with self._lock:
                self._failure = error
                waiting, self._waiting = list(self._waiting.values()), {}
            for verdict in waiting:
                verdict.set_exception(self._unavailable(f"the {self._name} can't be read any more: {error}"))
        finally:
            self._loaded.set()

    def _follow(self) -> None:
        # Every process reads all. A gap in the log is a fault, so the reader reports it instead of skipping it.
        more = {"fetch.wait.max.ms": 200}
        consumer = create_reader(watched(self._properties), f"{self._topic}-view", more=more)
        try:
            self._load(consumer)
            self._loaded.set()
            while not self._stopping.is_set():
                # One by one: consume() waits for a batch to fill, and a writer waits for this record.
                message = consumer.poll(_POLL_SECONDS)
                self._polled_at = time.monotonic()
                if message is not None:
                    self._take([message])
        finally:
            consumer.close()

    def _load(self, consumer: Consumer) -> None:
        topic = consumer.list_topics(self._topic, timeout=self._seconds).topics[self._topic]
        if topic.error is not None:
            raise self._unavailable(str(topic.error))
        found = len(topic.partitions)
        if found < self._partitions or (found > self._partitions and not self._more_partitions):
            raise self._unavailable(f"it has {found} partitions instead of {self._partitions}")
        ends: dict[int, int] = {}
        for partition in range(self._partitions):
            low, ends[partition] = log_bounds(consumer, TopicPartition(self._topic, partition), self._seconds)
            if low != 0:
                raise self._unavailable(f"partition {partition} begins at offset {low}: records are missing")
            self._next_offsets[partition] = 0
        consumer.assign([TopicPartition(self._topic, partition, 0) for partition in ends])
        self._polled_at = time.monotonic()
        while any(self._next_offsets[partition] < end for partition, end in ends.items()):
            if self._stopping.is_set():
                return
            self._take(consumer.consume(_LOAD_BATCH, _POLL_SECONDS))
        self._polled_at = time.monotonic()

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            error = message.error()
            if error is None:
                self._take_one(message)
            elif is_lost_offset(error):
                end_process_of_lost_log(self._topic, error)
                raise KafkaException(error)
            elif error.fatal():
                raise KafkaException(error)
            else:  # librdkafka retries by itself
                log.warning(f"{self._name}_read_error", error=str(error))

    def _take_one(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        verdict = self._apply(LogRecord(partition, offset, raw(message.value()) or b""))
        self._polled_at = time.monotonic()  # progress: the records of one batch may take longer than a request may
        with self._lock:
            # After apply: a reader that waits for an offset finds everything that follows from it done.
            self._next_offsets[partition] = offset + 1
            waiting = self._waiting.pop((partition, offset), None)
            # The report of an own record may come after the record itself.
            if waiting is None and self._unacknowledged:
                self._verdicts[partition, offset] = verdict
                if len(self._verdicts) > _VERDICTS_MAX:
                    self._verdicts.pop(next(iter(self._verdicts)))
        if waiting is not None:
            waiting.set_result(verdict)
