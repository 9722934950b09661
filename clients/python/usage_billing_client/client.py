"""tracked events → queue → batches → store → gateway, in threads of the client."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import httpx

from usage_billing_client.answers import Accepted, Later, Refused, TooLarge, Verdict, delay, verdict
from usage_billing_client.batches import BYTES_MAX, EVENTS_MAX, Batch, cut, packed, unpack
from usage_billing_client.errors import ClientClosed, EventError, NotDelivered, QueueFull, RefusedEvent, SpoolError
from usage_billing_client.events import Event, Value, encode_event, event_fields
from usage_billing_client.stores import MemoryStore, SpoolStore, Store

WhenFull = Literal["block", "drop", "raise"]
_PATH = "/api/v1/usage/events"
_IDLE_SECONDS = 0.5  # longest sleep of a thread that waits for work and could miss that the client is closing
_ADOPT_SECONDS = 60.0
_log = logging.getLogger("usage_billing_client")
_clients: weakref.WeakSet[UsageClient] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of events since the client was made.

    tracked: taken by `track` and `track_all`. accepted: acknowledged by the gateway, what a spool held before included.
    unmatched: of these, without a meter or customer. refused: never accepted, each given to `on_refused`.
    dropped: not taken, because the queue was full (policy "drop"). waiting: not acknowledged yet.
    retries: requests that were sent again. last_error: why the newest failed one failed, None when it did not.
    """

    tracked: int
    accepted: int
    unmatched: int
    refused: int
    dropped: int
    waiting: int
    retries: int
    last_error: str | None


