"""gateway + dashboard + webhooks on one port: what `serve` runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
from collections.abc import Callable
from typing import Any, cast

import msgspec
import structlog
import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from billing_job.collect.webhooks import PATH as WEBHOOKS_PATH
from billing_job.collect.webhooks import StripeWebhooks
from catalog.auth import authorize
from catalog.store import CatalogStore
from catalog.view import CatalogView
from dashboard.app import Dashboard
from ingest_gateway.app import CLOUD_EVENTS_PATH, PATH, VOID_PATH, Gateway
from runtime.access import STATUS
from runtime.body import App, BodiesFirst, ClientGone
from runtime.health import Check, HealthServer, readiness
from runtime.kafka.admin import check_partitions
from runtime.kafka.client_watch import TopicWatch
from runtime.kafka.durability import warn_of_weak_topics
from runtime.problem import MEDIA_TYPE, Problem
from schemas.networks import is_loopback
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.organization import Scope as KeyScope
from schemas.settings import Settings
from usage_billing.access_log import AccessLog
from usage_billing.billing_adapter import BillingAdapter
from usage_billing.bootstrap import bootstrap
from usage_billing.session_secret import with_session_secret

log = structlog.get_logger(__name__)

Scope = dict[str, Any]
_STOP_SECONDS = 15.0
_CONNECTIONS_MAX = 16_384
"""Granian accepts no more, idle ones included: those who say nothing must not use them up."""


class Composition:
    """The ASGI application: events go to the gateway, probes are answered here, the rest is the dashboard's."""

    def __init__(
        self,
        gateway: Gateway | None,
        webhooks: App | None,
        rest: App | None,
        checks: dict[str, Check],
        may_see_metrics: Callable[[Scope], bool],
    ) -> None:
        self._gateway = gateway
        self._webhooks = webhooks and BodiesFirst(webhooks)
        self._rest = rest and BodiesFirst(rest)
        self._checks = checks
        self._may_see_metrics = may_see_metrics

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            return
        try:
            await self._route(scope, receive, send)
        except (ClientGone, ClientDisconnect):
            pass
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            scope[STATUS] = 500
            problem = Problem(500, "internal_error", "an error on our side; it has been logged")
            await _answer(send, 500, problem.body(), MEDIA_TYPE)

    async def _route(self, scope: Scope, receive: Any, send: Any) -> None:
        path: str = scope["path"]
        to_gateway = path in (VOID_PATH, CLOUD_EVENTS_PATH) or (
            path == PATH and (scope["method"] == "POST" or self._rest is None)
        )
        if self._gateway is not None and to_gateway:
            await self._gateway(scope, receive, send)
        elif self._webhooks is not None and path == WEBHOOKS_PATH:
            await self._webhooks(scope, receive, send)
        elif path == "/healthz":
            await _answer(send, 200, msgspec.json.encode({"status": "alive"}))
        elif path == "/readyz":
            status, body = readiness(self._checks)
            await _answer(send, int(status[:3]), msgspec.json.encode(body))
        elif path == "/metrics" and not self._may_see_metrics(scope):
            problem = Problem(401, "missing_key", "metrics are for this machine and for the operator's admin keys")
            await _answer(send, 401, problem.body(), MEDIA_TYPE)
        elif path == "/metrics":
            await _answer(send, 200, generate_latest(), CONTENT_TYPE_LATEST)
        elif self._rest is not None:
            await self._rest(scope, receive, send)
        else:
            await _answer(send, 404, Problem(404, "not_found", f"there is nothing at {path}").body(), MEDIA_TYPE)


_PROXY_HEADERS = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"})


def may_see_metrics(scope: Scope, view: CatalogView) -> bool:
    """Whether a request to the public port may: from this machine without a proxy, or with the operator's admin key."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    peer = (scope.get("client") or ("",))[0]
    if is_loopback(peer) and not _PROXY_HEADERS & headers.keys():
        return True
    try:
        key = authorize(view, headers.get(b"authorization", b"").decode("latin-1"), KeyScope.ADMIN)
    except Problem:
        return False
    return key.organization_id == DEFAULT_ORGANIZATION


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(send: Any, status: int, body: bytes, content_type: str = "application/json") -> None:
    headers = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _connections_max() -> int:
    """As many as there are file descriptors for, half of them left to everything else; it raises the soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 4 * _CONNECTIONS_MAX if hard == resource.RLIM_INFINITY else min(hard, 4 * _CONNECTIONS_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return min(_CONNECTIONS_MAX, limit // 2)


def run(settings: Settings, *, gateway: bool = True, dashboard: bool = True) -> int:
    """Serve until SIGTERM or SIGINT; then let requests end, drain, and stop. The exit code."""
    check_partitions(settings)
    warn_of_weak_topics(settings)
    with CatalogStore(settings) as catalog, TopicWatch(settings):
        bootstrap(settings, catalog)
        # What is there by now stays: the collector need not walk it for every few batches.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        uvloop.run(_serve(settings, catalog, gateway=gateway, dashboard=dashboard))
    return 0


async def _serve(settings: Settings, catalog: CatalogStore, *, gateway: bool, dashboard: bool) -> None:
    async with contextlib.AsyncExitStack() as parts:
        checks: dict[str, Check] = {"catalog": lambda: None if catalog.ready else "not following the log"}
        ingest = None
        if gateway:
            ingest = Gateway(settings, catalog)
            ingest.start()
            parts.push_async_callback(ingest.stop)
            checks |= ingest.checks
        rest: App | None = None
        hooks: App | None = None
        before_the_server: list[Callable[[], None]] = []
        if dashboard:
            webhooks = StripeWebhooks(settings)
            await asyncio.to_thread(webhooks.start)
            parts.push_async_callback(webhooks.stop)
            billing = BillingAdapter(settings, catalog, webhooks.ledger)
            parts.callback(billing.close)
            pages = Dashboard(with_session_secret(settings), catalog, billing)
            pages.start()
            parts.push_async_callback(pages.stop)
            checks |= pages.checks
            before_the_server.append(pages.services.stopping.set)
            rest = cast(App, pages.app)
            hooks = cast(App, webhooks.app)
            checks |= {f"webhooks_{name}": check for name, check in webhooks.checks.items()}
        composition = Composition(ingest, hooks, rest, checks, lambda scope: may_see_metrics(scope, catalog.view))
        server = Server(
            AccessLog(composition, settings.access_log_sample, settings.proxies, notes_events=gateway),
            address=settings.http_host,
            port=settings.http_port,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,  # to tell HTTP/2 apart, granian would wait for a first byte without a time-out
            websockets=False,
            backlog=1024,
            backpressure=_connections_max(),
            log_level=LogLevels.warning,
            http1_settings=HTTP1Settings(header_read_timeout=10_000),
        )
        if settings.http_metrics_port is not None:
            parts.enter_context(HealthServer(settings.metrics_host, settings.http_metrics_port, checks))
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        serving = asyncio.create_task(server.serve())
        stopped = asyncio.create_task(stopping.wait())
        log.info("serving", address=f"http://{settings.http_host}:{settings.http_port}")
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        for leave in before_the_server:  # open streams would keep it from ending
            leave()
        if not serving.done():
            server.stop()
        async with asyncio.timeout(_STOP_SECONDS):
            await serving
