"""events → POST /api/v1/usage/events: the producers' client, whose retries never count twice."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import msgspec
import stamina

from schemas.event import EVENTS_PER_BATCH_MAX

RETRY_SECONDS_MAX = 60.0
BODY_BYTES_MAX = 1_000_000
"""Of a request: below the gateway's limit, and below what a proxy in front of it takes by default."""
_TIMEOUT_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
_WRAPPING = len(b'{"events":[]}')
_encoder = msgspec.json.Encoder(decimal_format="number")
Event = TypeVar("Event", bound=Mapping[str, Any])


class EventsRefused(Exception):
    """The gateway refuses the batch whole; repeating it would not help. problem: its answer."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        errors = problem.get("errors", [])
        first = "; ".join(f"event {e.get('index')}, {e.get('field')}: {e.get('message')}" for e in errors[:3])
        super().__init__(f"{status} {problem.get('detail') or problem.get('title')}" + (f" ({first})" if first else ""))
        self.status = status
        self.problem = problem


class NoAnswer(Exception):
    """The gateway did not answer, or kept answering that it can't, for a minute. Part of a batch may be accepted."""


class _Again(Exception):
    """Worth repeating: 429, 503, or no answer."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the gateway answered. ranges: (partition, first_offset, last_offset, events).

    unmatched: events that no meter reads or whose customer is unknown; some of these names and customers are listed.
    """

    accepted: int
    unmatched: int
    ranges: tuple[tuple[int, int, int, int], ...]
    unmatched_event_names: tuple[str, ...] = ()
    unmatched_customers: tuple[str, ...] = ()


class UsageClient:
    """A producer's connection. Every batch gets an Idempotency-Key, so that a repeated one counts once.

    address: of the gateway, such as http://127.0.0.1:8080. Thread-safe. Close it after use, or use it in `with`.
    on_wait: called with the reason each time that a request is to be sent again.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        connections: int = 4,
        on_wait: Callable[[str], None] = lambda reason: None,
        retry_seconds_max: float = RETRY_SECONDS_MAX,
    ) -> None:
        self._connections = connections
        self._address = address
        self._on_wait = on_wait
        self._retry_seconds_max = retry_seconds_max
        self._http = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=httpx.Timeout(_TIMEOUT_SECONDS, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def __enter__(self) -> UsageClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, events: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Receipt:
        """Post one batch of 1 to 1,000 events; repeated for up to a minute while the gateway is away or busy.

        Values may be int, Decimal or str. Raises EventsRefused, or NoAnswer when the time is over.
        """
        return self._post(_encoder.encode({"events": events}), idempotency_key or uuid.uuid4().hex)

    def void(self, customer_id: str, event_name: str, event_id: str, reason: str) -> tuple[int, int]:
        """Void an event; (partition, offset) of the tombstone. Needs a key with scope admin. Raises as send does."""
        fields = {"customer_id": customer_id, "event_name": event_name, "event_id": event_id, "reason": reason}
        (place,) = self._repeat("/api/v1/usage/events/void", _encoder.encode(fields), {})["receipt"]
        return place["partition"], place["first_offset"]

    def send_all(self, events: Iterable[Mapping[str, Any]], idempotency_prefix: str | None = None) -> Iterator[Receipt]:
        """Post any number of events in batches, several at once, in no set order; a receipt a batch, in order.

        idempotency_prefix: the same for the same events in the same order makes a whole run repeatable.
        """
        prefix = idempotency_prefix or uuid.uuid4().hex
        with ThreadPoolExecutor(self._connections) as pool:
            under_way: list[Future[Receipt]] = []
            for number, batch in enumerate(batches(events)):
                under_way.append(pool.submit(self.send, batch, f"{prefix}:{number}"))
                if len(under_way) >= 2 * self._connections:
                    yield under_way.pop(0).result()
            for future in under_way:
                yield future.result()

    def _post(self, body: bytes, idempotency_key: str) -> Receipt:
        fields = self._repeat("/api/v1/usage/events", body, {"Idempotency-Key": idempotency_key})
        ranges = tuple(
            (part["partition"], part["first_offset"], part["last_offset"], part["events"]) for part in fields["receipt"]
        )
        return Receipt(
            fields["accepted"],
            fields["unmatched"],
            ranges,
            tuple(fields.get("unmatched_event_names", ())),
            tuple(fields.get("unmatched_customers", ())),
        )

    def _repeat(self, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """The answer to a request that counts once however often it is sent. Raises EventsRefused, NoAnswer."""
        retried = (_Again, httpx.TransportError)
        attempts = stamina.retry_context(on=retried, attempts=None, timeout=self._retry_seconds_max, wait_max=2.0)
        try:
            for attempt in attempts:
                with attempt:
                    return self._once(path, body, headers)
        except retried as reason:
            raise NoAnswer(f"no answer at {self._address}: {_said(reason)}") from reason
        raise AssertionError("stamina raises or returns")

    def _once(self, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        try:
            answer = self._http.post(path, content=body, headers=dict(headers))
        except httpx.TransportError as reason:
            self._on_wait(_said(reason))
            raise
        if answer.status_code in (429, 502, 503, 504):
            reason = f"{answer.status_code} {_problem_of(answer).get('detail') or ''}".strip()
            self._on_wait(reason)
            raise _Again(reason)
        if answer.status_code != 202:
            raise EventsRefused(answer.status_code, _problem_of(answer))
        return answer.json()


def _said(reason: Exception) -> str:
    return str(reason) or type(reason).__name__


def _problem_of(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        return answer.json()
    except ValueError:
        return {"detail": answer.text[:500]}


def batches(events: Iterable[Event], bytes_max: int = BODY_BYTES_MAX) -> Iterator[list[Event]]:
    """Consecutive runs of at most 1,000 events whose body has at most bytes_max; a larger event is a run of its own."""
    batch: list[Event] = []
    size = 0
    for event in events:
        cost = len(_encoder.encode(event)) + 1
        if batch and (len(batch) == EVENTS_PER_BATCH_MAX or size + cost > bytes_max - _WRAPPING):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += cost
    if batch:
        yield batch
