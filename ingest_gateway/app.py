"""HTTP → usage.events: POST /api/v1/usage/events, whole batches or nothing, and …/void; 202 with a receipt."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from catalog.auth import authorize
from catalog.store import CatalogStore
from ingest_gateway import cloud_events, metrics
from ingest_gateway.check import Unmatched, check_batch, find_unmatched
from ingest_gateway.coalesce import split
from ingest_gateway.decode import (
    EventError,
    Events,
    InvalidBatch,
    NotJson,
    decode_naming_errors,
    decode_valid,
    decode_void,
)
from ingest_gateway.pipeline import NotAccepted, OutcomeUnknown, Pipeline
from ingest_gateway.producer import EventProducer
from runtime.access import BATCH_IDS, KEY, RECEIPT, STATUS
from runtime.body import (
    STRANGERS_MAX,
    ClientGone,
    Deadlines,
    Headers,
    Incoming,
    Receive,
    Send,
    check_content_type,
    headers_of,
    read_body,
)
from runtime.clock import now_us
from runtime.health import Check
from runtime.limits import KeyLimits
from runtime.problem import MEDIA_TYPE, Problem
from schemas.event import TEXT_LENGTH_MAX
from schemas.organization import Scope
from schemas.partition import partition_of
from schemas.period import format_rfc3339
from schemas.settings import Settings
from schemas.usage_void import encode, tombstone

PATH = "/api/v1/usage/events"
VOID_PATH = f"{PATH}/void"
CLOUD_EVENTS_PATH = "/api/v1/events"  # where OpenMeter's clients and collector post
PATHS = (PATH, VOID_PATH, CLOUD_EVENTS_PATH)
RETRY_AFTER_SECONDS = "1"
_DRAIN_SECONDS = 10.0
_CLOSE_SECONDS = 1.0
_PLACED_MAX = 200_000
_VOID_BYTES_MAX = 64 * 1024
_CLIENT_GONE = 499  # as nginx counts them; no answer has this status

_encoder = msgspec.json.Encoder()


class _Placed(dict[str, int]):
    """customer_id → partition, remembered: a batch names its customers over and over."""

    def __init__(self, organization_id: str, partitions: int) -> None:
        self._organization_id = organization_id
        self._partitions = partitions

    def __missing__(self, customer_id: str) -> int:
        if len(self) >= _PLACED_MAX:
            self.clear()
        number = self[customer_id] = partition_of(self._organization_id, customer_id, self._partitions)
        return number


class Gateway:
    """A raw ASGI application: two routes, no framework between the socket and the log.

    start() within the event loop, stop() when no request is under way any more.
    """

    def __init__(self, settings: Settings, catalog: CatalogStore) -> None:
        self._settings = settings
        self._limits = KeyLimits(settings)
        self._view = catalog.view
        self._catalog = catalog
        self._partitions = settings.event_partitions
        self._placed: dict[str, _Placed] = {}
        self._strangers = Deadlines(STRANGERS_MAX)
        # One thread: batches that are wrong wait for one another, and take no more than their share of the processor.
        self._naming = ThreadPoolExecutor(1, "naming-errors")
        self._translating = ThreadPoolExecutor(
            1, "cloud-events"
        )  # apart from wrong batches, which it must not wait for
        self._producer: EventProducer | None = None
        self._pipeline: Pipeline | None = None

    def start(self) -> None:
        self._producer = EventProducer(self._settings, asyncio.get_running_loop())
        self._pipeline = Pipeline(self._settings, self._producer)

    async def stop(self) -> None:
        if self._pipeline is not None and self._producer is not None:
            await self._pipeline.drain(_DRAIN_SECONDS)
            await asyncio.to_thread(self._producer.close, _CLOSE_SECONDS)
        self._naming.shutdown(wait=False)
        self._translating.shutdown(wait=False)

    @property
    def checks(self) -> Mapping[str, Check]:
        """For /readyz."""
        return {
            "kafka": self._kafka_problem,
            "catalog": lambda: None if self._catalog.ready else "not following the log",
        }

    def _kafka_problem(self) -> str | None:
        if self._producer is None:
            return "not started"
        return self._producer.fatal or ("no broker answers" if self._producer.unreachable else None)

    def _partition_of(self, organization_id: str) -> Callable[[str], int]:
        if organization_id not in self._placed:
            self._placed[organization_id] = _Placed(organization_id, self._partitions)
        return self._placed[organization_id].__getitem__

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        incoming = Incoming(receive)
        try:
            answer = await self._accept(scope, incoming)
            status = 202 if answer else 204
            headers = [(b"content-type", b"application/json")] if answer else []
        except ClientGone:
            metrics.REQUESTS.labels(_CLIENT_GONE).inc()
            return
        except Problem as problem:
            await incoming.discard(headers_of(scope), self._strangers)
            answer, status = problem.body(), problem.status
            headers = [(b"content-type", MEDIA_TYPE.encode())]
            headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
            if KEY in scope:
                organization_id, key_id = scope[KEY]
                self._limits.answered(organization_id, key_id, problem.status)
        scope[STATUS] = status
        (metrics.ACCEPTED if status in (202, 204) else metrics.REQUESTS.labels(status)).inc()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _accept(self, scope: dict[str, Any], receive: Receive) -> bytes:
        """The receipt's JSON; nothing where the sender expects 204."""
        path = scope["path"]
        if path not in PATHS:
            raise Problem(404, "not_found", f"there is only {' and '.join(PATHS)} here")
        if scope["method"] != "POST":
            raise Problem(405, "method_not_allowed", "only POST is taken here", headers={"allow": "POST"})
        headers = headers_of(scope)
        # Before the body is read: a stranger costs no memory.
        wanted = Scope.ADMIN if path == VOID_PATH else Scope.INGEST
        key = authorize(self._view, headers.get(b"authorization", b"").decode("latin-1"), wanted)
        scope[KEY] = key.organization_id, key.id
        self._limits.admit(key.organization_id, key.id)
        if path == VOID_PATH:
            check_content_type(headers)
            return await self._void(scope, key.organization_id, await read_body(receive, headers, _VOID_BYTES_MAX))
        declared = cloud_events.declared_by(headers)
        if not declared:
            check_content_type(headers)
        idempotency_key = _idempotency_key(headers.get(b"idempotency-key"))
        body = await read_body(receive, headers, self._settings.body_bytes_max)
        organization_id, view = key.organization_id, self._view
        try:
            events, in_senders_terms = None if declared else decode_valid(body), _as_they_are
            if events is None:
                events, in_senders_terms = await self._read(headers, body, declared)
        except NotJson as error:
            raise Problem(400, "invalid_json", str(error)) from error
        except InvalidBatch as error:
            raise _invalid(error.errors) from error
        errors = check_batch(
            events,
            now_us=now_us(),
            needs_value=lambda event_name: view.needs_value(organization_id, event_name),
        )
        if errors:
            raise _invalid(in_senders_terms(errors))
        parts = split(events, organization_id, idempotency_key, self._partition_of(organization_id))
        try:
            batch_ids = scope[BATCH_IDS] = list[bytes]()
            receipt = scope[RECEIPT] = await self._running_pipeline.accept(parts, len(body), batch_ids)
        except (NotAccepted, OutcomeUnknown) as error:
            raise _unavailable(str(error)) from error
        unmatched = find_unmatched(
            events,
            is_metered=lambda event_name: bool(view.meters_reading(organization_id, event_name)),
            is_customer=lambda customer_id: view.has_customer(organization_id, customer_id),
        )
        if path == CLOUD_EVENTS_PATH:
            return b""
        answer: dict[str, Any] = {"accepted": len(events), "unmatched": unmatched.events, "receipt": receipt}
        if unmatched.events:
            answer |= _named_unmatched(unmatched)
        return _encoder.encode(answer)

    async def _read(self, headers: Headers, body: bytes, declared: bool) -> tuple[Events, cloud_events.Naming]:
        """The events of a body that is no valid batch of ours, and how to name their errors.

        declared: that they are CloudEvents. Raises NotJson or InvalidBatch.
        """
        loop = asyncio.get_running_loop()
        if not declared and not cloud_events.may_be_cloud_events(body):
            return await loop.run_in_executor(self._naming, decode_naming_errors, body), _as_they_are
        now = format_rfc3339(now_us())
        return await loop.run_in_executor(self._translating, cloud_events.read, headers, body, now)

    async def _void(self, scope: dict[str, Any], organization_id: str, body: bytes) -> bytes:
        try:
            wanted = decode_void(body)
        except NotJson as error:
            raise Problem(400, "invalid_json", str(error)) from error
        except InvalidBatch as error:
            raise Problem(422, "invalid_void", "nothing was voided", _named(error.errors)) from error
        partition = self._partition_of(organization_id)(wanted.customer_id)
        message = encode(tombstone(organization_id, wanted, secrets.token_bytes(16), now_us()))
        try:
            batch_ids = scope[BATCH_IDS] = list[bytes]()
            receipt = scope[RECEIPT] = await self._running_pipeline.accept_message(partition, message, batch_ids)
        except NotAccepted as error:
            raise _unavailable(str(error)) from error
        except OutcomeUnknown as error:
            raise _unavailable("the outcome is unknown; to void the same event again is safe") from error
        metrics.VOIDS_ACCEPTED.inc()
        return _encoder.encode({"accepted": 1, "receipt": receipt})

    @property
    def _running_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise _unavailable("the gateway is starting; nothing was enqueued")
        return self._pipeline


def _idempotency_key(header: bytes | None) -> str | None:
    if header is None:
        return None
    try:
        key = header.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not 1 <= len(key) <= TEXT_LENGTH_MAX or not key.isprintable():
        message = f"must have 1 to {TEXT_LENGTH_MAX} printable ASCII characters"
        raise _invalid([EventError(None, "Idempotency-Key", "idempotency_key_invalid", message)])
    return key


def _as_they_are(errors: Sequence[EventError]) -> Sequence[EventError]:
    return errors


def _named_unmatched(unmatched: Unmatched) -> dict[str, Sequence[str]]:
    """Names that a producer may have misspelled; no field when there are none."""
    named = {"unmatched_event_names": unmatched.event_names, "unmatched_customers": unmatched.customer_ids}
    return {field: names for field, names in named.items() if names}


def _invalid(errors: Sequence[EventError]) -> Problem:
    return Problem(422, "invalid_batch", "the batch is refused whole; nothing was enqueued", _named(errors))


def _named(errors: Sequence[EventError]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(error) for error in errors]


def _unavailable(detail: str) -> Problem:
    return Problem(503, "unavailable", detail, headers={"retry-after": RETRY_AFTER_SECONDS})
