"""usage.events → ClickHouse: insert, then commit.

A crash between the two repeats rows, never loses them, and identity collapses what is repeated. At each assignment
the sink starts from the lower of the group's commit and ClickHouse's contiguous coverage, so that a ClickHouse restored
from an older copy is filled again. Messages are not decoded: see avro_splice.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from runtime.health import Check, HealthServer
from runtime.signals import stop_on_signals
from runtime.topics import check_partitions, describe_topic
from schemas.dead_letter import DeadLetter, base64_text
from schemas.settings import Settings
from schemas.topics import SINK_GROUP, USAGE_EVENTS, topic_name
from stream_processors import avro_splice, metrics
from stream_processors.avro_splice import Unreadable
from stream_processors.dead_letters import DeadLetters
from stream_processors.projections import Projections
from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, connect, server_code
from warehouse.coverage import EXPIRED, NO_MESSAGE, coverage
from warehouse.epochs import register_epoch

log = structlog.get_logger(__name__)

MESSAGES_PER_INSERT_MAX = 1_000
BYTES_PER_INSERT_MAX = 64 * 1024 * 1024
WAIT_SECONDS = 0.2  # for more messages while there are fewer than an insert takes
_RETRY_SECONDS_MAX = 5.0
_CLOSE_SECONDS = 10.0
_TOPIC_CHECK_SECONDS = 10.0
_POLL_AGE_SECONDS_MAX = 30.0

# ClickHouse's codes (system.errors) that say: these bytes are at fault. All others, away or full or misconfigured, are
# waited out, since setting a good message aside would be worse than standing still and saying so.
_DATA_CODES = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        32,  # ATTEMPT_TO_READ_AFTER_EOF
        33,  # CANNOT_READ_ALL_DATA
        69,  # ARGUMENT_OUT_OF_BOUND
        117,  # INCORRECT_DATA
        131,  # TOO_LARGE_STRING_SIZE
        190,  # SIZES_OF_ARRAYS_DONT_MATCH
        407,  # DECIMAL_OVERFLOW
        469,  # VIOLATED_CONSTRAINT
        128,  # TOO_LARGE_ARRAY_SIZE
        1001,  # STD_EXCEPTION: Avro's reader throws its own
    }
)


class TopicReplaced(Exception):
    """usage.events was made again while we read it; a new process starts its new epoch."""


class AssignmentChanged(Exception):
    """Partitions were taken away or given; whoever has them now reads on from the last commit."""


@dataclass(slots=True)
class Batch:
    """What one insert covers. reached: partition → next offset when all of it is dealt with."""

    messages: list[avro_splice.Message] = field(default_factory=list[avro_splice.Message])
    letters: list[DeadLetter] = field(default_factory=list[DeadLetter])
    gaps: list[tuple[int, int, int, str]] = field(default_factory=list[tuple[int, int, int, str]])
    reached: dict[int, int] = field(default_factory=dict[int, int])
    size: int = 0


class Sink:
    """One consumer of the group. run() until told to stop; any exception ends the process, which is started again."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._topic = topic_name(settings, USAGE_EVENTS)
        state = check_partitions(settings)
        self._partitions, self._topic_id = state.partitions, state.topic_id
        self._epoch = 0
        self._client: Client | None = None
        self._dead_letters = DeadLetters(settings)
        self._next: dict[int, int] = {}  # partition → next offset to deal with, of the partitions that are ours
        self._doubted: dict[int, int] = {}  # partition → offset that was asked for again
        self._sent_back: set[int] = set()  # partitions whose messages in hand come again
        self._assignment = 0
        self._problem: str | None = "starting"
        self._polled_at = time.monotonic()
        self._topic_checked_at = time.monotonic()
        self._consumer = Consumer(
            {
                **settings.kafka_properties,
                "group.id": topic_name(settings, SINK_GROUP),
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "session.timeout.ms": 10_000,
                "heartbeat.interval.ms": 2_000,
                "fetch.message.max.bytes": 16 * 1024 * 1024,
                "queued.max.messages.kbytes": 128 * 1024,
                "fetch.wait.max.ms": 100,
            }
        )

    @property
    def checks(self) -> dict[str, Check]:
        return {"clickhouse": lambda: self._problem, "kafka": self._kafka_problem}

    def _kafka_problem(self) -> str | None:
        silent = time.monotonic() - self._polled_at
        return f"not polled for {silent:.0f} s" if silent > _POLL_AGE_SECONDS_MAX else None

    def run(self) -> None:
        try:
            self._epoch = self._registered_epoch()
            self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked)
            while not self._stopping.is_set():
                messages = self._consumer.consume(MESSAGES_PER_INSERT_MAX, WAIT_SECONDS)
                self._polled_at = time.monotonic()
                self._check_topic()
                assignment = self._assignment
                for batch in self._batches(messages):
                    # What is left in hand may be from before: the log gives it again, to whoever it belongs to now.
                    if not self._finish(batch) or self._assignment != assignment:
                        break
                self._measure_lag()
        finally:
            self._consumer.close()

    # -- assignment ----------------------------------------------------------------------------------------------------

    def _registered_epoch(self) -> int:
        while True:
            try:
                return register_epoch(self._connected(), self._topic_id)
            except (WarehouseUnavailable, ClickHouseError, OSError) as error:
                self._wait_out(error, 0)
                if self._stopping.is_set():
                    raise

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assignment += 1
        consumer.assign([TopicPartition(p.topic, p.partition, self._start(consumer, p)) for p in partitions])
        log.info("assigned", starts=dict(sorted(self._next.items())))
        self._problem = None

    def _start(self, consumer: Consumer, partition: TopicPartition) -> int:
        """The lower of commit and coverage, but not before the log begins."""
        (committed,) = consumer.committed([TopicPartition(partition.topic, partition.partition)], timeout=10)
        low, _ = consumer.get_watermark_offsets(TopicPartition(partition.topic, partition.partition), timeout=10)
        covered = self._covered()[partition.partition]
        start = covered if committed.offset < 0 else min(covered, committed.offset)
        self._next[partition.partition] = start
        return max(start, low)

    def _covered(self) -> dict[int, int]:
        attempt = 0
        while True:
            try:
                return dict(coverage(self._connected(), self._epoch, self._partitions).offsets)
            except (WarehouseUnavailable, ClickHouseError, OSError) as error:
                self._drop_client()
                self._wait_out(error, attempt)
                attempt += 1
                if self._stopping.is_set():
                    raise

    def _revoked(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assignment += 1
        for partition in partitions:
            self._next.pop(partition.partition, None)

    def _check_topic(self) -> None:
        """Once in a while: is it still the topic that the epoch stands for?"""
        if time.monotonic() - self._topic_checked_at < _TOPIC_CHECK_SECONDS:
            return
        self._topic_checked_at = time.monotonic()
        try:
            found = describe_topic(self._settings, USAGE_EVENTS)
        except KafkaException as error:
            log.warning("topic_not_described", error=str(error))
            return
        if found.topic_id != self._topic_id:
            raise TopicReplaced(f"{self._topic} is now {found.topic_id}, it was {self._topic_id}")

    # -- reading -------------------------------------------------------------------------------------------------------

    def _batches(self, messages: Sequence[Message]) -> Iterator[Batch]:
        """Messages as inserts of bounded size; each is to be finished before the next is made."""
        batch = Batch()
        self._sent_back.clear()
        for message in messages:
            if error := message.error():
                if error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:  # pyright: ignore[reportPrivateUsage]
                    raise KafkaException(error)
                log.warning("read_error", error=str(error))
                continue
            self._add(batch, message)
            if batch.size >= BYTES_PER_INSERT_MAX:
                yield batch
                batch = Batch()
        if batch.reached:
            yield batch

    def _add(self, batch: Batch, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        assert partition is not None, "a message has a place"
        assert offset is not None, "a message has a place"
        expected = batch.reached.get(partition, self._next.get(partition))
        # Buffered from before a rebalance, or dealt with.
        if expected is None or offset < expected or partition in self._sent_back:
            return
        if offset > expected:
            if self._doubted.get(partition) != expected:
                # Never skip ahead on one sighting: ask the log again for the offset that is missing.
                self._doubted[partition] = expected
                self._sent_back.add(partition)
                self._consumer.seek(TopicPartition(self._topic, partition, expected))
                return
            # Asked for it, Kafka gave a later one: deleted before we came, or the marker of a transaction.
            reason = EXPIRED if partition not in batch.reached and self._is_start(partition, offset) else NO_MESSAGE
            batch.gaps.append((partition, expected, offset, reason))
        batch.reached[partition] = offset + 1
        key = message.key()
        raw_key = key.encode() if isinstance(key, str) else key
        payload = message.value()
        body = payload.encode() if isinstance(payload, str) else payload
        try:
            read = avro_splice.read_head(self._epoch, partition, offset, body, raw_key)
        except Unreadable as error:
            batch.letters.append(self._letter(partition, offset, raw_key, body, error.code, str(error)))
            return
        batch.messages.append(read)
        batch.size += len(read.payload)

    def _is_start(self, partition: int, offset: int) -> bool:
        low, _ = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        return low >= 0 and offset <= low

    def _letter(
        self, partition: int, offset: int, key: bytes | None, payload: bytes | None, reason: str, detail: str
    ) -> DeadLetter:
        metrics.DEAD_LETTERS.labels(reason).inc()
        log.error("dead_letter", partition=partition, offset=offset, reason=reason, detail=detail[:300])
        return DeadLetter(
            self._topic,
            self._epoch,
            partition,
            offset,
            reason,
            detail[:1000],
            base64_text(key),
            base64_text(payload),
            time.time_ns() // 1000,
        )

    # -- writing -------------------------------------------------------------------------------------------------------

    def _finish(self, batch: Batch) -> bool:
        """Insert, set aside what can't be read, commit; False when it is left to whoever has the partitions now.

        They start from the last commit, and rows that are there already collapse.
        """
        assignment, started = self._assignment, time.perf_counter()
        try:
            for of_schema in avro_splice.by_schema(batch.messages).values():
                self._insert(of_schema, batch.letters, assignment)
            if batch.letters:
                self._dead_letters.write(batch.letters)
            self._account(batch, assignment)
        except AssignmentChanged:
            log.info("batch_left_to_others")
            return False
        metrics.INSERT_SECONDS.observe(time.perf_counter() - started)
        offsets = [TopicPartition(self._topic, p, o) for p, o in batch.reached.items() if p in self._next]
        self._next.update({p: o for p, o in batch.reached.items() if p in self._next})
        if offsets:
            try:
                # Commit after insert: a crash repeats rows, never loses them.
                self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:  # rebalanced, or the broker is away: the next commit covers it
                log.warning("commit_failed", error=str(error))
        now_us = time.time_ns() // 1000
        for message in batch.messages:
            metrics.ROWS.inc(message.events)
        if batch.messages:
            metrics.BYTES.inc(batch.size)
            metrics.STORED_SECONDS.observe(max(0, now_us - batch.messages[-1].received_at) / 1e6)
        return True

    def _insert(self, messages: Sequence[avro_splice.Message], letters: list[DeadLetter], assignment: int) -> None:
        """Insert messages of one schema; one that ClickHouse refuses is found by bisection and set aside alone."""
        error = self._try_until_answered(
            lambda client: client.raw_insert(
                "usage_batches_in",
                insert_block=b"".join(avro_splice.container(messages, secrets.token_bytes(avro_splice.SYNC_LENGTH))),
                fmt="Avro",
            ),
            assignment,
        )
        if error is None:
            return
        if len(messages) == 1:
            (poison,) = messages
            letters.append(
                self._letter(poison.partition, poison.offset, poison.key, poison.payload, "refused", str(error))
            )
            return
        middle = len(messages) // 2
        self._insert(messages[:middle], letters, assignment)
        self._insert(messages[middle:], letters, assignment)

    def _account(self, batch: Batch, assignment: int) -> None:
        """A row in ingest_batches for each offset that has no events, so that coverage stays contiguous."""
        rows = [(letter.partition, letter.offset, letter.offset + 1, letter.reason) for letter in batch.letters]
        rows += batch.gaps
        if not rows:
            return
        now = datetime.now(UTC)
        names = ["kafka_epoch", "kafka_partition", "kafka_offset", "next_offset", "batch_id", "received_at"]
        names += ["stored_at", "events", "value_sum", "reason"]
        data = [[self._epoch, p, first, after, bytes(16), now, now, 0, 0, reason] for p, first, after, reason in rows]
        error = self._try_until_answered(
            lambda client: client.insert("ingest_batches", data, column_names=names), assignment
        )
        if error is not None:
            raise error

    def _try_until_answered(self, work: Callable[[Client], object], assignment: int) -> ClickHouseError | None:
        """Do it until ClickHouse has done it (None) or says that the data is at fault (its error).

        While it is away or full: unready, trying again with growing waits, polled so that the group keeps us. Raises
        AssignmentChanged when the partitions are not ours any more, or when we are to stop.
        """
        attempt = 0
        while True:
            try:
                work(self._connected())
            except ClickHouseError as error:
                if server_code(error) in _DATA_CODES:
                    self._problem = None
                    return error
                self._drop_client()
                self._wait_out(error, attempt)
            except (WarehouseUnavailable, OSError) as error:
                self._drop_client()
                self._wait_out(error, attempt)
            else:
                self._problem = None
                return None
            attempt += 1
            if self._assignment != assignment or self._stopping.is_set():
                raise AssignmentChanged

    def _wait_out(self, error: Exception, attempt: int) -> None:
        self._problem = f"ClickHouse: {' '.join(str(error).split())[:300]}"
        log.warning("clickhouse_waited_for", error=self._problem, attempt=attempt)
        until = time.monotonic() + min(_RETRY_SECONDS_MAX, 0.1 * 2 ** min(attempt, 10))
        paused = self._consumer.assignment()
        if paused:
            self._consumer.pause(paused)
        while time.monotonic() < until and not self._stopping.is_set():
            if paused:
                late = self._consumer.poll(0.05)  # keeps our place in the group; paused, so hardly anything comes
                if late is not None and not late.error():  # assigned just now: it is to come again
                    self._consumer.seek(TopicPartition(self._topic, late.partition() or 0, late.offset() or 0))
            else:
                time.sleep(0.05)
            self._polled_at = time.monotonic()
        if paused:
            self._consumer.resume([p for p in self._consumer.assignment() if p.partition in self._next])

    def _connected(self) -> Client:
        if self._client is None:
            self._client = connect(self._settings)
        return self._client

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _measure_lag(self) -> None:
        for partition, reached in self._next.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            metrics.SINK_LAG.labels(partition).set(max(0, high - reached))


def run(settings: Settings) -> int:
    """Store events and project the other logs until SIGTERM or SIGINT. The exit code."""
    stopping = stop_on_signals()
    sink = Sink(settings, stopping)
    projections = Projections(settings, lambda: connect(settings))
    checks = {**sink.checks, "projections": projections.check}
    with HealthServer(settings.metrics_host, settings.sink_metrics_port, checks):
        projections.start()
        try:
            sink.run()
        finally:
            stopping.set()
            projections.stop()
    return 0 if projections.failure is None else 1
