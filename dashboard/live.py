"""usage.totals, usage.alerts, webhook deliveries → a view in memory, kept current, and listeners who hear of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog
from confluent_kafka import OFFSET_BEGINNING, KafkaException, Message, TopicPartition

from dashboard.live_view import Lag, LiveView
from dashboard.metrics import LISTENERS, RECORDS, RECORDS_UNREADABLE, SERIES, VISIBLE_SECONDS
from runtime.kafka.client_watch import watched
from runtime.kafka.clients import create_reader, is_partition_end
from runtime.kafka.log_ends import LogEnds
from runtime.one_by_one import OneByOne
from schemas import alert as alerts
from schemas import totals
from schemas import webhook_delivery as deliveries
from schemas.alert import Alert, UnreadableAlert
from schemas.settings import Settings
from schemas.topics import USAGE_ALERTS, USAGE_EVENTS, USAGE_TOTALS, USAGE_WEBHOOK_DELIVERIES, topic_name
from schemas.totals import Closed, Partial, Progress, UnreadableTotal, UsageTotal
from schemas.webhook_delivery import RetryRequest, UnreadableDelivery, WebhookDelivery

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.1
_BATCH_MAX = 5_000
_ENDS_SECONDS = 1.0
_REQUEST_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_POLL_AGE_SECONDS_MAX = 10.0
PENDING_MAX = 10_000

SeriesCycle = tuple[str, str, str, int, int]


@dataclass(eq=False)
class Listener:
    """What one client has not been sent yet. Newer totals take the place of older ones, so it never outgrows its bound.

    overflowed: more changed than is kept; the client should read everything again.
    """

    organization_id: str
    loop: asyncio.AbstractEventLoop
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    overflowed: bool = False
    _totals: dict[SeriesCycle, UsageTotal] = field(default_factory=dict[SeriesCycle, UsageTotal])
    _alerts: dict[str, Alert] = field(default_factory=dict[str, Alert])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, new_totals: Iterable[UsageTotal], new_alerts: Iterable[Alert]) -> None:
        """Called in the consumer's thread."""
        with self._lock:
            self._totals.update((total.cycle_key, total) for total in new_totals)
            self._alerts.update((alert.id, alert) for alert in new_alerts)
            if len(self._totals) + len(self._alerts) > PENDING_MAX:
                self._totals.clear()
                self._alerts.clear()
                self.overflowed = True
        self.loop.call_soon_threadsafe(self.changed.set)

    def take(self) -> tuple[list[UsageTotal], list[Alert], bool]:
        """What has changed since the last call, and whether something was left out."""
        with self._lock:
            self.changed.clear()
            taken = list(self._totals.values()), list(self._alerts.values()), self.overflowed
            self._totals.clear()
            self._alerts.clear()
            self.overflowed = False
            return taken


