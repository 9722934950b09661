"""Producers over HTTP, with retries, duplicates and late events at a steady rate → what was acknowledged, and where."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from tests.chaos.stack import ADMIN, Stack

PRODUCERS = 3
BATCHES_PER_SECOND = 6.0  # of each producer
EVENTS_PER_BATCH_MAX = 50
VOIDS_PER_BATCH = 0.05
_TIMEOUT_SECONDS = 8.0
_RETRY_SECONDS = (0.05, 1.0)


@dataclass(frozen=True, slots=True)
class Sent:
    """An event that was answered 202. identity: as the log has it; empty: by its coordinates."""

    customer: str
    name: str
    at: str
    value: str
    identity: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A batch that was answered 202. ranges: (partition, first offset, last offset, events) of the receipt."""

    events: tuple[Sent, ...]
    ranges: tuple[tuple[int, int, int, int], ...]


@dataclass
class Load:
    """What the producers did. answered_at: monotonic seconds of the last 202. voids: identities, acknowledged."""

    stack: Stack
    seed: int
    acknowledged: list[Acknowledged] = field(default_factory=list[Acknowledged])
    voids: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    answered_at: float = 0.0
    retries: int = 0
    refused: list[str] = field(default_factory=list[str])
    stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        for number in range(PRODUCERS):
            producer = _Producer(self, number)
            self._threads.append(threading.Thread(target=producer.run, name=f"producer-{number}", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    @property
    def events(self) -> int:
        return sum(len(batch.events) for batch in self.acknowledged)

    def note(self, batch: Acknowledged) -> None:
        with self._lock:
            self.acknowledged.append(batch)
            self.answered_at = time.monotonic()


class _Producer:
    """Sends a batch until it is answered 202; only a batch without any identity is given up at the first failure."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._random = random.Random(f"{load.seed}-{number}")
        self._known: list[dict[str, Any]] = []  # acknowledged, with event_id
        self._sent = 0

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        with httpx.Client(
            base_url=self._load.stack.address, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=False
        ) as http:
            due = time.monotonic()
            while not self._load.stopping.is_set():
                self._send(http)
                if self._known and self._random.random() < VOIDS_PER_BATCH:
                    self._void(http, self._random.choice(self._known))
                due = max(due + 1 / BATCHES_PER_SECOND, time.monotonic() - 1)
                self._load.stopping.wait(max(0.0, due - time.monotonic()))

    def _send(self, http: httpx.Client) -> None:
        self._sent += 1
        rnd, kind = self._random, self._random.choices(("ids", "key", "neither"), (6, 3, 1))[0]
        key = f"{self._load.seed}-{self._number}-{self._sent}"
        events = [self._event() for _ in range(rnd.randrange(1, EVENTS_PER_BATCH_MAX))]
        headers: dict[str, str] = {}
        if kind == "ids":
            for index, event in enumerate(events):
                event["event_id"] = f"{key}-{index}"
            # An event that was acknowledged comes again, as it was or with another time and value: the first counts.
            for event in rnd.sample(self._known, min(len(self._known), rnd.randrange(0, 4))):
                changed = {**self._event(), **{name: event[name] for name in ("customer_id", "event_name", "event_id")}}
                events.append(rnd.choice((event, changed)))
            rnd.shuffle(events)
        elif kind == "key":
            headers["Idempotency-Key"] = key
        while (answer := self._post(http, events, headers)) is None or answer.status_code != 202:
            if answer is not None and answer.status_code not in (429, 503):
                self._load.refused.append(f"{answer.status_code} {answer.text[:300]}")
                return
            if kind == "neither":
                return  # it may be in the log: the log is asked
            self._load.retries += 1
            time.sleep(rnd.uniform(*_RETRY_SECONDS))
        identities = [
            f"c:{event['event_id']}" if kind == "ids" else f"k:{key}:{index}" if kind == "key" else ""
            for index, event in enumerate(events)
        ]
        sent = tuple(
            Sent(event["customer_id"], event["event_name"], event["timestamp"], event["value"], identity)
            for event, identity in zip(events, identities, strict=True)
        )
        ranges = tuple(
            (part["partition"], part["first_offset"], part["last_offset"], part["events"])
            for part in answer.json()["receipt"]
        )
        self._load.note(Acknowledged(sent, ranges))
        if kind == "ids" and len(self._known) < 2_000:
            self._known += events[:3]

    def _void(self, http: httpx.Client, event: dict[str, Any]) -> None:
        """Until it is answered 202; to void the same event again is safe."""
        names = ("customer_id", "event_name", "event_id")
        body = {**{name: event[name] for name in names}, "reason": "by chance"}
        while True:
            try:
                answer = http.post("/api/v1/usage/events/void", json=body)
            except httpx.HTTPError:
                answer = None
            if answer is not None and answer.status_code == 202:
                self._load.voids.append((body["customer_id"], body["event_name"], f"c:{body['event_id']}"))
                return
            if answer is not None and answer.status_code not in (429, 503):
                self._load.refused.append(f"{answer.status_code} {answer.text[:300]}")
                return
            time.sleep(self._random.uniform(*_RETRY_SECONDS))

    def _post(self, http: httpx.Client, events: list[dict[str, Any]], headers: dict[str, str]) -> httpx.Response | None:
        try:
            return http.post("/api/v1/usage/events", json={"events": events}, headers=headers)
        except httpx.HTTPError:
            return None

    def _event(self) -> dict[str, Any]:
        rnd, stack = self._random, self._load.stack
        customer = rnd.choice(stack.customers)
        end = stack.ends[customer]
        now = datetime.now(UTC)
        # Half of it now; the other half of the cycle that ends in the run: late, once it is closed.
        at = now if rnd.random() < 0.5 else end - timedelta(seconds=rnd.uniform(1, 86_000))
        value = Decimal(rnd.randrange(-200, 10_000)).scaleb(rnd.choice((0, -1, -3)))
        return {
            "customer_id": customer,
            "event_name": rnd.choice(("calls", "calls", "peak")),
            "timestamp": at.isoformat(),
            "value": f"{value:f}",
        }
