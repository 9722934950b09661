"""events → POST /api/v1/usage/events: the producers' client, whose retries never count twice."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import msgspec
import stamina

from schemas.event import EVENTS_PER_BATCH_MAX

_RETRY_SECONDS_MAX = 60.0
_TIMEOUT_SECONDS = 15.0
_encoder = msgspec.json.Encoder(decimal_format="number")


class EventsRefused(Exception):
    """The gateway refuses the batch whole; repeating it would not help. problem: its answer."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        errors = problem.get("errors", [])
        first = "; ".join(f"event {e.get('index')}, {e.get('field')}: {e.get('message')}" for e in errors[:3])
        super().__init__(f"{status} {problem.get('detail') or problem.get('title')}" + (f" ({first})" if first else ""))
        self.status = status
        self.problem = problem


class _Again(Exception):
    """Worth repeating: 429, 503, or no answer."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the gateway answered. ranges: (partition, first_offset, last_offset, events)."""

    accepted: int
    unmatched: int
    ranges: tuple[tuple[int, int, int, int], ...]


class UsageClient:
    """A producer's connection. Every batch gets an Idempotency-Key, so that a repeated one counts once.

    address: of the gateway, such as http://127.0.0.1:8080. Thread-safe. Close it after use, or use it in `with`.
    """

    def __init__(self, address: str, key: str, *, connections: int = 4) -> None:
        self._connections = connections
        self._http = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=_TIMEOUT_SECONDS,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def __enter__(self) -> UsageClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, events: list[Mapping[str, Any]], idempotency_key: str | None = None) -> Receipt:
        """Post one batch of 1 to 1,000 events; repeated for up to a minute while the gateway is away or busy.

        Values may be int, Decimal or str. Raises EventsRefused, or httpx.HTTPError when the time is over.
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
        batches = enumerate(_batches(events))
        with ThreadPoolExecutor(self._connections) as pool:
            under_way: list[Future[Receipt]] = []
            for number, batch in batches:
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
        return Receipt(fields["accepted"], fields["unmatched"], ranges)

    def _repeat(self, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """The answer to a request that counts once however often it is sent."""
        retried = (_Again, httpx.TransportError)
        for attempt in stamina.retry_context(on=retried, attempts=None, timeout=_RETRY_SECONDS_MAX, wait_max=2.0):
            with attempt:
                answer = self._http.post(path, content=body, headers=dict(headers))
                if answer.status_code in (429, 502, 503, 504):
                    raise _Again(f"{answer.status_code} {answer.text[:500]}")
                if answer.status_code != 202:
                    raise EventsRefused(answer.status_code, _problem_of(answer))
                return answer.json()
        raise AssertionError("stamina raises or returns")


def _problem_of(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        return answer.json()
    except ValueError:
        return {"detail": answer.text[:500]}


def _batches(events: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    source = iter(events)
    while batch := list(itertools.islice(source, EVENTS_PER_BATCH_MAX)):
        yield batch


def exact_value(value: object) -> int | Decimal | str | None:
    """A value of any table as what the gateway takes, without rounding: floats by their shortest spelling."""
    if value is None or isinstance(value, int | Decimal | str):
        return value
    return repr(value) if isinstance(value, float) else str(value)
