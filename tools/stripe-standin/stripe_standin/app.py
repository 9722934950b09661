"""HTTP → a request's way through key, version, account, idempotency, faults and validation to its handler.

The order matters, and is Stripe's: what is refused before an endpoint executes (no key, rate limit, bad
parameters, a key in flight) is not kept under the idempotency key; whatever the endpoint answers is.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from stripe_standin import (
    accounts,
    control,
    credit_notes,
    customers,
    events,
    invoice_items,
    invoices,
    payment_methods,
    payments,
    tax_rates,
    webhooks,
)
from stripe_standin.errors import ApiError, InvalidParameter, refused
from stripe_standin.expand import expand
from stripe_standin.faults import Fault, Faults
from stripe_standin.form import Form, FormError, canonical, decode
from stripe_standin.idempotency import Keys, in_use
from stripe_standin.route import Router
from stripe_standin.state import API_VERSION, Json, Scope, World, new_id
from stripe_standin.store import Reply

log = logging.getLogger(__name__)

REQUESTS_LOGGED_MAX = 50_000
TICK_SECONDS = 0.5
_SECRET_KEY = re.compile(r"(sk|rk)_test_\w+")
_ACCOUNT = re.compile(r"acct_\w+")

ROUTER = Router(
    accounts.ROUTES
    + customers.ROUTES
    + payment_methods.ROUTES
    + invoices.ROUTES
    + invoice_items.ROUTES
    + payments.ROUTES
    + credit_notes.ROUTES
    + tax_rates.ROUTES
    + events.ROUTES
    + webhooks.ROUTES
)


class Dropped(Exception):
    """The connection is to end without an answer. `after_seconds` None: at once, with a reset."""

    def __init__(self, after_seconds: float | None) -> None:
        super().__init__()
        self.after_seconds = after_seconds


@dataclass(slots=True)
class Request:
    """A request to the API as far as it is understood."""

    id: str
    method: str
    path: str
    query: str
    body: bytes
    authorization: str
    version: str | None
    account: str
    key: str | None
    replay_of: str | None = None

    @property
    def text(self) -> str:
        if self.method != "POST":
            return self.query
        try:
            return "&".join(filter(None, (self.query, self.body.decode())))
        except UnicodeDecodeError as error:
            raise InvalidParameter("Invalid request body: it is not UTF-8") from error


class App:
    """The server's state and its one handler; construct it inside a running event loop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.keys = Keys(world.store)
        self.faults = Faults()
        self.sender = webhooks.Sender(world)
        self.requests: deque[Json] = deque(maxlen=REQUESTS_LOGGED_MAX)
        self._second, self._in_second = 0, 0
        self.sender.take()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/healthz":
            return web.json_response({"status": "ok", "api_version": API_VERSION})
        body = await request.read()
        if request.path.startswith("/_standin"):
            return control.answer(self, request.method, request.path, request.query, body)
        headers = request.headers
        api = Request(
            id=new_id("req_", 14),
            method=request.method,
            path=request.path,
            query=request.query_string,
            body=body,
            authorization=headers.get("Authorization", ""),
            version=headers.get("Stripe-Version"),
            account=headers.get("Stripe-Account", ""),
            # GET and DELETE take no key: they are idempotent by definition.
            key=headers.get("Idempotency-Key") if request.method == "POST" else None,
        )
        try:
            status, answer = await self._serve(api)
        except Dropped as dropped:
            return await _drop(request, dropped)
        return web.Response(status=status, body=answer, headers=_headers(api))

    async def _serve(self, request: Request) -> tuple[int, bytes]:
        entry: Json = {
            "id": request.id,
            "at": self.world.now,
            "method": request.method,
            "path": request.path,
            "account": request.account,
            "idempotency_key": request.key,
            "params": None,
            "status": None,
            "replayed": False,
            "fault": None,
        }
        self.requests.append(entry)
        try:
            status, answer = await self._answer(request, entry)
        except ApiError as error:
            status, answer = error.status, msgspec.json.encode(error.body(request.id))
        entry["status"] = status
        entry["replayed"] = request.replay_of is not None
        return status, answer

    async def _answer(self, request: Request, entry: Json) -> tuple[int, bytes]:
        """Raises ApiError for what is refused before execution, Dropped for an answer that is lost."""
        _authenticate(request)
        self._limit_rate()
        try:
            form = decode(request.text)
        except FormError as error:
            raise InvalidParameter(str(error), error.name or None) from error
        entry["params"] = form
        if request.key is None:
            return await self._execute(request, form, entry)
        kept = self.keys.begin(request.account, request.key, request.path, canonical(form), self.world.now)
        if kept is not None:
            request.replay_of = kept.request_id
            return kept.status, kept.body
        try:
            return await self._execute(request, form, entry)
        finally:
            self.keys.end(request.account, request.key)

    async def _execute(self, request: Request, form: Form, entry: Json) -> tuple[int, bytes]:
        fault = self.faults.hit(request.method, request.path, request.account)
        if fault is not None:
            entry["fault"] = fault.kind
            if fault.before:
                failure = await self._fail(fault, request.key)
                if failure is not None:
                    return self._finish(request, form, failure.status, failure.body(request.id), keep=fault.keeps)
        found = ROUTER.find(request.method, request.path)
        if found is None:
            raise refused(
                f"Unrecognized request URL ({request.method}: {request.path}). Please see https://stripe.com/docs or "
                "we can help at https://support.stripe.com/.",
                status=404,
            )
        route, path = found
        params = route.check(form)
        status, answer, keep = self._run(request, route.answer, path, params)
        if fault is None or fault.before:
            return self._finish(request, form, status, answer, keep=keep)
        if fault.kind == "500_after":
            lost = _server_error()
            return self._finish(request, form, lost.status, lost.body(request.id), keep=fault.keeps)
        self._finish(request, form, status, answer, keep=keep and fault.kept is not False)
        raise Dropped(None if fault.kind == "reset_after" else await _hold(fault.seconds))

    def _run(self, request: Request, handler: Any, path: tuple[str, ...], params: Json) -> tuple[int, Json, bool]:
        """(status, answer, whether it is kept); what a failed request changed is undone."""
        scope = Scope(self.world, self.world.account(request.account), request.id, request.key)
        try:
            answer = handler(scope, path, params)
            return 200, expand(scope, answer, params.get("expand") or []), True
        except ApiError as error:
            if not error.keeps_changes:
                self.world.rollback()
            return error.status, error.body(request.id), not isinstance(error, InvalidParameter)
        except Exception:
            log.exception("a bug of the stand-in in %s %s", request.method, request.path)
            self.world.rollback()
            return 500, _server_error().body(request.id), False

    def _finish(self, request: Request, form: Form, status: int, answer: Json, *, keep: bool) -> tuple[int, bytes]:
        """Commit what the request changed, together with the answer kept under its key."""
        body = msgspec.json.encode(answer)
        if keep and request.key is not None:
            reply = Reply(self.world.now, request.path, canonical(form), status, request.id, body)
            self.keys.keep(request.account, request.key, reply)
        self.commit()
        return status, body

    def commit(self) -> None:
        self.world.commit()
        if self.world.outbox:
            self.sender.take()

    def _limit_rate(self) -> None:
        allowed = self.world.settings.rate_limit_per_second
        if allowed == 0:
            return
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        if self._in_second > allowed:
            raise _rate_limited()

    async def _fail(self, fault: Fault, key: str | None) -> ApiError | None:
        """Carry out a fault that comes before execution; None when the request continues after it."""
        match fault.kind:
            case "delay":
                await asyncio.sleep(fault.seconds)
                return None
            case "429":
                return _rate_limited()
            case "409":
                return in_use(key or "")
            case "error":
                return ApiError(fault.status, fault.type, fault.message, code=fault.code)
            case "500_before":
                return _server_error()
            case _:
                raise Dropped(None if fault.kind == "reset_before" else await _hold(fault.seconds))

    def run_due(self) -> None:
        """Let Stripe take every step that is due by now, each at its own time."""
        until = self.world.now
        try:
            while (due := self.world.due(until)) is not None:
                at, account, invoice = due
                self.world.freeze(at)
                invoices.advance(Scope(self.world, self.world.account(account)), invoice)
                self.commit()
        finally:
            self.world.freeze(None)

    async def tick(self) -> None:
        """Take due steps until the process ends."""
        while True:
            self.run_due()
            await asyncio.sleep(TICK_SECONDS)