class LiveTotals:
    """The view, current within a moment of the aggregator's publishing; `check` says when it is not."""

    def __init__(self, settings: Settings) -> None:
        self.view = LiveView(series_max=settings.live_series_per_organization_max)
        self._properties = settings.kafka_properties
        self._totals_topic = topic_name(settings, USAGE_TOTALS)
        self._alerts_topic = topic_name(settings, USAGE_ALERTS)
        self._deliveries_topic = topic_name(settings, USAGE_WEBHOOK_DELIVERIES)
        self._events_topic = topic_name(settings, USAGE_EVENTS)
        self._partitions = range(settings.event_partitions)
        self._next_offsets: dict[int, int] | None = None
        self._one_by_one = OneByOne("live", lambda _: False)
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._caught_up = threading.Event()
        self._last_poll = 0.0
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="live-totals", daemon=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * _REQUEST_SECONDS)

    def check(self) -> str | None:
        """None: the view is current. Else why not."""
        if self._failure is not None:
            return self._failure
        if not self._caught_up.is_set():
            return "still reading usage.totals"
        if time.monotonic() - self._last_poll > _POLL_AGE_SECONDS_MAX:
            return "usage.totals is not being read"
        return None

    def wait_until_caught_up(self, seconds: float) -> bool:
        return self._caught_up.wait(seconds)

    # -- reading ---------------------------------------------------------------------------------------------------

    def lag(self, now: int) -> Lag:
        return self.view.lag(self._next_offsets, now)

    @property
    def next_offsets(self) -> dict[int, int] | None:
        """Partition → the end of usage.events, a second old; None: not known."""
        return self._next_offsets

    def listen(self, organization_id: str) -> Listener:
        """Hear of the organization's changes from now on, until `forget`. Call it in the event loop."""
        listener = Listener(organization_id, asyncio.get_running_loop())
        with self._lock:
            self._listeners.add(listener)
        LISTENERS.set(len(self._listeners))
        return listener

    def forget(self, listener: Listener) -> None:
        with self._lock:
            self._listeners.discard(listener)
        LISTENERS.set(len(self._listeners))

    # -- following -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except KafkaException as error:
                self._failure = f"usage.totals can't be read: {error}"
                log.warning("live_totals_interrupted", error=str(error))
                self._stopping.wait(_RETRY_SECONDS)
            except BaseException as error:  # the thread is the last that could tell
                self._failure = f"reading usage.totals ended: {error!r}"
                log.exception("live_totals_died")
                raise

    def _follow(self) -> None:
        consumer = create_reader(
            watched(self._properties),
            f"{self._totals_topic}-live",
            out_of_range="earliest",
            partition_eof=True,
            more={"fetch.wait.max.ms": 200},
        )
        ends = LogEnds(self._properties, f"{self._totals_topic}-ends", _REQUEST_SECONDS)
        try:
            sources = [
                TopicPartition(topic, partition, OFFSET_BEGINNING)
                for topic in (self._totals_topic, self._alerts_topic, self._deliveries_topic)
                for partition in self._partitions
            ]
            unread = {(source.topic, source.partition) for source in sources}
            consumer.assign(sources)
            asked = 0.0
            while not self._stopping.is_set():
                messages = consumer.consume(_BATCH_MAX, _POLL_SECONDS)
                self._take_all(messages)
                now = self._last_poll = time.monotonic()
                if unread:
                    unread -= {(m.topic(), m.partition()) for m in messages if is_partition_end(m.error())}
                    if not unread:
                        self._failure = None
                        self._caught_up.set()
                        log.info("live_totals_caught_up", series=self.view.series_count)
                if now - asked > _ENDS_SECONDS:
                    self._next_offsets = {p: ends.of(self._events_topic, p)[1] for p in self._partitions}
                    asked = now
        finally:
            consumer.close()
            ends.close()

    def _take_all(self, messages: list[Message]) -> None:
        new_totals: dict[str, list[UsageTotal]] = {}
        new_alerts: dict[str, list[Alert]] = {}
        for message in messages:
            if error := message.error():
                if is_partition_end(error):
                    continue
                if error.fatal():
                    raise KafkaException(error)
                log.warning("live_totals_read_error", error=str(error))  # librdkafka goes on by itself
                continue
            with self._one_by_one.one(f"{message.topic()} {message.partition()}/{message.offset()}"):
                record = self._decoded(message)
                if isinstance(record, UsageTotal):
                    if self._apply_total(record):
                        new_totals.setdefault(record.organization_id, []).append(record)
                elif isinstance(record, Alert) and self.view.apply_alert(record):
                    new_alerts.setdefault(record.organization_id, []).append(record)
                elif isinstance(record, Progress):
                    self.view.apply_progress(record)
                elif isinstance(record, WebhookDelivery):
                    self.view.apply_delivery(record)
                elif isinstance(record, Closed):
                    self.view.apply_closed(record.partition, record.before)
                elif isinstance(record, Partial):
                    self.view.apply_partial(record.organization_id, record.partition, is_partial=True)
                elif message.value() is None and message.topic() == self._totals_topic:
                    self._take_back(message.key() or b"", message.partition() or 0)
        RECORDS.inc(len(messages))
        if not (new_totals or new_alerts):
            return
        SERIES.set(self.view.series_count)
        if self._caught_up.is_set():
            VISIBLE_SECONDS.observe(_age_seconds(new_totals))
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            some, others = new_totals.get(listener.organization_id, ()), new_alerts.get(listener.organization_id, ())
            if some or others:
                listener.offer(some, others)

    def _take_back(self, key: bytes, partition: int) -> None:
        """A tombstone. Those of totals need nothing: they are of cycles that a record before them closed."""
        if (organization_id := totals.partial_organization(key)) is not None:
            self.view.apply_partial(organization_id, partition, is_partial=False)
        elif key == totals.CLOSED_KEY:
            self.view.apply_closed(partition, 0)

    def _apply_total(self, total: UsageTotal) -> bool:
        before = self.view.series(total.organization_id, total.customer_id, total.event_name)
        if not self.view.apply_total(total):
            return False
        if self._caught_up.is_set():  # what was counted before we looked is no rate
            known = next((old.count for old in before if old.cycle_key == total.cycle_key), 0)
            self.view.rates.add(total.organization_id, max(0, total.count - known), total.updated_at)
        return True

    def _decoded(
        self, message: Message
    ) -> UsageTotal | Progress | Closed | Partial | Alert | WebhookDelivery | RetryRequest | None:
        key, value, topic = message.key() or b"", message.value(), message.topic()
        if value is None:
            return None
        try:
            if topic == self._alerts_topic:
                return alerts.decode(value)
            return deliveries.decode(key, value) if topic == self._deliveries_topic else totals.decode(key, value)
        except (UnreadableTotal, UnreadableAlert, UnreadableDelivery) as error:
            RECORDS_UNREADABLE.labels(topic).inc()
            log.warning("live_record_unreadable", topic=topic, offset=message.offset(), error=str(error))
            return None


def _age_seconds(changes: dict[str, list[UsageTotal]]) -> float:
    """Age of the oldest change, from the aggregator's publishing to now."""
    published = min((total.updated_at for new in changes.values() for total in new), default=None)
    return 0.0 if published is None else max(0.0, time.time() - published / 1e6)