class UsageClient:
    """Track usage without waiting for it. One for a process; thread-safe; works on in a forked child.

    address: of the gateway, such as http://127.0.0.1:8080. key: an API key with scope ingest.
    spool: directory that keeps events over outages and restarts; None keeps them in memory alone.
    when_full: what `track` does when the queue is full: "block" (for block_seconds at most), "drop" or "raise".
    queue_events_max: tracked events that are not in a batch yet; without a spool, also those in batches.
    batch_events_max, batch_bytes_max: of one request, before compression.
    linger_seconds: how long an event waits for others.
    spool_bytes_max: of waiting requests, compressed. spool_fsync: survive a power cut too, not only a killed process.
    connections: requests under way at once. timeout_seconds: of one request.
    on_refused: called in a thread of the client with each event that is refused for good; without it they are logged.
    exit_seconds: how long the process's end waits for what is left.

    Raises SpoolError when the spool can't be opened.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        spool: str | os.PathLike[str] | None = None,
        when_full: WhenFull = "block",
        block_seconds: float = 30.0,
        queue_events_max: int = 100_000,
        batch_events_max: int = EVENTS_MAX,
        batch_bytes_max: int = BYTES_MAX,
        linger_seconds: float = 0.2,
        spool_bytes_max: int = 1 << 30,
        spool_fsync: bool = False,
        connections: int = 4,
        timeout_seconds: float = 15.0,
        on_refused: Callable[[RefusedEvent], None] | None = None,
        exit_seconds: float = 5.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not 1 <= batch_events_max <= EVENTS_MAX:
            raise ValueError(f"batch_events_max must be 1 to {EVENTS_MAX}")
        self._address = address.rstrip("/")
        self._key = key
        self._spool = None if spool is None else Path(spool)
        self._when_full: WhenFull = when_full
        self._block_seconds = block_seconds
        self._queue_events_max = queue_events_max
        self._batch_events_max = batch_events_max
        self._batch_bytes_max = batch_bytes_max
        self._linger_seconds = linger_seconds
        self._spool_bytes_max = spool_bytes_max
        self._spool_fsync = spool_fsync
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._on_refused = on_refused
        self._exit_seconds = exit_seconds
        self._transport = transport
        self._begin()
        if self._spool is not None:
            self._store = self._open_store()
            if self._store.events:
                self._start()
        _clients.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    def _begin(self) -> None:
        """All that belongs to this process; a forked child gets its own."""
        self._queue: deque[tuple[Any, ...]] = deque()
        self._limit = self._queue_events_max
        self._prefix = secrets.token_hex(10)
        self._made_ids = 0
        self._drained = self._accepted = self._unmatched = self._refused = self._dropped = self._retries = 0
        self._batching = 0  # events taken from the queue that the store does not have yet
        self._last_error: str | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._some = threading.Event()
        self._many = threading.Event()
        self._hurry = False
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._http: httpx.Client | None = None
        self._store: Store | None = None

    def _open_store(self) -> Store:
        if self._spool is None:
            return MemoryStore(self._queue_events_max)
        return SpoolStore(self._spool, self._spool_bytes_max, fsync=self._spool_fsync)

    # -- taking events -------------------------------------------------------------------------------------------------

    def track(
        self,
        customer_id: str,
        event_name: str,
        value: Value = None,
        *,
        timestamp: datetime | None = None,
        event_id: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Take one event and return; threads of the client do the rest.

        The arguments are those of `Event`. Nothing is checked here: what is wrong with an event reaches `on_refused`.
        Raises ClientClosed; QueueFull by the policy.
        """
        # The hot path: a length, an append, two comparisons. Anything more shows in the caller's time.
        queue = self._queue
        waiting = len(queue)
        if waiting >= self._limit and not self._has_room():
            return
        queue.append((customer_id, event_name, value, timestamp or time.time(), event_id, properties))
        if not waiting:
            self._wake()
        elif waiting == self._batch_events_max:
            self._many.set()

    def track_all(self, events: Iterable[Event], *, position: str | None = None) -> None:
        """Take events together with the position of their source; return when the store has them.

        With a spool, events and position are written in one transaction, so that a source that is read on from
        `position` after a restart gives each event exactly once, without ids of its own. Bounded memory: read a source
        in pieces. Raises ClientClosed, SpoolError, and QueueFull when the store has no room for block_seconds.
        """
        self._start()
        now = time.time()
        taken = [(e.customer_id, e.event_name, e.value, e.timestamp or now, e.event_id, e.properties) for e in events]
        if self._closing.is_set():
            raise ClientClosed("the client is closed")
        self._await_room()
        with self._lock:
            self._drained += len(taken)
        self._batch(taken, position)

    @property
    def position(self) -> str | None:
        """The position of the newest `track_all`, of a process before this one too when there is a spool."""
        return self._store.position if self._store else None

    def _has_room(self) -> bool:
        """Whether the event may be taken after all. Raises QueueFull, ClientClosed."""
        if self._limit < 0:
            raise ClientClosed("the client is closed")
        if self._when_full == "drop":
            with self._lock:
                self._dropped += 1
            return False
        deadline = time.monotonic() + (self._block_seconds if self._when_full == "block" else 0)
        with self._changed:
            while len(self._queue) >= self._limit:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise QueueFull(
                        f"{len(self._queue)} events wait already; {self._last_error or 'the gateway is slow'}"
                    )
                self._changed.wait(left)
                if self._limit < 0:
                    raise ClientClosed("the client is closed")
        return True

    def _why_full(self, waiting: int) -> str:
        return f"{waiting} events wait already; {self._last_error or 'the gateway is slow'}"

    def _await_room(self) -> None:
        store = self._store
        assert store is not None
        deadline = time.monotonic() + self._block_seconds
        with self._changed:
            while not store.room:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise QueueFull(self._why_full(store.events))
                self._changed.wait(left)

    # -- waiting for them ----------------------------------------------------------------------------------------------

    def persist(self, timeout: float = 30.0) -> None:
        """Wait until the spool has all that was tracked. Raises NotDelivered after `timeout` s, or without a spool."""
        if self._spool is None:
            raise NotDelivered(self.stats().waiting, kept=False, reason="the client has no spool")
        self._await(lambda: not self._queue and not self._batching, timeout)

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until the gateway has all that was tracked. Raises NotDelivered after `timeout` seconds."""
        self._await(lambda: self.waiting == 0, timeout)

    def close(self, timeout: float | None = None) -> None:
        """Send what is left, for `timeout` seconds at most (exit_seconds by default), and end the threads.

        Raises NotDelivered when events are left; with a spool the next client sends them. Closing twice is fine.
        """
        if self._closing.is_set():
            return
        self._limit = -1  # `track` finds the queue full, looks why, and raises ClientClosed
        reason: NotDelivered | None = None
        try:
            self._await(lambda: self.waiting == 0, self._exit_seconds if timeout is None else timeout)
        except NotDelivered as left:
            reason = left
        self._closing.set()
        self._some.set()
        if self._store is not None:
            self._store.wake()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(self._timeout_seconds if reason is None else _IDLE_SECONDS * 2)
        if self._http is not None:
            self._http.close()
        if self._store is not None:
            self._store.close()
        if reason is not None:
            raise reason

    def __enter__(self) -> UsageClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Events tracked, or found in the spool, that the gateway has not acknowledged."""
        return len(self._queue) + self._batching + (self._store.events if self._store else 0)

    def stats(self) -> Stats:
        """Counts since the client was made."""
        with self._lock:
            return Stats(
                self._drained + len(self._queue),
                self._accepted,
                self._unmatched,
                self._refused,
                self._dropped,
                self.waiting,
                self._retries,
                self._last_error,
            )

    def _await(self, condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if not condition():
            self._start()
        with self._changed:
            self._hurry = True
            self._many.set()
            self._some.set()
            try:
                while not condition():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        kept = self._spool is not None and not self._queue and not self._batching
                        raise NotDelivered(self.waiting, kept=kept, reason=self._last_error)
                    self._changed.wait(left)
            finally:
                self._hurry = False

    # -- threads -------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._threads:
            self._start()
        self._some.set()

    def _start(self) -> None:
        """Start the threads at the first need: a process that only imports, or forks first, has none."""
        with self._lock:
            if self._threads or self._closing.is_set():
                return
            if self._store is None:
                self._store = self._open_store()
            self._http = httpx.Client(
                headers={
                    "Authorization": f"Bearer {self._key}",
                    "Content-Type": "application/json",
                    "Content-Encoding": "gzip",
                },
                timeout=self._timeout_seconds,
                limits=httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
                transport=self._transport,
            )
            jobs = [self._batch_queue, *[self._send_batches] * self._connections]
            self._threads = [threading.Thread(target=job, name="usage-client", daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def _batch_queue(self) -> None:
        store = self._store
        assert store is not None
        adopt_at = time.monotonic()
        while not self._closing.is_set():
            if time.monotonic() >= adopt_at:
                self._adopt(store)
                adopt_at = time.monotonic() + _ADOPT_SECONDS
            # The queue is looked at without a signal too: an event that came while the last one was taken gave none.
            if not self._some.wait(_IDLE_SECONDS) and not self._queue:
                continue
            self._some.clear()
            if not self._hurry:
                self._many.wait(self._linger_seconds)
            self._many.clear()
            while self._queue and not self._closing.is_set():
                if not store.room:
                    with self._changed:
                        self._changed.wait(_IDLE_SECONDS)
                    continue
                self._drain()

    def _adopt(self, store: Store) -> None:
        try:
            store.adopt()
        except (SpoolError, OSError) as reason:
            _log.warning("spools of ended processes can't be read: %s", reason)

    def _drain(self) -> None:
        """Move one batch's worth of events from the queue into the store; a full disk is waited for."""
        pop = self._queue.popleft
        count = min(len(self._queue), self._batch_events_max)
        with self._lock:
            self._batching = count
        taken = [pop() for _ in range(count)]
        with self._lock:
            self._drained += count
        try:
            while True:
                try:
                    self._batch(taken, None)
                    break
                except SpoolError as reason:
                    self._note(str(reason))
                    if self._closing.wait(1.0):
                        break
        finally:
            with self._changed:
                self._batching = 0
                self._changed.notify_all()

    def _batch(self, taken: list[tuple[Any, ...]], position: str | None) -> None:
        assert self._store is not None
        with self._lock:
            first = self._made_ids
            self._made_ids += len(taken)
        outcomes = [encode_event(event, f"{self._prefix}-{number}") for number, event in enumerate(taken, first)]
        encoded = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        if len(encoded) < len(outcomes):
            self._refuse([outcome for outcome in outcomes if isinstance(outcome, RefusedEvent)])
        runs = cut(encoded, self._batch_events_max, self._batch_bytes_max)
        self._store.add([packed(run) for run in runs], position)

    def _send_batches(self) -> None:
        store = self._store
        assert store is not None
        while not self._closing.is_set():
            batch = store.take(_IDLE_SECONDS)
            if batch is None:
                continue
            try:
                self._send(batch, store)
            except SpoolError as reason:
                # Its batch stays taken: this process sends it no more, the next one that opens the spool does.
                self._note(str(reason))

    def _send(self, batch: Batch, store: Store) -> None:
        """Send until the gateway has decided; the client's end leaves the batch in the store."""
        attempt = 0
        while not self._closing.is_set():
            outcome = self._post(batch)
            if isinstance(outcome, Later):
                attempt += 1
                self._note(outcome.reason)
                with self._lock:
                    self._retries += 1
                self._closing.wait(delay(attempt, outcome.seconds))
                continue
            self._settle(batch, outcome, store)
            with self._changed:
                self._changed.notify_all()
            return

    def _post(self, batch: Batch) -> Verdict:
        assert self._http is not None
        try:
            answer = self._http.post(self._address + _PATH, content=batch.body)
        except (httpx.HTTPError, httpx.InvalidURL) as reason:
            return Later(f"{type(reason).__name__}: {reason}")
        return verdict(answer.status_code, answer.headers, answer.content, time.time())

    def _settle(self, batch: Batch, outcome: Accepted | Refused | TooLarge, store: Store) -> None:
        if isinstance(outcome, Accepted):
            with self._lock:
                self._accepted += batch.events
                self._unmatched += outcome.unmatched
                self._last_error = None
            store.done(batch)  # last: `flush` returns once nothing waits, and then the counts must be right
            return
        events = unpack(batch)
        if isinstance(outcome, TooLarge):
            if len(events) > 1:
                middle = len(events) // 2
                store.replace(batch, [packed([*events[:middle]]), packed([*events[middle:]])])
                return
            outcome = Refused(batch=(EventError(None, "too_large", "the event is larger than the gateway takes"),))
        wrong = {number: errors for number, errors in outcome.by_index.items() if number < len(events)}
        if not wrong:  # the batch as such: nothing says which events are at fault
            reasons = outcome.batch or (EventError(None, "refused", "the gateway refused the batch"),)
            wrong = dict.fromkeys(range(len(events)), reasons)
        rest = [event for number, event in enumerate(events) if number not in wrong]
        # Reported before it is forgotten: a crash between may report an event twice, and never loses the report.
        self._refuse([RefusedEvent(event_fields(events[number]), errors) for number, errors in wrong.items()])
        store.replace(batch, [packed([*rest])] if rest else [])

    def _refuse(self, refused: list[RefusedEvent]) -> None:
        with self._lock:
            self._refused += len(refused)
        for event in refused:
            if self._on_refused is None:
                _log.error("usage event refused: %s: %s", event.event, event.errors)
                continue
            try:
                self._on_refused(event)
            except Exception:  # noqa: BLE001 — the callback's fault must not stop other events
                _log.exception("on_refused failed")

    def _note(self, reason: str) -> None:
        with self._lock:
            known, self._last_error = self._last_error, reason
        if known != reason:
            _log.warning("usage can't be sent, trying again: %s", reason)

    # -- fork (called by this module alone) ----------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let no file of the spool cross a fork."""
        if isinstance(self._store, SpoolStore):
            self._store.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        if isinstance(self._store, SpoolStore):
            self._store.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Begin with an empty queue, ids of its own and, at the first event, threads and a spool file of its own."""
        if isinstance(self._store, SpoolStore):
            self._store.after_fork_in_child()
        # What the parent's queue held is the parent's to send; locks that its threads held are of no use here.
        self._begin()


def _close_at_exit(client: weakref.ref[UsageClient]) -> None:
    alive = client()
    if alive is not None:
        try:
            alive.close()
        except NotDelivered as left:
            _log.error("the process ends: %s", left)


def _at_fork(step: Callable[[UsageClient], None]) -> Callable[[], None]:
    def every_client() -> None:
        for client in list(_clients):
            step(client)

    return every_client


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_at_fork(UsageClient.before_fork),
        after_in_parent=_at_fork(UsageClient.after_fork_in_parent),
        after_in_child=_at_fork(UsageClient.after_fork_in_child),
    )