async def _hold(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def _server_error() -> ApiError:
    return ApiError(500, "api_error", "An unknown error occurred")


def _rate_limited() -> ApiError:
    return ApiError(
        429,
        "invalid_request_error",
        "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits.",
        code="rate_limit",
    )


def _authenticate(request: Request) -> None:
    """Raises ApiError: 401 without a secret test key, 400 for another API version, 403 for no account's id."""
    scheme, _, credentials = request.authorization.partition(" ")
    key = credentials.strip()
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[0]
        except ValueError:
            key = ""
    if not key:
        raise refused(
            "You did not provide an API key. You need to provide your API key in the Authorization header, using "
            "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
            status=401,
        )
    if not _SECRET_KEY.fullmatch(key):
        raise refused(f"Invalid API Key provided: {key[:8]}{'*' * max(0, len(key) - 8)}", status=401)
    if request.version not in (None, API_VERSION):
        raise refused(f"Invalid Stripe API version: {request.version}; the stand-in speaks {API_VERSION}")
    if request.account and not _ACCOUNT.fullmatch(request.account):
        raise refused(
            f"The provided key '{key[:8]}***' does not have access to account '{request.account}' (or that account "
            "does not exist). Application access may have been revoked.",
            code="account_invalid",
            status=403,
        )


def _headers(request: Request) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Request-Id": request.id, "Stripe-Version": API_VERSION}
    if request.account:
        headers["Stripe-Account"] = request.account
    if request.key is not None:
        headers["Idempotency-Key"] = request.key
        headers["Original-Request"] = request.replay_of or request.id
    if request.replay_of is not None:
        headers["Idempotent-Replayed"] = "true"
    return headers


async def _drop(request: web.BaseRequest, dropped: Dropped) -> web.StreamResponse:
    transport = request.transport
    if transport is not None:
        if dropped.after_seconds is None:
            # Closing with a linger of zero sends a reset instead of an orderly end.
            sock: socket.socket | None = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response(status=500)  # never sent: the connection is gone
