"""a request and its answer → one line of the log: who asked what, what came of it, and where its events lie."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from ingest_gateway.app import PATHS as EVENT_PATHS
from runtime.access import BATCH_IDS, KEY, RECEIPT, STATUS
from schemas.networks import Networks, client_address

log = structlog.get_logger(__name__)

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
_QUIET = ("/healthz", "/readyz", "/metrics", "/static/", "/live/")
"""Asked by machines all the time: logged only when it fails."""
_CLIENT_GONE = 499


class AccessLog:
    """ASGI middleware. sample: of requests to post events that succeed, one of so many is logged; 0: nothing is logged.

    Every other request is, and every failure. Addresses without their query, which may name customers.
    notes_events: whether the app notes the STATUS of each POST of events.
    """

    def __init__(self, app: App, sample: int, proxies: Networks, *, notes_events: bool = False) -> None:
        self._app = app
        self._noted = EVENT_PATHS if notes_events else ()
        self._sample = sample
        self._proxies = proxies
        self._numbers = itertools.count()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not self._sample:
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), _CLIENT_GONE
        if scope["path"] in self._noted and scope["method"] == "POST":
            try:
                await self._app(scope, receive, send)
            finally:
                status = scope.get(STATUS, _CLIENT_GONE)
                if status >= 400 or next(self._numbers) % self._sample == 0:
                    self._tell(scope, status, time.monotonic() - started)
            return

        def noting(message: dict[str, Any]) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            if self._is_logged(scope["path"], status):
                self._tell(scope, status, time.monotonic() - started)

    def _is_logged(self, path: str, status: int) -> bool:
        if status >= 400:
            return True
        if path in EVENT_PATHS:
            return next(self._numbers) % self._sample == 0
        return not path.startswith(_QUIET)

    def _tell(self, scope: dict[str, Any], status: int, seconds: float) -> None:
        peer = (scope.get("client") or ("unknown",))[0]
        forwarded_for = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        organization_id, key_id = scope.get(KEY, (None, None))
        places = " ".join(f"{each.partition}:{each.first_offset}" for each in scope.get(RECEIPT, ()))
        batch_id = " ".join(each.hex() for each in scope.get(BATCH_IDS, ()))
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            milliseconds=round(seconds * 1000, 1),
            client=client_address(peer, forwarded_for, self._proxies),
            organization=organization_id,
            key=key_id,
            **({"places": places} if places else {}),
            **({"batch_id": batch_id} if batch_id else {}),
        )
