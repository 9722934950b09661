"""valid batches → Kafka → receipts: coalesced, cut to size, produced, answered when every event is acknowledged.

What arrives while messages are under way waits for their acknowledgement and then leaves together, as databases commit
in groups: alone a request never waits, and under load messages grow to what the broker takes between two answers.

A request waits for a time of ours, and is answered 503 then. Its messages stay with the client library, which has
minutes: one that it gives up in flight makes it write those after it twice (librdkafka's issue 4953). So what counts
against the bounds is what the library holds, answered or not.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from functools import partial

import msgspec

from ingest_gateway import metrics
from ingest_gateway.coalesce import Claim, Coalescer, Columns
from ingest_gateway.cut import messages
from ingest_gateway.producer import EventProducer
from runtime.clock import now_us
from schemas.event import EVENTS_PER_BATCH_MAX
from schemas.settings import Settings
from schemas.usage_batch import batch_id_of

OUTCOME_UNKNOWN = (
    "the outcome is unknown: part of the batch may be in the log; repeat it only if its events have event_ids "
    "or the request has an Idempotency-Key"
)
_FLUSH_EVENTS = 10 * EVENTS_PER_BATCH_MAX  # enough to fill messages; more would only wait


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


class _Pending:
    """A request under way. body_bytes: what it may take in memory. unsettled: events whose outcome is not known yet.

    batch_ids: grows with the messages that its events leave in. usage: events of usage, which a tombstone is not.
    """

    __slots__ = ("_receipt", "answer", "batch_ids", "body_bytes", "events", "unsettled", "usage")

    def __init__(
        self, events: int, body_bytes: int, answer: asyncio.Future[list[ReceiptRange]], batch_ids: list[bytes]
    ) -> None:
        self.events = self.unsettled = self.usage = events
        self.body_bytes = body_bytes
        self.answer = answer
        self.batch_ids = batch_ids
        self._receipt: dict[int, ReceiptRange] = {}

    def settle(self, partition: int, events: int, offset: int | None, reason: str | None) -> bool:
        """Whether that makes its receipt complete."""
        self.unsettled -= events
        if self.answer.done():
            return False
        if offset is None:
            self.answer.set_exception(OutcomeUnknown(f"Kafka did not acknowledge ({reason}); {OUTCOME_UNKNOWN}"))
            return False
        if events == self.events:  # all on one message, as a small request is
            self.answer.set_result([ReceiptRange(partition, offset, offset, events)])
            return True
        known = self._receipt.get(partition)
        if known is None:
            self._receipt[partition] = ReceiptRange(partition, offset, offset, events)
        else:
            first, last = min(known.first_offset, offset), max(known.last_offset, offset)
            self._receipt[partition] = ReceiptRange(partition, first, last, known.events + events)
        if self.unsettled:
            return False
        self.answer.set_result(sorted(self._receipt.values(), key=lambda part: part.partition))
        return True

    def expire(self, seconds: float) -> None:
        """Its messages may still settle later; the client is not kept waiting for them."""
        if not self.answer.done():
            self.answer.set_exception(OutcomeUnknown(f"no acknowledgement within {seconds:g} s; {OUTCOME_UNKNOWN}"))


class Pipeline:
    """Lives in one event loop. Memory is bounded by settings.queue_events_max and queue_bytes_max."""

    def __init__(self, settings: Settings, producer: EventProducer) -> None:
        self._producer = producer
        self._coalescer: Coalescer[_Pending] = Coalescer()
        self._loop = asyncio.get_running_loop()
        self._linger = settings.linger_ms / 1000
        self._flush_timer: asyncio.Handle | None = None
        self._messages_under_way = 0
        self._events_max = settings.queue_events_max
        self._bytes_max = settings.queue_bytes_max
        self._answer_seconds_max = settings.delivery_timeout_ms / 1000
        self._events_waiting = 0
        self._bytes_waiting = 0
        self._stalled = False  # a message was not acknowledged in time, and none has been since
        metrics.EVENTS_WAITING.set_function(lambda: self._events_waiting)

    async def accept(
        self, parts: dict[int, Columns], body_bytes: int = 0, batch_ids: list[bytes] | None = None
    ) -> list[ReceiptRange]:
        """Produce a batch split by partition and wait for all acknowledgements; its receipt by partition.

        body_bytes: of the request, decompressed; what it takes in memory is no more than a few times that.
        batch_ids: gets those of the messages that the events leave in, also where the outcome is unknown.
        Raises NotAccepted (queue full, brokers away: nothing enqueued) or OutcomeUnknown (failed or late after that).
        """
        pending = self._admit(sum(map(len, parts.values())), body_bytes, batch_ids)
        for partition, columns in parts.items():
            self._coalescer.add(pending, partition, columns)
        self._schedule()
        return await self._acknowledged(pending)

    async def accept_message(
        self, partition: int, message: bytes, batch_ids: list[bytes] | None = None
    ) -> list[ReceiptRange]:
        """Produce one message that is no batch of events, and wait for its acknowledgement. Raises as accept does."""
        pending = self._admit(1, len(message), batch_ids)
        pending.usage = 0
        self._produce(partition, message, [Claim(pending, 1)])
        return await self._acknowledged(pending)

    def _admit(self, events: int, body_bytes: int, batch_ids: list[bytes] | None) -> _Pending:
        if self._producer.fatal:
            raise NotAccepted(f"the producer has failed: {self._producer.fatal}")
        if self._producer.unreachable:
            raise NotAccepted("no Kafka broker answers; nothing was enqueued")
        if self._stalled:
            raise NotAccepted("Kafka does not acknowledge at the moment; nothing was enqueued")
        # Nothing waiting: any request that is within its own limits has room.
        if self._events_waiting and (
            self._events_waiting + events > self._events_max or self._bytes_waiting + body_bytes > self._bytes_max
        ):
            raise NotAccepted("too many events await acknowledgement; nothing was enqueued")
        self._events_waiting += events
        self._bytes_waiting += body_bytes
        return _Pending(events, body_bytes, self._loop.create_future(), [] if batch_ids is None else batch_ids)

    async def _acknowledged(self, pending: _Pending) -> list[ReceiptRange]:
        started = time.perf_counter()
        receipt = await pending.answer
        metrics.ACKNOWLEDGED_SECONDS.observe(time.perf_counter() - started)
        return receipt

    def _schedule(self) -> None:
        if self._coalescer.events >= _FLUSH_EVENTS:
            self.flush()
        elif self._flush_timer is None:
            if self._messages_under_way:
                self._flush_timer = self._loop.call_later(self._linger, self.flush)
            else:
                self._flush_timer = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Encode everything that was collected, then enqueue it."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        collected = self._coalescer.drain(_new_batch_id, now_us())
        encoded = [
            (partition, message, on_it)
            for partition, batch, claims in collected
            for message, on_it in messages(batch, claims, _new_batch_id)
        ]
        for partition, message, claims in encoded:
            self._produce(partition, message, claims)

    def _produce(self, partition: int, message: bytes, claims: Sequence[Claim[_Pending]]) -> None:
        metrics.MESSAGES.inc()
        self._messages_under_way += 1
        batch_id = batch_id_of(message)
        for claim in claims:
            claim.owner.batch_ids.append(batch_id)
        expiry = self._loop.call_later(self._answer_seconds_max, self._expire, claims)
        settled = partial(self._settle, partition, claims, expiry)
        try:
            self._producer.produce(partition, None, message, settled)
        except BufferError as error:
            settled(None, str(error))

    def _settle(
        self,
        partition: int,
        claims: Sequence[Claim[_Pending]],
        expiry: asyncio.TimerHandle,
        offset: int | None,
        reason: str | None,
    ) -> None:
        expiry.cancel()
        self._stalled = False
        accepted = 0
        for claim in claims:
            pending = claim.owner
            if pending.settle(partition, claim.events, offset, reason):
                accepted += pending.usage
            if not pending.unsettled:
                self._events_waiting -= pending.events
                self._bytes_waiting -= pending.body_bytes
        if accepted:
            metrics.EVENTS_ACCEPTED.inc(accepted)
        self._messages_under_way -= 1
        if self._flush_timer is not None and not self._messages_under_way:
            self._flush_timer.cancel()
            self._flush_timer = self._loop.call_soon(self.flush)

    def _expire(self, claims: Sequence[Claim[_Pending]]) -> None:
        self._stalled = True
        for claim in claims:
            claim.owner.expire(self._answer_seconds_max)

    async def drain(self, timeout_seconds: float) -> None:
        """Flush and wait until nothing is under way, for a graceful end."""
        self.flush()
        deadline = self._loop.time() + timeout_seconds
        while self._events_waiting and self._loop.time() < deadline:
            await asyncio.sleep(0.01)


def _new_batch_id() -> bytes:
    return secrets.token_bytes(16)
