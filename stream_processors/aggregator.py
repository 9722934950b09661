"""usage.events, usage.repairs → usage.totals, usage.alerts: exact whenever a worker dies, and alerts when they are due.

Rules, each proven by killing workers (docs/decisions/aggregator.md):
 1. Only messages of the current generation of the group count, by partition and in the order of their offsets.
 2. A partition's state knows its next offset. Below it: applied already. Above it: a rebalance left a gap; nothing is
    applied, the consumer goes back.
 3. A total knows the last offset that it contains, and a message at or below it adds nothing.
 4. What has changed is written once a flush, the partition's progress last; nothing counts as done before all of it is
    acknowledged.
 5. Offsets are committed after that, by us.
 6. What a frozen worker writes late is only old: the greatest offset wins, in recovery and in every reader.
Any exception ends the process; what was not written comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import faust
import structlog
import uvloop
from confluent_kafka import KafkaException

from catalog.cycles import affected_by
from catalog.record import CatalogRecord, Topology
from catalog.store import CatalogStore, CatalogUnavailable
from runtime.clock import now_us
from runtime.health import HealthServer
from runtime.kafka.admin import TopicMismatch, TopicState, check_partitions, create_topics, describe_topic
from runtime.kafka.client_watch import TopicWatch
from runtime.kafka.log_ends import LogEnds
from runtime.one_by_one import OneByOne
from schemas import alert as alert_codec
from schemas import repair as repair_codec
from schemas.alert import Alert
from schemas.alert_rule import AlertRule
from schemas.log_break import LogBreak, starts_of
from schemas.meter import Meter
from schemas.partition import partition_of
from schemas.period import DAY_US, SECOND_US
from schemas.repair import UnreadableRepair
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.topics import CATALOG, MESSAGE_BYTES_MAX, USAGE_ALERTS, USAGE_EVENTS, USAGE_TOTALS, topic_name
from schemas.usage_batch import UnreadableBatch, UsageBatch, decode
from schemas.usage_void import decode as decode_voids
from schemas.usage_void import is_void
from stream_processors import metrics
from stream_processors.alerts import AlertBook, IsNew
from stream_processors.catch_up import until_caught_up
from stream_processors.exact_table import (
    DurableProducer,
    ExactApp,
    ExactTable,
    UnsupportedSecurity,
    assigned,
    broker_urls,
    commit,
    credentials,
    die,
    exact_app_settings,
    flowing,
    knows,
    of_generation,
    release,
    rewind,
)
from stream_processors.moments import Seen
from stream_processors.repairs import Raw, RepairReader
from stream_processors.state import Fired, PartitionState
from stream_processors.tiles import Tiles
from stream_processors.totals import Total

log = structlog.get_logger(__name__)

APP = "aggregator"

TAKE_MESSAGES_MAX = 256
TAKE_SECONDS = 0.1
RUN_MESSAGES_MAX = 32  # folded at a stretch, about 20 ms for full messages
FLUSH_SECONDS_PER_TOTAL = 0.0005  # idle: at once; from 2,000 changed totals on: once every flush_seconds
UNFLUSHED_BYTES_MAX = 128 * 1024 * 1024
GAP_RETRY_SECONDS = 1.0
GAP_SECONDS_MAX = 5.0
REWIND_MESSAGES_MIN = 1000
_REQUEST_SECONDS = 10.0
_WATCH_SECONDS = 1.0
_TOPIC_CHECK_SECONDS = 15.0
_STILL_SECONDS_MAX = 5.0
_STALLED_SECONDS_MAX = 120.0
_NAMED_SECONDS_MAX = 20.0
_STOP_SECONDS_MAX = 40.0
_HOUR_US = 3600 * SECOND_US
_RULE_AGE_US = 10 * SECOND_US


@dataclass(slots=True)
class _Gap:
    """An offset that is awaited; when it was missed first and sought last, monotonic seconds."""

    wanted: int
    since: float
    sought_at: float


class Aggregator:
    """The work of one worker. All of it runs in the Faust app's event loop, but for what waits in threads."""

    def __init__(self, settings: Settings, catalog: CatalogStore, topic: TopicState, app: faust.App) -> None:
        self._settings = settings
        self._catalog = catalog
        self._view = catalog.view
        self._app = app
        self._events_topic = topic.name
        self._totals_topic = topic_name(settings, USAGE_TOTALS)
        self._alerts_topic = topic_name(settings, USAGE_ALERTS)
        self._catalog_topic = topic_name(settings, CATALOG)
        self._topic_id = topic.topic_id
        self._ends = LogEnds(settings.kafka_properties, topic_name(settings, f"{APP}-ends"), _REQUEST_SECONDS)
        self._repairs = RepairReader(settings)
        self._producer = DurableProducer(settings.kafka_properties)
        self._alerts = AlertBook(self._view, self._grace_us)
        self._tiles = Tiles(self._view)
        self._one_by_one = OneByOne("aggregator", lambda _: False)
        self._catalog_changes: deque[CatalogRecord] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._applying = asyncio.Lock()
        self._short: dict[int, float] = {}  # partition → since when its log is shorter than what was read
        self._unflushed: list[Any] = []
        self._unflushed_bytes = 0
        self._known: dict[int, PartitionState] = {}  # states that have been held against all rules
        self._gaps: dict[int, _Gap] = {}
        self._progressed: dict[int, tuple[int, float]] = {}  # partition → next offset, when it was reached
        self._event_ends: dict[int, int] = {}
        self.table: ExactTable[PartitionState] = ExactTable(
            app,
            name="totals",
            changelog_topic=app.topic(
                self._totals_topic,
                partitions=topic.partitions,
                key_type=bytes,
                value_type=bytes,
                key_serializer="raw",
                value_serializer="raw",
                acks=False,
                internal=True,
                allow_empty=True,
            ),
            partitions=topic.partitions,
            key_type=bytes,
            value_type=bytes,
            new_state=self._new_state,
            properties=settings.kafka_properties,
            beacon=app.tables.beacon,
        )
        app.tables.add(self.table)
        catalog.subscribe(self._on_catalog_record)

    def _new_state(self, partition: int) -> PartitionState:
        return PartitionState(
            partition,
            self._topic_id,
            self._tiles,
            horizon_us=self._settings.dedupe_horizon_hours * _HOUR_US,
            ids_max=self._settings.dedupe_ids_max,
            grace_us=self._grace_us,
            breaks=len(self._starts(partition)),
            series_max=self._settings.live_series_per_partition_max,
        )

    def _starts(self, partition: int) -> tuple[int, ...]:
        """Where the partition's log went on, each time that it had lost its end."""
        return starts_of(self._view.all(LogBreak), self._topic_id, partition)

    def _grace_us(self, organization_id: str) -> int:
        organization = self._view.organization(organization_id)
        seconds = None if organization is None else organization.grace_seconds
        return (self._settings.close_grace_seconds if seconds is None else seconds) * SECOND_US

    # -- taking ----------------------------------------------------------------------------------------------------

    async def consume(self, stream: Any) -> None:
        """The agent: fold what is taken, let the flusher write it."""
        try:
            async for events in stream.noack_take(TAKE_MESSAGES_MAX, within=TAKE_SECONDS):
                await self._take(events)
        except Exception as error:  # noqa: BLE001 - Faust would go on after it
            die("a message could not be applied", error)

    async def _take(self, events: Sequence[Any]) -> None:
        # An event counts by a catalog that is at least as new as the event: a subscription made before it, counts.
        await until_caught_up(self._catalog_end, lambda: self._catalog.next_offset)
        generation = self._app.consumer_generation_id
        for partition, by_offset in of_generation(events, generation).items():
            state = await self.table.state_of(partition, generation)
            if state is not None:
                self._apply_catalog_changes()
                async with self._applying:
                    self._meet(state)
                    await self._apply(state, by_offset)
        self._unflushed.extend(events)
        self._unflushed_bytes += sum(len(event.value or b"") for event in events)
        self._woken.set()
        if self._unflushed_bytes > UNFLUSHED_BYTES_MAX:
            await self.flush()

    async def _catalog_end(self) -> int:
        """The next offset to be written to the catalog's log. Raises KafkaException."""
        _, end = await asyncio.to_thread(self._ends.of, self._catalog_topic, 0)
        return end

    async def _apply(self, state: PartitionState, by_offset: Mapping[int, Any]) -> None:
        """Fold in what comes next, in runs; go back where something is missing."""
        last = next(reversed(by_offset))
        if last + REWIND_MESSAGES_MIN < state.next_offset and self._gaps.get(state.partition) is None:
            # The group's committed offset is far behind: no need to read what is in the state.
            await self._go_back(state, last + 1)
            return
        if await self._gone_on(state):
            return
        rules = self._view.all(AlertRule)
        state.moments.watched = bool(rules)
        # Later than the log has come to: none but after a stop.
        state.moments.made_at = sorted(rule.created_at for rule in rules if rule.created_at >= state.log_time)
        until = state.next_break(self._starts(state.partition))
        while run := list(_run_from(state.next_offset, by_offset, until)):
            messages = [(offset, _decoded(event.message)) for offset, event in run]
            applied = state.apply(messages)
            metrics.EVENTS_APPLIED.inc(applied.events)
            metrics.DUPLICATES.inc(applied.duplicates)
            metrics.UNREADABLE.inc(applied.unreadable)
            self._gaps.pop(state.partition, None)
            self._woken.set()
            await asyncio.sleep(0)
        if await self._gone_on(state):
            return
        if last > state.next_offset:
            await self._go_back(state, last)

    async def _gone_on(self, state: PartitionState) -> bool:
        """Where the log had lost its end and all before that place is applied: go on there. Whether it did.

        What was applied beyond it stays counted; what ClickHouse does not have of it is taken off by `reconcile`.
        """
        starts = self._starts(state.partition)
        at = state.next_break(starts)
        if at is None or state.next_offset < at:
            return False
        # Both written alone: a write that broke off must not leave totals of the one log beside the other's progress.
        await self.flush()
        log.error("log_lost_its_end", partition=state.partition, read_to=state.next_offset, goes_on_at=at)
        state.go_on(starts)
        await self._taken_up(state)
        return True

    async def _taken_up(self, state: PartitionState) -> None:
        await self.flush()
        self._gaps.pop(state.partition, None)
        self._short.pop(state.partition, None)
        self._progressed.pop(state.partition, None)
        await rewind(self._app, self._events_topic, state.partition, state.next_offset)

    async def _mind_lost_end(self, state: PartitionState, end: int) -> None:
        """The log ends before what was applied. Soon the sink says where it goes on, or has not read what is lost."""
        since = self._short.setdefault(state.partition, time.monotonic())
        metrics.LAG.labels(state.partition).set(0)
        async with self._applying:
            if await self._gone_on(state) or time.monotonic() - since < _NAMED_SECONDS_MAX:
                return
            await self.flush()
            log.error("log_lost_its_end", partition=state.partition, read_to=state.next_offset, goes_on_at=end)
            state.go_on_unnamed(end)
            await self._taken_up(state)

    async def _go_back(self, state: PartitionState, seen: int) -> None:
        """Seek to the next offset to apply. What was fetched before it still comes, and changes nothing."""
        gap = self._gaps.get(state.partition)
        if gap is None or gap.wanted != state.next_offset:
            now = time.monotonic()
            self._gaps[state.partition] = _Gap(state.next_offset, now, now)
            metrics.GAPS.inc()
            log.info("consumer_rewound", partition=state.partition, to=state.next_offset, seen=seen)
            await rewind(self._app, self._events_topic, state.partition, state.next_offset)

    async def _mind_gaps(self, states: Mapping[int, PartitionState]) -> None:
        """Seek again what has not come; where the log itself has a hole, go on behind it, loudly.

        On a timer: after a seek into a hole nothing may ever come again that would remind us of it.
        """
        now = time.monotonic()
        for partition, gap in list(self._gaps.items()):
            state = states.get(partition)
            if state is None or state.next_offset != gap.wanted:
                self._gaps.pop(partition, None)
                continue
            if now - gap.sought_at < GAP_RETRY_SECONDS or not flowing(self._app):
                continue
            gap.sought_at = now
            if now - gap.since > GAP_SECONDS_MAX:
                first = await asyncio.to_thread(self._ends.first_kept, self._events_topic, partition, gap.wanted)
                if state.next_offset != gap.wanted:
                    continue  # it came meanwhile
                if first is not None and first > gap.wanted:
                    log.error(
                        "messages_lost", partition=partition, first=gap.wanted, until=first, reason="not in the log"
                    )
                    metrics.OFFSETS_LOST.inc(first - gap.wanted)
                    state.skip_to(first)
                    del self._gaps[partition]
            if assigned(self._app, self._events_topic, partition):
                await rewind(self._app, self._events_topic, partition, state.next_offset)

    # -- the catalog -----------------------------------------------------------------------------------------------

    def _on_catalog_record(self, record: CatalogRecord) -> None:
        """In the catalog's thread."""
        self._catalog_changes.append(record)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._woken.set)

    def _apply_catalog_changes(self) -> None:
        """Forget what was derived from what has changed; hold totals against rules that are new or mean something else.

        At once, before later usage counts: what a rule finds was there before it. A subscription says what an amount
        and the included units are.
        """
        states = self.table.states
        new_rules: dict[tuple[str, str], set[str]] = {}
        while self._catalog_changes:
            record = self._catalog_changes.popleft()
            with self._one_by_one.one(f"{record.kind} {record.state.id}"):
                if (affected := affected_by(record)) is not None:
                    for state in states.values():
                        state.totals.forget_tiles(affected)
                if isinstance(rule := record.state, AlertRule):
                    new_rules.setdefault((rule.organization_id, rule.meter_id), set()).add(rule.id)
                elif isinstance(subscription := record.state, Subscription):
                    for state in states.values():
                        totals = state.totals.of_customer(subscription.organization_id, subscription.customer_id)
                        self._hold(state, totals)
        for (organization_id, meter_id), rule_ids in new_rules.items():
            if (meter := self._view.get(Meter, organization_id, meter_id)) is None:
                continue
            for state in states.values():
                totals = state.totals.reading(organization_id, meter.event_name)
                self._hold(state, totals, rule_ids=rule_ids, is_new=lambda _: True)

    def _meet(self, state: PartitionState) -> None:
        """Hold all totals of a state against all rules, once it is loaded and before anything is added to it."""
        if self._known.get(state.partition) is state:
            return
        self._known[state.partition] = state
        _tell_if_counted_anew(state)
        # A rule that was made about the last write was perhaps not held against it.
        self._hold(state, list(state.totals), is_new=lambda rule: rule.created_at > state.written_at - _RULE_AGE_US)

    def _hold(
        self,
        state: PartitionState,
        totals: Sequence[Total],
        *,
        rule_ids: Set[str] | None = None,
        is_new: IsNew = lambda _: False,
    ) -> None:
        """Note the alerts of totals, whatever has changed; the next flush publishes them."""
        seen = (Seen(total, state.moments.time_of(total)) for total in totals)
        due = self._alerts.due(seen, state.fired, now_us(), rule_ids=rule_ids, is_new=is_new)
        self._note(state, due)
        state.alerts_due += due

    @staticmethod
    def _note(state: PartitionState, due: Sequence[Alert]) -> None:
        for alert in due:
            state.note_fired(alert.id, Fired(alert.rule_id, alert.customer_id, alert.cycle_start, alert.fired_at))

    # -- flushing --------------------------------------------------------------------------------------------------

    async def flush_for_ever(self) -> None:
        """About once a second under load, at once when little has changed or someone waits."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), _WATCH_SECONDS)
                self._woken.clear()
                started = time.monotonic()
                while not self._hurried and time.monotonic() - started < self._patience:
                    await asyncio.sleep(0.02)
                await self.flush()
        except Exception as error:  # noqa: BLE001 - Faust would go on after it
            die("totals could not be written", error)

    @property
    def _hurried(self) -> bool:
        return self._app.should_stop or not flowing(self._app)

    @property
    def _patience(self) -> float:
        changed = sum(len(state.totals.changed) for state in self.table.states.values())
        return min(self._settings.flush_seconds, changed * FLUSH_SECONDS_PER_TOTAL)

    async def flush(self) -> None:
        """Write what has changed, wait until it is acknowledged, commit."""
        async with self._flushing:
            started = time.monotonic()
            generation = self._app.consumer_generation_id
            self._apply_catalog_changes()
            states = self.table.states
            for state in states.values():
                self._meet(state)
            events, self._unflushed, self._unflushed_bytes = self._unflushed, [], 0
            done: dict[int, int] = {}
            oldest = 0
            for partition, state in states.items():
                await self._publish_alerts(state)
                state.close_cycles(self._settings.live_cycle_days * DAY_US)
                if state.has_changes:
                    self._tell_of_partial(state)
                    oldest = oldest or (state.log_time if state.has_new_messages else 0)
                    self._producer.send(self._totals_topic, partition, state.changes(now_us()))
                    done[partition] = state.next_offset
                    await asyncio.sleep(0)
            if done:
                await self._producer.flush()
                await commit(self._app, self._events_topic, done, generation)
            release(self._app, events)
            self._known = {p: state for p, state in states.items() if self.table.states.get(p) is state}
            if done:
                metrics.FLUSH_SECONDS.observe(time.monotonic() - started)
            if oldest:
                metrics.VISIBLE_SECONDS.observe(max(0.0, (now_us() - oldest) / 1e6))

    def _tell_of_partial(self, state: PartitionState) -> None:
        for organization_id in state.newly_partial:
            log.error(
                "live_totals_partial", organization=organization_id, partition=state.partition,
                detail="more series than USAGE_LIVE_SERIES_PER_ORGANIZATION_MAX; new ones are in ClickHouse only",
            )  # fmt: skip

    async def _publish_alerts(self, state: PartitionState) -> None:
        """Publish what is due, before anything says that it has fired: a crash repeats an alert, it loses none.

        Returns with every changed total held against the rules; nothing may be awaited from then until it is written.
        """
        while True:
            fresh = self._alerts.due(state.moments.seen(state.totals.changed), state.fired, now_us())
            self._note(state, fresh)
            due, state.alerts_due = [*state.alerts_due, *fresh], []
            if not due:
                return
            for alert in due:
                partition = partition_of(alert.organization_id, alert.customer_id, self._settings.event_partitions)
                self._producer.send(self._alerts_topic, partition, [(alert.key, alert_codec.encode(alert))])
            await self._producer.flush()
            metrics.ALERTS.inc(len(due))
            metrics.ALERT_SECONDS.observe(max(0.0, (now_us() - state.log_time) / 1e6))
            log.info("alerts_fired", partition=state.partition, count=len(due))

    # -- repairs ---------------------------------------------------------------------------------------------------

    async def repair_for_ever(self) -> None:
        """Take in the repairs of the partitions that are loaded; the flusher writes them like all that changes."""
        followed: dict[int, PartitionState] = {}
        try:
            while True:
                try:
                    states = self.table.states
                    if states != followed:
                        places = {partition: state.repairs_next for partition, state in states.items()}
                        begun = await asyncio.to_thread(self._repairs.follow, places)
                        followed = states
                        for partition, state in states.items():
                            state.begin_repairs(begun[partition])
                    for raw in await asyncio.to_thread(self._repairs.read):
                        self._repair(followed[raw.partition], raw)
                except KafkaException as error:
                    log.warning("repairs_not_read", error=str(error))
                    followed = {}
                    await asyncio.sleep(_WATCH_SECONDS)
        except Exception as error:  # noqa: BLE001 - Faust would go on after it
            die("repairs could not be applied", error)

    def _repair(self, state: PartitionState, raw: Raw) -> None:
        repair, applied = None, False
        with self._one_by_one.one(f"repair at {raw.partition}/{raw.offset}"):
            try:
                repair = repair_codec.decode(raw.value)
            except UnreadableRepair as error:
                log.error("repair_unreadable", partition=raw.partition, offset=raw.offset, error=str(error))
            applied = state.repair(raw.offset, repair)
        metrics.REPAIRS.labels("unreadable" if repair is None else "applied" if applied else "stale").inc()
        if repair is not None:
            log.info("repair", repair_id=repair.repair_id, applied=applied, partition=raw.partition, offset=raw.offset)
        self._woken.set()

    # -- watching --------------------------------------------------------------------------------------------------

    async def watch_for_ever(self) -> None:
        """Lag and horizon as metrics; end the process when the topic was made again or a partition stands still."""
        checked = time.monotonic()
        try:
            while True:
                await asyncio.sleep(_WATCH_SECONDS)
                states = self.table.states
                try:
                    await self._mind_gaps(states)
                    for partition, state in states.items():
                        first, end = await asyncio.to_thread(self._ends.of, self._events_topic, partition)
                        if first > state.next_offset and partition not in self._gaps:
                            self._gaps[partition] = _Gap(state.next_offset, time.monotonic(), 0.0)
                        self._event_ends[partition] = end
                        if end < state.next_offset:
                            await self._mind_lost_end(state, end)
                        else:
                            self._short.pop(partition, None)
                            async with self._applying:
                                await self._gone_on(state)
                            self._observe(state, end)
                    if time.monotonic() - checked > _TOPIC_CHECK_SECONDS:
                        checked = time.monotonic()
                        topic = await asyncio.to_thread(describe_topic, self._settings, USAGE_EVENTS)
                        if topic.topic_id != self._topic_id:
                            die(f"{self._events_topic} was made again: start anew with the new one")
                except KafkaException as error:
                    log.warning("kafka_not_answering", error=str(error))
                    self._progressed.clear()  # no partition can progress without Kafka: its time starts again
                self._forget_metrics(states)
        except Exception as error:  # noqa: BLE001 - Faust would go on after it
            die("watching failed", error)

    def _observe(self, state: PartitionState, end: int) -> None:
        partition = state.partition
        lag = max(0, end - state.next_offset)
        metrics.LAG.labels(partition).set(lag)
        horizon = (state.log_time - state.dedupe.known_since(state.log_time)) / 1e6
        metrics.DEDUPE_HORIZON_SECONDS.labels(partition).set(horizon)
        metrics.DEDUPE_IDS.labels(partition).set(len(state.dedupe))
        metrics.TOTALS.labels(partition).set(len(state.totals))
        metrics.PARTIAL.labels(partition).set(len(state.totals.partial))
        now = time.monotonic()
        reached, since = self._progressed.get(partition, (None, now))
        if lag == 0 or reached != state.next_offset or self._app.rebalancing:
            self._progressed[partition] = (state.next_offset, now)
            return
        if now - since > _STILL_SECONDS_MAX and partition not in self._gaps:
            # The group's commit may be ahead of a state whose changelog was lost: then nothing may ever come.
            self._gaps[partition] = _Gap(state.next_offset, now, 0.0)
        if now - since > _STALLED_SECONDS_MAX:
            die(f"partition {partition} has stood still at {state.next_offset} of {end} for {_STALLED_SECONDS_MAX:g} s")

    def _forget_metrics(self, states: Mapping[int, PartitionState]) -> None:
        for partition in set(self._event_ends) - set(states):
            del self._event_ends[partition]
            self._progressed.pop(partition, None)
            for gauge in (
                metrics.LAG,
                metrics.DEDUPE_HORIZON_SECONDS,
                metrics.DEDUPE_IDS,
                metrics.TOTALS,
                metrics.PARTIAL,
            ):
                with contextlib.suppress(KeyError):
                    gauge.remove(partition)

    # -- health ----------------------------------------------------------------------------------------------------

    def check_assignment(self) -> str | None:
        app = self._app
        if not app.started or app.should_stop:
            return "not running"
        if app.rebalancing or not app.tables.actives_ready:
            return "the consumer group is rebalancing"
        if not knows(app, self._events_topic):
            return f"{self._events_topic} has not been seen in the cluster yet"
        if self.table.loading:
            return f"loading partitions {self.table.loading}"
        return f"the log of partitions {sorted(self._short)} has lost its end" if self._short else None

    def check_catalog(self) -> str | None:
        return None if self._catalog.ready else "the catalog is not being read"

    def close(self) -> None:
        self._ends.close()
        self._repairs.close()


def _tell_if_counted_anew(state: PartitionState) -> None:
    if state.abandoned:
        log.error(
            "changelog_without_beginning", partition=state.partition, records=len(state.abandoned),
            detail="usage.totals was made again; all is counted from the beginning of usage.events",
        )  # fmt: skip


def _run_from(next_offset: int, by_offset: Mapping[int, Any], until: int | None) -> Iterator[tuple[int, Any]]:
    """Messages from the next offset on, and before `until`, without a gap, not too many at a stretch."""
    end = next_offset + RUN_MESSAGES_MAX
    for offset in range(next_offset, end if until is None else min(end, until)):
        if (event := by_offset.get(offset)) is None:
            return
        yield offset, event


def _decoded(message: Any) -> UsageBatch | None:
    """None: unreadable. The sink reports such a message to usage.dead_letters; here it counts as applied.

    Tombstones bring no events: what they take away comes as a repair of the total.
    """
    try:
        payload = message.value or b""
        if is_void(payload):
            voids = decode_voids(payload)
            return UsageBatch(voids.batch_id, voids.received_at, (), (), (), (), ())
        return decode(payload)
    except UnreadableBatch as error:
        log.warning("message_unreadable", partition=message.partition, offset=message.offset, error=str(error))
        return None


# -- the app -----------------------------------------------------------------------------------------------------------


def make_app(
    settings: Settings, catalog: CatalogStore, topic: TopicState, data_dir: str
) -> tuple[faust.App, Aggregator]:
    """The Faust app and its work. data_dir: Faust wants one, and writes nothing there. Raises UnsupportedSecurity."""
    app = ExactApp(
        topic_name(settings, APP),
        broker=broker_urls(settings.kafka_properties),
        broker_credentials=credentials(settings.kafka_properties),
        topic_partitions=topic.partitions,
        topic_replication_factor=settings.kafka_replication_factor or 1,  # Faust creates none of ours
        datadir=data_dir,
        consumer_max_fetch_size=8 * MESSAGE_BYTES_MAX,
        stream_buffer_maxsize=2 * TAKE_MESSAGES_MAX,
        **exact_app_settings(),
    )
    aggregator = Aggregator(settings, catalog, topic, app)
    source = app.topic(
        topic.name,
        partitions=topic.partitions,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        allow_empty=True,
    )
    app.agent(source, concurrency=1, name="aggregate")(aggregator.consume)
    app.task(aggregator.flush_for_ever)
    app.task(aggregator.repair_for_ever)
    app.task(aggregator.watch_for_ever)
    return app, aggregator


class _Worker(faust.Worker):
    """A worker whose end is bounded: Faust may wait for ever for messages that nobody will acknowledge any more."""

    def _crash(self, reason: BaseException) -> None:
        self._end_in_time("it crashed")
        super()._crash(reason)

    def _on_sigterm(self) -> None:
        self._end_in_time("SIGTERM")
        super()._on_sigterm()

    def _on_sigint(self) -> None:
        self._end_in_time("SIGINT")
        super()._on_sigint()

    def _end_in_time(self, reason: str) -> None:
        timer = threading.Timer(_STOP_SECONDS_MAX, die, [f"not ended {_STOP_SECONDS_MAX:g} s after {reason}"])
        timer.daemon = True
        timer.start()


def run(settings: Settings) -> int:
    """Aggregate until SIGTERM or SIGINT: drain, flush, commit, leave the group, 0. Whatever goes wrong: not 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # until the worker has its own: there is nothing to drain yet
    try:
        create_topics(settings)
        topic = check_partitions(settings)
        with CatalogStore(settings) as catalog, tempfile.TemporaryDirectory(prefix="usage-aggregator-") as data_dir:
            for topology in catalog.view.all(Topology):
                if topology.event_partitions != topic.partitions:
                    raise TopicMismatch(
                        f"{topic.name} has {topic.partitions} partitions, the catalog was made for "
                        f"{topology.event_partitions}"
                    )
            return _run(settings, catalog, topic, data_dir)
    except (TopicMismatch, KafkaException, CatalogUnavailable, UnsupportedSecurity, OSError) as error:
        log.error("aggregator_not_started", error=str(error))
        return 1


def _run(settings: Settings, catalog: CatalogStore, topic: TopicState, data_dir: str) -> int:
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    app, aggregator = make_app(settings, catalog, topic, data_dir)
    # Totals and series live long and hold no cycles; full collections over hundreds of thousands of them cost seconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)
    worker = _Worker(app, override_logging=False, quiet=True, loop=loop)
    worker.spinner = None
    checks = {"assignment": aggregator.check_assignment, "catalog": aggregator.check_catalog}
    with HealthServer(settings.metrics_host, settings.aggregator_metrics_port, checks), TopicWatch(settings):
        log.info("aggregator_starting", topic=topic.name, topic_id=topic.topic_id, partitions=topic.partitions)
        try:
            worker.execute_from_commandline()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            log.info("aggregator_ended", code=code)
            return code
        finally:
            aggregator.close()
