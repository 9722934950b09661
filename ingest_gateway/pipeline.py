"""valid batches → Kafka → receipts: coalesced, produced, answered when every part is acknowledged.

What arrives while messages are under way waits for their acknowledgement and then leaves together, as databases commit
in groups: alone a request never waits, and under load messages grow to what the broker takes between two answers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from functools import partial

import msgspec

from ingest_gateway import metrics
from ingest_gateway.coalesce import Claim, Coalescer, Columns
from ingest_gateway.producer import EventProducer
from schemas.event import EVENTS_PER_BATCH_MAX
from schemas.settings import Settings
from schemas.usage_batch import encode

OUTCOME_UNKNOWN = (
    "the outcome is unknown: part of the batch may be in the log; repeat it only if its events have event_ids "
    "or the request has an Idempotency-Key"
)
_FLUSH_EVENTS = 10 * EVENTS_PER_BATCH_MAX  # enough to fill messages; more would only wait
_MARGIN_SECONDS = 0.5  # librdkafka looks for expired messages once in a while


class NotAccepted(Exception):
    """Nothing of the batch was enqueued: repeating it is safe."""


class OutcomeUnknown(Exception):
    """Part of the batch may be in the log."""


class ReceiptRange(msgspec.Struct, frozen=True, gc=False):
    """Where events of the batch are in the log: all in messages first_offset to last_offset of the partition."""

    partition: int
    first_offset: int
    last_offset: int
    events: int


@dataclass(slots=True, eq=False)
class _Pending:
    """A batch under way: parts not yet acknowledged, and what is known of the others."""

    parts: int
    answer: asyncio.Future[list[ReceiptRange]]
    receipt: list[ReceiptRange] = field(default_factory=list[ReceiptRange])

    def settle(self, partition: int, events: int, offset: int | None, reason: str | None) -> None:
        self.parts -= 1
        if self.answer.done():
            return
        if offset is None:
            self.answer.set_exception(OutcomeUnknown(f"Kafka did not acknowledge ({reason}); {OUTCOME_UNKNOWN}"))
            return
        self.receipt.append(ReceiptRange(partition, offset, offset, events))
        if self.parts == 0:
            self.answer.set_result(self.receipt)

    def expire(self, seconds: float) -> None:
        """Its messages may still settle later; the client is not kept waiting for them."""
        if not self.answer.done():
            self.answer.set_exception(OutcomeUnknown(f"no acknowledgement within {seconds:g} s; {OUTCOME_UNKNOWN}"))


class Pipeline:
    """Lives in one event loop. Memory is bounded by settings.queue_events_max."""

    def __init__(self, settings: Settings, producer: EventProducer) -> None:
        self._producer = producer
        self._coalescer: Coalescer[_Pending] = Coalescer()
        self._loop = asyncio.get_running_loop()
        self._linger = settings.linger_ms / 1000
        self._flush_timer: asyncio.Handle | None = None
        self._messages_under_way = 0
        self._events_max = settings.queue_events_max
        self._answer_seconds_max = settings.delivery_timeout_ms / 1000 + _MARGIN_SECONDS
        self._events_waiting = 0
        metrics.EVENTS_WAITING.set_function(lambda: self._events_waiting)

    async def accept(self, parts: dict[int, Columns]) -> list[ReceiptRange]:
        """Produce a batch split by partition and wait for all acknowledgements; its receipt by partition.

        Raises NotAccepted (queue full, brokers away: nothing enqueued) or OutcomeUnknown (failed or late after that).
        """
        events = sum(map(len, parts.values()))
        self._check_room(events)
        pending = _Pending(len(parts), self._loop.create_future())
        for partition, columns in parts.items():
            self._coalescer.add(pending, partition, columns)
        self._schedule()
        receipt = await self._acknowledged(pending, events)
        metrics.EVENTS_ACCEPTED.inc(events)
        return receipt

    async def accept_message(self, partition: int, message: bytes) -> list[ReceiptRange]:
        """Produce one message that is no batch of events, and wait for its acknowledgement. Raises as accept does."""
        self._check_room(1)
        pending = _Pending(1, self._loop.create_future())
        try:
            self._producer.produce(
                partition, None, message, lambda offset, reason: pending.settle(partition, 1, offset, reason)
            )
        except BufferError as error:
            raise NotAccepted(f"{error}; nothing was enqueued") from error
        metrics.MESSAGES.inc()
        return await self._acknowledged(pending, 1)

    def _check_room(self, events: int) -> None:
        if self._producer.fatal:
            raise NotAccepted(f"the producer has failed: {self._producer.fatal}")
        if self._producer.unreachable:
            raise NotAccepted("no Kafka broker answers; nothing was enqueued")
        if self._events_waiting + events > self._events_max:
            raise NotAccepted("too many events await acknowledgement; nothing was enqueued")

    async def _acknowledged(self, pending: _Pending, events: int) -> list[ReceiptRange]:
        self._events_waiting += events
        started = time.perf_counter()
        try:
            receipt = await pending.answer
        finally:
            self._events_waiting -= events
        metrics.ACKNOWLEDGED_SECONDS.observe(time.perf_counter() - started)
        return sorted(receipt, key=lambda part: part.partition)

    def _schedule(self) -> None:
        if self._coalescer.events >= _FLUSH_EVENTS:
            self.flush()
        elif self._flush_timer is None:
            if self._messages_under_way:
                self._flush_timer = self._loop.call_later(self._linger, self.flush)
            else:
                self._flush_timer = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Encode and enqueue everything that was collected."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        received_at = time.time_ns() // 1000
        for partition, batch, claims in self._coalescer.drain(lambda: secrets.token_bytes(16), received_at):
            metrics.MESSAGES.inc()
            self._messages_under_way += 1
            expiry = self._loop.call_later(self._answer_seconds_max, self._expire, claims)
            settled = partial(self._settle, partition, claims, expiry)
            try:
                self._producer.produce(partition, None, encode(batch), settled)
            except BufferError as error:
                settled(None, str(error))

    def _settle(
        self,
        partition: int,
        claims: list[Claim[_Pending]],
        expiry: asyncio.TimerHandle,
        offset: int | None,
        reason: str | None,
    ) -> None:
        expiry.cancel()
        for claim in claims:
            claim.owner.settle(partition, claim.events, offset, reason)
        self._messages_under_way -= 1
        if self._flush_timer is not None and not self._messages_under_way:
            self._flush_timer.cancel()
            self._flush_timer = self._loop.call_soon(self.flush)

    def _expire(self, claims: list[Claim[_Pending]]) -> None:
        for claim in claims:
            claim.owner.expire(self._answer_seconds_max)

    async def drain(self, timeout_seconds: float) -> None:
        """Flush and wait until nothing is under way, for a graceful end."""
        self.flush()
        deadline = self._loop.time() + timeout_seconds
        while self._events_waiting and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
