"""usage.alerts → signed requests to merchants' endpoints ⇄ usage.webhook_deliveries: sent until they are answered.

Workers share the partitions as one consumer group. A delivery is in the log before it is sent, and so is what came of
each attempt before the next; the alert's offset is committed after that. A worker that dies leaves all of it to the
next one, which reads the partition's deliveries from their beginning. A success is never repeated, but when the worker
dies between the answer and the log, which is written at once: then the receiver knows the alert by its `webhook-id`.
While the broker takes nothing, what came of attempts is kept in memory and nothing more is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from catalog.view import CatalogView
from dashboard.metrics import WEBHOOK_ATTEMPTS, WEBHOOK_SECONDS
from dashboard.webhooks.attempts import attempted, given_up
from dashboard.webhooks.send import Sender
from dashboard.webhooks.shelf import Shelf
from runtime.clock import now_us
from runtime.kafka.acked_producer import AckedProducer, NotAcknowledged, Record
from runtime.kafka.client_watch import watched
from runtime.kafka.clients import create_member, is_partition_end
from runtime.one_by_one import OneByOne
from schemas import alert as alerts
from schemas import webhook_delivery as deliveries
from schemas.alert import UnreadableAlert
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import USAGE_ALERTS, USAGE_WEBHOOK_DELIVERIES, WEBHOOKS_GROUP, topic_name
from schemas.webhook_delivery import Attempt, RetryRequest, UnreadableDelivery, WebhookDelivery
from schemas.webhook_endpoint import WebhookEndpoint

log = structlog.get_logger(__name__)

IN_FLIGHT_MAX = 64
IN_FLIGHT_PER_ENDPOINT_MAX = 8  # one that does not answer must not hold up the others
_POLL_SECONDS = 0.05
_BATCH_MAX = 500
_RETRY_SECONDS = 1.0
_STOP_SECONDS = 5.0
_POLL_AGE_SECONDS_MAX = 30.0


class DeliveryLog:
    """Writes to usage.webhook_deliveries; each write returns when it is acknowledged. Thread-safe."""

    def __init__(self, settings: Settings, writer: AckedProducer) -> None:
        self._topic = topic_name(settings, USAGE_WEBHOOK_DELIVERIES)
        self._partitions = settings.event_partitions
        self._writer = writer

    def write(self, records: Iterable[WebhookDelivery]) -> None:
        """Blocks. Raises NotAcknowledged."""
        self._writer.write(
            self._topic, [Record(self._partition_of(each), each.key, deliveries.encode(each)) for each in records]
        )

    def ask_again(self, delivery: WebhookDelivery, now: int) -> None:
        """Request one more attempt from the worker that has the partition. Blocks. Raises NotAcknowledged."""
        request = RetryRequest(delivery.id, now)
        self._writer.write(self._topic, [Record(self._partition_of(delivery), request.key, deliveries.encode(request))])

    def _partition_of(self, delivery: WebhookDelivery) -> int:
        return partition_of(delivery.organization_id, delivery.customer_id, self._partitions)


class WebhookWorker:
    """Delivers from a thread with an event loop of its own, so that the pages don't wait for it."""

    def __init__(self, settings: Settings, view: CatalogView, log_: DeliveryLog) -> None:
        self._settings = settings
        self._view = view
        self._log = log_
        self._alerts_topic = topic_name(settings, USAGE_ALERTS)
        self._deliveries_topic = topic_name(settings, USAGE_WEBHOOK_DELIVERIES)
        self._shelves: dict[int, Shelf] = {}
        # An alert that no delivery can be made of, a record that nothing can be done with.
        self._loop = OneByOne("webhooks", lambda error: isinstance(error, KafkaException))
        self._busy: Counter[str] = Counter()  # endpoint → requests in flight
        self._sending: set[asyncio.Task[None]] = set()
        self._unwritten: list[tuple[Shelf, WebhookDelivery]] = []
        self._read: dict[int, TopicPartition] = {}  # partition → where to go on when all is written
        self._done = asyncio.Event()  # something came of an attempt
        self._writing = asyncio.Lock()
        self._broken: BaseException | None = None
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._last_poll = 0.0
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._last_poll = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Let what is being sent end, a moment long. Blocks."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * _STOP_SECONDS)

    def check(self) -> str | None:
        """None: alerts are being read. Else why not."""
        if self._failure is not None:
            return self._failure
        return None if time.monotonic() - self._last_poll < _POLL_AGE_SECONDS_MAX else "usage.alerts is not being read"

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._work())
            except (KafkaException, NotAcknowledged) as error:
                self._failure = f"webhooks are interrupted: {error}"
                log.warning("webhooks_interrupted", error=str(error))
                self._stopping.wait(_RETRY_SECONDS)
            except Exception as error:  # the thread is the last that could tell, and must go on
                self._failure = f"webhooks are interrupted: {error!r}"
                log.exception("webhooks_failed")
                self._stopping.wait(_RETRY_SECONDS)

    async def _work(self) -> None:
        consumer = create_member(
            watched(self._settings.kafka_properties),
            topic_name(self._settings, WEBHOOKS_GROUP),
            {
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "partition.assignment.strategy": "range",  # both topics' partitions of a number meet in one worker
                "fetch.wait.max.ms": 200,
            },
        )
        sender = Sender(self._settings)
        self._shelves.clear()
        self._busy.clear()
        self._read.clear()
        self._done, self._writing, self._broken = asyncio.Event(), asyncio.Lock(), None
        recording = asyncio.create_task(self._record())
        try:
            consumer.subscribe(
                [self._alerts_topic, self._deliveries_topic], on_assign=self._assigned, on_revoke=self._revoked
            )
            while not self._stopping.is_set():
                messages = await asyncio.to_thread(consumer.consume, _BATCH_MAX, _POLL_SECONDS)
                await self._step(consumer, sender, messages)
                self._last_poll = time.monotonic()
            if self._sending:
                await asyncio.wait(self._sending, timeout=_STOP_SECONDS)
            await self._write()
        finally:
            recording.cancel()
            for task in self._sending:
                task.cancel()
            await asyncio.gather(recording, *self._sending, return_exceptions=True)
            await sender.close()
            await asyncio.to_thread(consumer.close)

    # -- partitions; called within consume -------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            if each.topic == self._deliveries_topic:
                self._shelves[each.partition] = Shelf()
                each.offset = OFFSET_BEGINNING
        consumer.assign(partitions)

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            if each.topic == self._deliveries_topic:
                self._shelves.pop(each.partition, None)

    # -- one turn --------------------------------------------------------------------------------------------------

    async def _step(self, consumer: Consumer, sender: Sender, messages: list[Message]) -> None:
        if self._broken is not None:
            raise self._broken
        for message in messages:
            with self._loop.one(f"{message.topic()} {message.partition()}/{message.offset()}"):
                self._take(message)
        try:
            await self._write()  # what came of attempts, before anything new
            now = now_us()
            self._unwritten += self._news(now)
            await self._write()
        except NotAcknowledged as error:
            self._failure = f"webhooks are interrupted: {error}"
            log.warning("webhooks_interrupted", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)
            return
        self._failure = None
        if self._read:
            offsets, self._read = list(self._read.values()), {}
            await asyncio.to_thread(self._commit, consumer, offsets)
        self._send_due(sender, now)

    def _news(self, now: int) -> list[tuple[Shelf, WebhookDelivery]]:
        """What alerts and requests that have been read make of the shelves."""
        changed: list[tuple[Shelf, WebhookDelivery]] = []
        for partition, shelf in self._shelves.items():
            if not shelf.restored:
                continue
            changed += [(shelf, delivery) for delivery in shelf.followed_requests(now)]
            new: dict[str, WebhookDelivery] = {}
            for offset, alert in shelf.waiting:
                with self._loop.one(alert.id):
                    endpoints = self._endpoints(alert.organization_id) if alert.not_sent is None else ()
                    new |= {each.id: each for each in shelf.new_deliveries(alert, endpoints, now)}
                self._read[partition] = TopicPartition(self._alerts_topic, partition, offset + 1)
            shelf.waiting.clear()
            changed += [(shelf, delivery) for delivery in new.values()]
        return changed

    async def _write(self) -> None:
        """Into the log, then onto the shelves. Raises NotAcknowledged; the next call writes what is left."""
        async with self._writing:
            if not (changed := list(self._unwritten)):
                return
            await asyncio.to_thread(self._log.write, [delivery for _, delivery in changed])
            del self._unwritten[: len(changed)]
            for shelf, delivery in changed:
                shelf.put(delivery)
                shelf.in_flight.discard(delivery.id)

    async def _record(self) -> None:
        """Write what came of an attempt at once: what is not in the log when this process dies is sent again."""
        while True:
            await self._done.wait()
            self._done.clear()
            with contextlib.suppress(NotAcknowledged):  # the next turn tries again, and tells
                await self._write()

    def _take(self, message: Message) -> None:
        shelf = self._shelves.get(message.partition() or 0)
        if shelf is None:
            return
        error, of_alerts = message.error(), message.topic() == self._alerts_topic
        if error is not None:
            if is_partition_end(error):
                shelf.restored = shelf.restored or not of_alerts
            elif error.fatal():
                raise KafkaException(error)
            else:  # librdkafka goes on by itself
                log.warning("webhooks_read_error", error=str(error))
            return
        value, offset = message.value(), message.offset()
        if value is None or offset is None:
            return
        try:
            if of_alerts:
                shelf.waiting.append((offset, alerts.decode(value)))
                return
            record = deliveries.decode(message.key() or b"", value)
        except (UnreadableAlert, UnreadableDelivery) as unreadable:
            log.warning("webhook_record_unreadable", topic=message.topic(), offset=offset, error=str(unreadable))
            return
        if isinstance(record, RetryRequest):
            shelf.ask(record)
        else:
            shelf.put(record)

    def _commit(self, consumer: Consumer, offsets: list[TopicPartition]) -> None:
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # After a rebalance: whoever has the partition now reads the alert again, and finds its deliveries.
            log.warning("webhooks_commit_failed", error=str(error))

    def _endpoints(self, organization_id: str) -> list[WebhookEndpoint]:
        return [each for each in self._view.all(WebhookEndpoint, organization_id) if not each.archived]

    # -- sending ---------------------------------------------------------------------------------------------------

    def _send_due(self, sender: Sender, now: int) -> None:
        for shelf in self._shelves.values():
            if not shelf.restored:
                continue
            for delivery in shelf.due(now):
                if len(self._sending) >= IN_FLIGHT_MAX:
                    return
                endpoint = self._view.get(WebhookEndpoint, delivery.organization_id, delivery.endpoint_id)
                if endpoint is None or endpoint.archived:
                    shelf.in_flight.add(delivery.id)
                    self._came_of(shelf, given_up(delivery, now, "the endpoint is archived"))
                elif self._busy[endpoint.id] < IN_FLIGHT_PER_ENDPOINT_MAX:
                    shelf.in_flight.add(delivery.id)
                    self._busy[endpoint.id] += 1
                    task = asyncio.create_task(self._send(sender, shelf, endpoint, delivery))
                    self._sending.add(task)
                    task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error

    async def _send(self, sender: Sender, shelf: Shelf, endpoint: WebhookEndpoint, delivery: WebhookDelivery) -> None:
        try:
            attempt = await sender.send(endpoint, delivery)
        finally:
            self._busy[endpoint.id] -= 1
        self._observe(delivery, attempt)
        jitter = random.uniform(0.9, 1.1)
        first_seconds = self._settings.webhook_retry_seconds
        self._came_of(shelf, attempted(delivery, attempt, first_seconds, jitter))

    def _came_of(self, shelf: Shelf, delivery: WebhookDelivery) -> None:
        self._unwritten.append((shelf, delivery))
        self._done.set()

    def _observe(self, delivery: WebhookDelivery, attempt: Attempt) -> None:
        WEBHOOK_ATTEMPTS.labels("delivered" if attempt.error is None else "failed").inc()
        if attempt.error is None and delivery.attempts_made == 0:
            WEBHOOK_SECONDS.observe((attempt.at - delivery.created_at) / 1e6 + attempt.milliseconds / 1e3)
        if attempt.error is not None:
            log.info("webhook_failed", delivery=delivery.id, endpoint=delivery.endpoint_id, error=attempt.error)
