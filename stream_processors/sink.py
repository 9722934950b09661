"""usage.events → ClickHouse: insert, then commit.

A crash between the two repeats rows, never loses them, and identity collapses what is repeated. At each assignment
the sink starts from the lower of the group's commit and ClickHouse's contiguous coverage, so that a ClickHouse restored
from an older copy is filled again. Messages are not decoded: see avro_splice.

One thread does all of it, in this order: read, make sure of the topic, insert, set aside, commit. Callbacks of the
consumer only note what changed; what may take time is done by the loop.

A backup copies ClickHouse's tables at different instants. So at its first assignment, and after ClickHouse was away,
the sink starts before coverage where one of the tables ends earlier than ingest_batches says.

Where several servers share usage, each has a sink of its own, with a group of its own that reads what the server has:
coverage, commits, marks and retries are of that server alone, and one that is away holds up nobody else.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from catalog.record import Topology
from catalog.store import CatalogConflict, CatalogStore, CatalogUnavailable
from runtime.health import Check, HealthServer
from runtime.kafka.acked_producer import NotAcknowledged
from runtime.kafka.admin import TopicMismatch, TopicState, admin_client, check_partitions, create_topics, describe_topic
from runtime.kafka.client_watch import TopicWatch, watched
from runtime.kafka.clients import create_member, is_lost_offset
from runtime.kafka.durability import warn_of_weak_topics
from runtime.kafka.log_ends import log_bounds
from runtime.signals import stop_on_signals
from schemas.dead_letter import DeadLetter
from schemas.log_break import LogBreak, break_id, starts_of
from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX, USAGE_EVENTS, sink_group
from schemas.usage_void import decode as decode_voids
from schemas.usage_void import is_void
from stream_processors import avro_splice, inserts, metrics
from stream_processors.avro_splice import Unreadable
from stream_processors.dead_letters import DeadLetters, dead_letter
from stream_processors.log_places import Gap, LogTooShort, Start, starting_place
from stream_processors.log_probe import LogProbe
from stream_processors.projections import Projections
from stream_processors.reconcile_service import ReconcileService
from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, server_code
from warehouse.coverage import EARLIER_EPOCH, EXPIRED, NO_MESSAGE, checkpoint, last_stored, recounted_coverage
from warehouse.epochs import Epochs, EpochsExhausted, break_name, lookup_epochs, register_epoch
from warehouse.epochs import epochs as numbered
from warehouse.one_store import is_marked, leave_mark
from warehouse.own_objects import foreign_object
from warehouse.shard_epochs import register_everywhere
from warehouse.shards import connect_shard, open_shards, partitions_at
from warehouse.table_ends import Stop, first_stops, started_at

log = structlog.get_logger(__name__)

MESSAGES_PER_INSERT_MAX = 10_000
INSERT_INTERVAL_SECONDS = 0.25
_IDLE_SECONDS = 0.25
_REQUEST_SECONDS = 10.0
_RETRY_SECONDS_MAX = 5.0
_TOPIC_CHECK_SECONDS = 5.0
_PLACES_CHECK_SECONDS = 10.0
_CHECKPOINT_SECONDS = 60.0
_POLL_AGE_SECONDS_MAX = 30.0
_REPLICA_SECONDS_MAX = 3.0
_SHORT_SECONDS = 5.0
_CLOCK_SECONDS = 2  # a start is computed from two clocks of whole seconds
_UNKNOWN_TABLE = 60
_END = KafkaError._PARTITION_EOF  # pyright: ignore[reportPrivateUsage]


class TopicReplaced(Exception):
    """usage.events was made again while we read it; a new process starts its new epoch."""


class EngineRestored(Exception):
    """ClickHouse has less than it had: an older copy took its place. A new process fills it again, projections too."""


class Interrupted(Exception):
    """Partitions were taken away or given, or we are to stop: whoever has them next reads on from the last commit."""


@dataclass(slots=True)
class Batch:
    """What one insert covers. reached: partition → next offset when all of it is dealt with."""

    messages: list[avro_splice.Message] = field(default_factory=list[avro_splice.Message])
    letters: list[DeadLetter] = field(default_factory=list[DeadLetter])
    gaps: list[Gap] = field(default_factory=list[Gap])
    reached: dict[int, int] = field(default_factory=dict[int, int])


OnVoids = Callable[[int, int, Iterable[tuple[str, str, str]]], None]
"""partition, offset, and organization_id, customer_id and event_name of each tombstone of a stored message."""


class Sink:
    """One consumer of the group. run() until told to stop; any exception ends the process, which is started again."""

    def __init__(
        self, settings: Settings, topic: TopicState, stopping: threading.Event, catalog: CatalogStore, shard: int = 0
    ) -> None:
        """shard: which of the servers it fills, from 0."""
        self._settings = settings
        self._shard = shard
        self._mine: Collection[int] = ()  # partitions that the server has
        self._catalog = catalog
        self._probe = LogProbe(settings, topic.name)
        self.on_voids: OnVoids | None = None
        self._stopping = stopping
        self._topic = topic
        self._admin = admin_client(settings)
        self._epochs = Epochs(topic.topic_id, 0)
        self._client: Client | None = None
        self._dead_letters = DeadLetters(settings)
        self._given: list[int] | None = None  # partitions that are ours, and not yet begun
        self._next: dict[int, int] = {}  # partition → next offset to deal with, of those begun
        self._lost_place: KafkaError | None = None  # came while something else was waited for
        self._doubted: dict[int, int] = {}  # partition → offset that was asked for again
        self._uncommitted: dict[int, int] = {}  # partition → next offset, dealt with and not yet committed
        self._assignment = 0  # grows with every change
        self._attempts = 0  # in a row that failed
        self._short_since: float | None = None  # since when ClickHouse has less than it had, monotonic seconds
        self._inserted_at = 0.0
        self._places: dict[int, int] = {}  # partition → next offset when it was looked at last
        self._places_checked_at = time.monotonic()
        self._polled_at = self._topic_checked_at = time.monotonic()
        self._doubts_tables = True  # they may be a backup's, of different instants
        self._server_starts: dict[str, int] = {}  # host → when its server started, seconds since 1970
        self._mark: uuid.UUID | None = None  # left in ClickHouse when it was looked at for holes
        self._checkpoint_at = 0.0  # when ClickHouse is to be looked at for holes next, monotonic seconds
        self._problem: str | None = "starting"
        self._kafka_problem: str | None = None
        self._consumer = create_member(
            watched(settings.kafka_properties),
            sink_group(settings, shard),
            {
                "enable.auto.offset.store": False,
                # What is gone from the log is a fault to be told, not something to jump over.
                "auto.offset.reset": "error",
                # So that offsets without a message are seen at the log's end too.
                "enable.partition.eof": True,
                # What a killed sink leaves behind is another's after this time.
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 1_500,
                "fetch.message.max.bytes": 32 * MESSAGE_BYTES_MAX,
                "queued.max.messages.kbytes": 128 * 1024,
                "fetch.wait.max.ms": 200,
                "error_cb": self._note_error,
            },
        )

    # -- health --------------------------------------------------------------------------------------------------------

    @property
    def checks(self) -> dict[str, Check]:
        of_shard = f"_shard_{self._shard + 1}" if self._shard else ""
        return {f"clickhouse{of_shard}": lambda: self._problem, f"kafka{of_shard}": self._kafka_check}

    def _kafka_check(self) -> str | None:
        silent = time.monotonic() - self._polled_at
        return f"not polled for {silent:.0f} s" if silent > _POLL_AGE_SECONDS_MAX else self._kafka_problem

    def _note_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # pyright: ignore[reportPrivateUsage]
            self._kafka_problem = str(error)
            log.warning("kafka_away", error=str(error))

    def partitions(self) -> list[int]:
        """Those that are read now. Any thread may ask."""
        return list(self._next)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises TopicReplaced, EngineRestored, EpochsExhausted, NotAcknowledged, KafkaException."""
        try:
            self._register_epoch()
            self._consumer.subscribe(
                [self._topic.name], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
            )
            while not self._stopping.is_set():
                try:
                    self._step()
                except Interrupted:
                    log.info("left_to_the_next", assignment=self._assignment)
        except Interrupted:
            log.info("stopped_before_start")
        finally:
            self._consumer.close()
            self._probe.close()
            self._drop_client()

    def _step(self) -> None:
        if self._lost_place is not None:
            self._begin_again()
        if self._given is not None:
            self._begin(self._given)
        self._check_places()
        messages = self._read()
        if not messages:
            self._commit()
            self._check_at_times()
            return
        batch = self._batch(messages)
        if batch.reached:
            self._finish(batch)
            self._measure_lag()

    # -- Kafka ---------------------------------------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assignment += 1
        self._lost_place = None
        # A group is given all partitions: those of other servers are read by the others' groups.
        self._given = sorted(partition.partition for partition in partitions if partition.partition in self._mine)
        # Where to begin is found by the loop: the answer may take as long as ClickHouse is away.
        consumer.assign([])

    def _revoked(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._assignment += 1
        self._lost_place = None
        self._given = None
        self._next.clear()
        self._uncommitted.clear()
        for partition in self._mine:
            with suppress(KeyError):
                metrics.SINK_LAG.remove(partition)
        consumer.unassign()

    def _begin(self, given: Sequence[int]) -> None:
        """Start reading the partitions that were given; what can't be read any more is told and accounted for."""
        self._next.clear()
        self._doubted.clear()
        short_since: float | None = None
        while True:
            try:
                patient = short_since is None or time.monotonic() - short_since < _SHORT_SECONDS
                self._find_breaks(given, patient=patient)
                covered = self._covered(given)
                stops = self._stops(self._connected(), given) if self._doubts_tables else {}
                starts = {partition: self._start(partition, covered[partition], stops) for partition in given}
                break
            except (ClickHouseError, WarehouseUnavailable, OSError) as error:
                self.wait(error)
            except LogTooShort as error:
                short_since = short_since or time.monotonic()
                self._kafka_problem = str(error)
                self.wait(error)
            except (KafkaException, CatalogUnavailable) as error:
                self._kafka_problem = str(error)
                self.wait(error)
        self._kafka_problem = None
        self._doubts_tables = False
        gone = Batch()
        for partition, start in starts.items():
            self._next[partition] = start.at
            # ClickHouse lost what was committed. The commit goes back with it: rows of one insert become visible in no
            # fixed order, so whoever waits for the log to be stored looks at coverage and commit.
            self._uncommitted[partition] = start.at
            metrics.LOG_ENDS_LOST.labels(partition).set(len(self._epochs.breaks.get(partition, ())))
            self._enter_epoch(gone, partition, start.at - 1, start.at)
            if any(gap.partition == partition for gap in gone.gaps):
                gone.reached[partition] = start.at
            if start.missing is not None:
                log.error("messages_expired_unread", partition=partition, first=start.missing[0], next=start.missing[1])
                gone.gaps.append(Gap(partition, start.missing[0], start.missing[1], EXPIRED))
                gone.reached[partition] = start.at
        if gone.reached:
            self._finish(gone)
        while not self._commit():
            self.wait(KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, "the commit was not answered")))
        self._given = None
        self._problem = None
        self._consumer.assign([TopicPartition(self._topic.name, p, start.at) for p, start in starts.items()])
        self._consumer.resume(self._consumer.assignment())
        log.info("assigned", starts={p: start.at for p, start in starts.items()})

    # -- a log that lost its end ---------------------------------------------------------------------------------------

    def _find_breaks(self, given: Sequence[int], *, patient: bool) -> None:
        """Have every end that the log has lost in catalog and ClickHouse, of which each may lack what the other has.

        patient: a log that is only shorter than what was read may be a broker's that is still catching up. Raises
        LogTooShort while that is waited for, KafkaException, CatalogUnavailable, ClickHouseError, WarehouseUnavailable.
        """
        client = self._connected()
        self._epochs = lookup_epochs(client, self._topic.topic_id)
        for partition in given:
            known = starts_of(self._catalog.view.all(LogBreak), self._topic.topic_id, partition)
            stored = [each.start for each in self._epochs.breaks.get(partition, ())]
            for number, start in enumerate(stored[len(known) :], start=len(known) + 1):
                self._tell_of_break(partition, number, start, start)
            for number, start in enumerate(known[len(stored) :], start=len(stored) + 1):
                self._register(client, break_name(self._topic.topic_id, partition, number, start))
        self._epochs = lookup_epochs(client, self._topic.topic_id)
        for partition in given:
            if (start := self._lost_from(client, partition, patient=patient)) is None:
                continue
            number = len(self._epochs.breaks.get(partition, ())) + 1
            read_to = max(self._committed(partition) or 0, last_stored(client, self._now(partition))[partition])
            log.error("log_lost_its_end", partition=partition, read_to=read_to, goes_on_at=start)
            start = self._tell_of_break(partition, number, start, read_to)
            self._register(client, break_name(self._topic.topic_id, partition, number, start))
        self._epochs = lookup_epochs(client, self._topic.topic_id)

    def _lost_from(self, client: Client, partition: int, *, patient: bool) -> int | None:
        """Where the log goes on with other messages than those that were read; None: it is as it was read."""
        low, high = self._bounds(partition)
        in_log = self._epochs.in_log(partition)
        # The newest epoch is not enough: what was lost may reach back before it.
        ends = [*(start for start, _ in in_log[1:]), high]
        for (start, epoch), end in zip(in_log, ends, strict=True):
            kept = self._probe.kept_to(client, epoch, partition, max(low, start), min(high, end))
            if kept is not None:
                return kept
        _, epoch = in_log[-1]
        stored = last_stored(client, {partition: epoch})[partition]
        read_to = max(stored, self._committed_since(partition))
        if read_to <= high:
            return None
        if patient:
            raise LogTooShort(f"partition {partition} was read up to {read_to}, but the log ends at {high}")
        if stored <= high:  # of an older copy: what it has is as the log has it
            return high
        # What lies between the last message that is as it was stored and the end was set aside: it is read again.
        start, epoch = next(each for each in reversed(in_log) if each[0] < high or each is in_log[0])
        return max(low, min(start, high), self._probe.last_stored_below(client, epoch, partition, high))

    def _tell_of_break(self, partition: int, number: int, start: int, read_to: int) -> int:
        """Write it to the catalog, for everyone; where it goes on by the record that is in force."""
        topic_id = self._topic.topic_id
        record = LogBreak(
            id=break_id(topic_id, partition, number), topic_id=topic_id, partition=partition, number=number,
            start=start, read_to=read_to, created_at=time.time_ns() // 1000,
        )  # fmt: skip
        try:
            return self._catalog.write(record, 0).start
        except CatalogConflict:  # another sink was first
            found = self._catalog.view.get(LogBreak, "", record.id)
            if found is None:
                raise
            return found.start

    def _committed_since(self, partition: int) -> int:
        """The commit, or 0 where it may be of before the log lost its end: then it says nothing of what came after."""
        committed = self._committed(partition) or 0
        name = break_id(self._topic.topic_id, partition, len(self._epochs.breaks.get(partition, ())))
        newest = self._catalog.view.get(LogBreak, "", name)
        return 0 if newest is not None and committed <= newest.read_to else committed

    def _now(self, partition: int) -> dict[int, int]:
        """The partition's epoch of now, as last_stored takes it."""
        return {partition: self._epochs.of(partition)[-1][1]}

    def _covered(self, given: Sequence[int]) -> dict[int, int]:
        """Partition → the offset up to which ClickHouse has the log as it is now, through all its epochs."""
        client = self._connected()
        found = dict(recounted_coverage(client, self._epochs.base, self._topic.partitions).offsets)
        for partition in given:
            reached = found[partition]
            for start, epoch in self._epochs.in_log(partition):
                if epoch == self._epochs.base:
                    continue
                if reached < start:
                    break  # what came before is not complete: first that
                later = recounted_coverage(client, self._epochs.base, self._topic.partitions, {partition: epoch})
                reached = max(start, later.offsets[partition])
            found[partition] = reached
        return found

    def _enter_epoch(self, batch: Batch, partition: int, before: int, reached: int) -> None:
        """Note, where a partition comes to the beginning of an epoch, that nothing of it lies before."""
        for start, epoch in self._epochs.in_log(partition):
            if before < start <= reached and epoch != self._epochs.base:
                batch.gaps.append(Gap(partition, 0, reached, EARLIER_EPOCH, epoch))

    def _connected(self) -> Client:
        if self._client is None:
            self._client = connect_shard(self._settings, self._shard)
        return self._client

    def _bounds(self, partition: int) -> tuple[int, int]:
        return log_bounds(self._consumer, TopicPartition(self._topic.name, partition), _REQUEST_SECONDS)

    def _committed(self, partition: int) -> int | None:
        place = TopicPartition(self._topic.name, partition)
        (commit,) = self._consumer.committed([place], timeout=_REQUEST_SECONDS)
        return commit.offset if commit.offset >= 0 else None

    # -- reading on ----------------------------------------------------------------------------------------------------

    def _stops(self, client: Client, partitions: Iterable[int]) -> dict[int, Stop]:
        """Where tables lack rows of messages that ingest_batches has."""
        stops = first_stops(client, {partition: self._epochs.of(partition) for partition in partitions})
        for partition, stop in stops.items():
            log.error("table_is_older", partition=partition, table=stop.table, read_again_from=stop.offset)
        return stops

    def _start(self, partition: int, covered: int, stops: Mapping[int, Stop]) -> Start:
        low, high = self._bounds(partition)
        committed = self._committed(partition)
        # A commit of before the log lost its end is of other messages.
        committed = None if committed is None else min(committed, high)
        stop = stops.get(partition)
        if stop is not None and stop.offset < low:
            log.error("rows_expired", partition=partition, table=stop.table, first=stop.offset, next=low)
        return starting_place(committed, covered, low, high, None if stop is None else stop.offset)

    def _read(self) -> list[Message]:
        """Messages for one insert: whatever there is, once there is enough or the last insert is a moment ago."""
        first = self._poll(_IDLE_SECONDS)
        if first is None:
            return []
        found, size = [first], len(first)
        while size < inserts.ENOUGH_BYTES and len(found) < MESSAGES_PER_INSERT_MAX:
            left = self._inserted_at + INSERT_INTERVAL_SECONDS - time.monotonic()
            more = self._consumer.consume(MESSAGES_PER_INSERT_MAX // 10, max(0.0, min(left, 0.05)))
            found += more
            size += sum(map(len, more))
            if not more and left <= 0:
                break
        return found

    def _poll(self, seconds: float) -> Message | None:
        message = self._consumer.poll(seconds)
        self._polled_at = time.monotonic()
        return message

    def _check_at_times(self) -> None:
        if time.monotonic() - self._topic_checked_at >= _TOPIC_CHECK_SECONDS:
            try:
                self._check_topic()
                if (error := self._check_stored()) is not None:
                    self.wait(error)
            except KafkaException as error:
                self._kafka_problem = str(error)
                self._admin = admin_client(self._settings)  # one that was told of no brokers never works again

    def _check_places(self) -> None:
        """That every partition is read on. What the client says of a lost place is gone where it is paused just then.

        It stops reading there and says nothing again. Raises nothing: a broker that is away is another check's matter.
        """
        now = time.monotonic()
        if now - self._places_checked_at < _PLACES_CHECK_SECONDS:
            return
        before, self._places, self._places_checked_at = self._places, dict(self._next), now
        try:
            for partition, at in self._next.items():
                if before.get(partition) == at and (end := self._bounds(partition)[1]) != at:
                    log.error("partition_stands_still", partition=partition, at=at, end=end)
                    self._begin_again()
                    return
        except KafkaException as error:
            log.warning("places_not_checked", error=str(error))

    def _check_topic(self) -> None:
        """That the topic is still the one that the epoch stands for. Raises TopicReplaced, KafkaException."""
        try:
            found = describe_topic(self._settings, USAGE_EVENTS, self._admin)
        except TimeoutError as error:  # of the answer's future: no broker had taken the request
            raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, "the topic was not described")) from error
        self._topic_checked_at = time.monotonic()
        self._kafka_problem = None
        if found.topic_id != self._topic.topic_id:
            raise TopicReplaced(f"{self._topic.name} is now {found.topic_id}, it was {self._topic.topic_id}")

    def _check_stored(self) -> Exception | None:
        """That ClickHouse still has all that it took; an error when it does not, or not yet, or does not answer.

        What is inserted into a restored copy leaves a hole before it, which nobody would look for before a restart. So
        holes are looked for at times, and after ClickHouse was away: an insert that is repeated may meet such a copy.
        Else the end is enough. Raises EngineRestored, once it has been so for longer than a replica that answers may be
        behind; Interrupted, when a table is older than the others: it is read again from there.
        """
        if (error := self.attempt(self._note_server_start)) is not None:
            return error
        now, stored, stops = time.monotonic(), dict[int, int](), dict[int, Stop]()
        is_whole = now >= self._checkpoint_at

        def look(client: Client) -> None:
            if is_whole:
                # Where nothing came since a copy was made, only what is projected from the other logs is missing.
                if self._mark is not None and not is_marked(client, self._mark):
                    raise EngineRestored("ClickHouse is not the store that it was: a mark that was left in it is gone")
                self._mark = leave_mark(client)
                epochs = self._epochs
                stored.update(checkpoint(client, epochs.base, self._topic.partitions, self._mark, epochs.own).offsets)
                if self._doubts_tables:
                    stops.update(self._stops(client, self._next))
            else:
                stored.update(last_stored(client, {p: self._epochs.of(p)[-1][1] for p in self._next}))

        if (error := self.attempt(look)) is not None:
            return error
        if stops:
            self._begin_again()
            raise Interrupted
        # Up to where its epoch begins, a partition is filled with what came before it.
        lost = {p: (stored[p], at) for p, at in self._next.items() if stored[p] < at and at > self._epochs.start(p)}
        if not lost:
            self._short_since = None
            if is_whole:
                self._checkpoint_at = now + _CHECKPOINT_SECONDS
                self._doubts_tables = False
            return None
        self._short_since = self._short_since or now
        restored = EngineRestored(f"ClickHouse has (partition: has, had): {lost}")
        if now - self._short_since > _REPLICA_SECONDS_MAX:
            raise restored
        return restored

    def _note_server_start(self, client: Client) -> None:
        """A server that started since may have started on a backup, before anyone noticed that it was away."""
        host, at = started_at(client)
        if at > self._server_starts.get(host, at) + _CLOCK_SECONDS:
            log.warning("clickhouse_was_started", host=host)
            self._doubts_tables = True
            self._checkpoint_at = 0.0
        self._server_starts[host] = at

    def _measure_lag(self) -> None:
        for partition, reached in self._next.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic.name, partition), cached=True)
            metrics.SINK_LAG.labels(partition).set(max(0, high - reached))

    # -- reading -------------------------------------------------------------------------------------------------------

    def _batch(self, messages: Sequence[Message]) -> Batch:
        batch = Batch()
        sent_back: set[int] = set()  # partitions whose messages in hand come again
        for message in messages:
            error = message.error()
            if error is not None and error.code() != _END:
                if is_lost_offset(error):
                    log.error("place_lost", error=str(error))
                    self._begin_again()
                    break
                if error.fatal():
                    raise KafkaException(error)
                log.warning("read_error", error=str(error))
                continue
            partition, offset = message.partition(), message.offset()
            assert partition is not None, "a message has a place"
            assert offset is not None, "a message has a place"
            expected = batch.reached.get(partition, self._next.get(partition))
            # Buffered from before a rebalance, dealt with, or sent back.
            if expected is None or offset < expected or partition in sent_back:
                continue
            if offset > expected and not self._skip(batch, partition, expected, offset):
                sent_back.add(partition)
                continue
            if error is None:
                self._add(batch, partition, offset, message)
        return batch

    def _begin_again(self) -> None:
        """Find where to read from, as after an assignment."""
        self._assignment += 1
        self._lost_place = None
        self._given = sorted(self._next)
        self._next.clear()
        self._consumer.assign([])

    def _skip(self, batch: Batch, partition: int, expected: int, offset: int) -> bool:
        """Whether offsets up to `offset` may be passed over: the log was asked again, and has nothing there."""
        if self._doubted.get(partition) != expected:
            # Never on one sighting: a message that was dropped on its way to us would look the same.
            self._doubted[partition] = expected
            self._consumer.seek(TopicPartition(self._topic.name, partition, expected))
            return False
        log.warning("offsets_without_message", partition=partition, first=expected, next=offset)
        batch.gaps.append(Gap(partition, expected, offset, NO_MESSAGE))
        self._enter_epoch(batch, partition, expected, offset)
        batch.reached[partition] = offset
        return True

    def _add(self, batch: Batch, partition: int, offset: int, message: Message) -> None:
        batch.reached[partition] = offset + 1
        self._enter_epoch(batch, partition, offset, offset + 1)
        key, payload = _raw(message.key()), _raw(message.value())
        epoch = self._epochs.at(partition, offset)
        try:
            batch.messages.append(avro_splice.read_head(epoch, partition, offset, payload, key))
        except Unreadable as error:
            batch.letters.append(self._letter(partition, offset, key, payload, error.code, str(error)))

    def _letter(
        self, partition: int, offset: int, key: bytes | None, payload: bytes | None, reason: str, detail: str
    ) -> DeadLetter:
        metrics.DEAD_LETTERS.labels(reason).inc()
        log.error("dead_letter", partition=partition, offset=offset, reason=reason, detail=detail[:300])
        place = (self._epochs.at(partition, offset), partition, offset)
        return dead_letter(self._topic.name, place, key, payload, reason, detail, time.time_ns() // 1000)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _finish(self, batch: Batch) -> None:
        """Insert, set aside what can't be read, commit. Raises Interrupted before it has committed, or not at all.

        Whoever reads next starts from the last commit, and rows that are there already collapse.
        """
        started = self._inserted_at = time.monotonic()
        while True:
            try:
                # Before the insert: what was read before the topic was seen to be the same is of the same epoch.
                self._check_topic()
                if (error := None if self._given else self._check_stored()) is None:
                    break
            except KafkaException as kafka_error:
                self._kafka_problem = str(kafka_error)
                error = kafka_error
            self.wait(error)
        for refused in inserts.insert(batch.messages, self):
            bad = refused.message
            letter = self._letter(bad.partition, bad.offset, bad.key, bad.payload, "refused", str(refused.error))
            batch.letters.append(letter)
        if batch.letters:
            self._dead_letters.write(batch.letters)
        inserts.account(self._epochs.at, batch.letters, batch.gaps, self)
        metrics.INSERT_SECONDS.observe(time.monotonic() - started)
        self._count(batch)
        # Commit after insert: a crash repeats rows, never loses them.
        self._next.update(batch.reached)
        self._uncommitted.update(batch.reached)
        self._commit()
        self._tell_of_voids(batch)

    def _tell_of_voids(self, batch: Batch) -> None:
        refused = {(letter.partition, letter.offset) for letter in batch.letters}
        for message in batch.messages:
            if self.on_voids and is_void(message.payload) and (message.partition, message.offset) not in refused:
                voids = decode_voids(message.payload)
                series = zip(voids.organization_id, voids.customer_id, voids.event_name, strict=True)
                self.on_voids(message.partition, message.offset, series)

    def _commit(self) -> bool:
        """Commit what is left uncommitted; whether nothing is. Tried again when idle, since billing waits for it."""
        if not self._uncommitted:
            return True
        try:
            offsets = [TopicPartition(self._topic.name, p, offset) for p, offset in self._uncommitted.items()]
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # rebalanced, or the broker is away
            log.warning("commit_failed", error=str(error))
            return False
        self._uncommitted.clear()
        return True

    def _count(self, batch: Batch) -> None:
        refused = {(letter.partition, letter.offset) for letter in batch.letters}
        stored = [message for message in batch.messages if (message.partition, message.offset) not in refused]
        metrics.ROWS.inc(sum(message.events for message in stored))
        metrics.BYTES.inc(sum(len(message.payload) for message in stored))
        if stored:
            newest = max(message.received_at for message in stored)
            metrics.STORED_SECONDS.observe(max(0, time.time_ns() // 1000 - newest) / 1e6)

    # -- ClickHouse, which may be away (inserts.Engine) ----------------------------------------------------------------

    def attempt(self, work: Callable[[Client], object]) -> Exception | None:
        """Do the work once; None, or the error of ClickHouse or of the way to it."""
        try:
            work(self._connected())
        except (ClickHouseError, WarehouseUnavailable, OSError) as error:
            return error
        self._attempts = 0
        self._problem = None
        return None

    def wait(self, error: Exception) -> None:
        """Unready, wait a moment, longer each time, and keep our place in the group. Raises Interrupted."""
        if (whose := foreign_object(error)) is not None:
            metrics.FOREIGN_FAILURES.labels(whose).inc()
            log.error("foreign_view_fails", whose=whose, remedy="mend or drop it: no event is stored until then")
        if not isinstance(error, KafkaException | LogTooShort | CatalogUnavailable):
            said = f"ClickHouse: {' '.join(str(error).split())[:300]}"
            self._problem = said if whose is None else f"{whose}, which is not ours, fails: mend or drop it. {said}"
            self._checkpoint_at = 0.0
            if server_code(error) in (None, _UNKNOWN_TABLE):
                self._doubts_tables = True
            self._drop_client()
        log.warning("waiting", error=" ".join(str(error).split())[:300], attempts=self._attempts)
        assignment, until = self._assignment, time.monotonic() + min(_RETRY_SECONDS_MAX, 0.1 * 2**self._attempts)
        self._attempts = min(self._attempts + 1, 10)
        while time.monotonic() < until:
            # By polling. Paused each time anew, since a rebalance may happen meanwhile; what comes all the same was
            # on its way and is asked for again.
            held = self._consumer.assignment()
            self._consumer.pause(held)
            message = self._poll(0.05)
            if self._stopping.is_set() or self._assignment != assignment:
                raise Interrupted
            if message is None:
                continue
            if (said := message.error()) is None:
                place = TopicPartition(self._topic.name, message.partition() or 0, message.offset() or 0)
                self._consumer.seek(place)
            elif is_lost_offset(said):  # told once: nothing more is fetched of that partition
                self._lost_place = said
                self._kafka_problem = str(said)
        self._consumer.resume(self._consumer.assignment())

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _register_epoch(self) -> None:
        def register(client: Client) -> None:
            self._mine = partitions_at(client, self._settings, self._shard)
            self._register(client, self._topic.topic_id)
            self._epochs = lookup_epochs(client, self._topic.topic_id)

        while (error := self.attempt(register)) is not None:
            self.wait(error)
        self._problem = "waiting for partitions"

    def _register(self, client: Client, name: str) -> None:
        """Have a topic or a break numbered, by the same number on every server; what is numbered needs no other."""
        if len(self._settings.clickhouse_dsns) == 1:
            register_epoch(client, name)
        elif name not in numbered(client):
            with open_shards(self._settings) as shards:
                register_everywhere(shards, name)


def _raw(data: str | bytes | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data


def _checked_topic(settings: Settings) -> TopicState:
    """usage.events, made if it is missing. Raises TopicMismatch when its partitions are not those it began with."""
    create_topics(settings)
    warn_of_weak_topics(settings)
    topic = check_partitions(settings)
    with CatalogStore(settings) as catalog:
        for topology in catalog.view.all(Topology):
            if topology.event_partitions != topic.partitions:
                raise TopicMismatch(
                    f"{topic.name} has {topic.partitions} partitions, the catalog was made for "
                    f"{topology.event_partitions}"
                )
    return topic


def run(settings: Settings) -> int:
    """Store events and project the other logs until SIGTERM or SIGINT: 0. Whatever goes wrong: 1."""
    stopping = stop_on_signals()
    try:
        topic = _checked_topic(settings)
        catalog = CatalogStore(settings)
        catalog.start()
        sinks = [Sink(settings, topic, stopping, catalog, shard) for shard in range(len(settings.clickhouse_dsns))]
    except (TopicMismatch, KafkaException, CatalogUnavailable, TimeoutError) as error:
        log.error("sink_not_started", error=str(error))
        return 1
    projections = [Projections(settings, stopping.set, shard) for shard in range(len(sinks))]
    checks = {name: check for part in (*sinks, *projections) for name, check in part.checks.items()}
    with HealthServer(settings.metrics_host, settings.sink_metrics_port, checks), TopicWatch(settings):
        reconciling = ReconcileService(settings, catalog, lambda: [p for sink in sinks for p in sink.partitions()])
        for sink in sinks:
            sink.on_voids = reconciling.voided
        for each in projections:
            each.start()
        reconciling.start()
        try:
            _run_all(sinks, stopping)
        except (TopicReplaced, EngineRestored, EpochsExhausted, NotAcknowledged, KafkaException) as error:
            log.error("sink_failed", error=str(error))
            return 1
        finally:
            stopping.set()
            reconciling.stop()
            for each in projections:
                each.stop()
            catalog.stop()
    return 0 if all(each.failure is None for each in projections) else 1


def _run_all(sinks: Sequence[Sink], stopping: threading.Event) -> None:
    """Several in a thread each. Where one ends, all do; raises what the first of them did."""
    if len(sinks) == 1:
        return sinks[0].run()
    with ThreadPoolExecutor(len(sinks), thread_name_prefix="sink") as threads:
        running = [threads.submit(sink.run) for sink in sinks]
        try:
            for ended in as_completed(running):
                ended.result()
        finally:
            stopping.set()
