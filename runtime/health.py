"""checks → /healthz, /readyz, /metrics: the same three answers from every service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import make_wsgi_app

Check = Callable[[], str | None]
"""None: fine. A text: why the service can't do its work now."""


def failing(checks: Mapping[str, Check]) -> dict[str, str]:
    """The reasons of all checks that fail. A check that raises fails with what it raised."""
    reasons: dict[str, str] = {}
    for name, check in checks.items():
        try:
            reason = check()
        except Exception as error:  # noqa: BLE001 - a broken check is a failing one
            reason = repr(error)
        if reason is not None:
            reasons[name] = reason
    return reasons


_SILENT_SECONDS_MAX = 5.0
_CONNECTIONS_MAX = 64


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection: one that says nothing keeps no probe waiting."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free = threading.BoundedSemaphore(_CONNECTIONS_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or said nothing in time is no error of ours."""


class _QuietHandler(WSGIRequestHandler):
    timeout = _SILENT_SECONDS_MAX

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes and probes would fill the log."""


class HealthServer:
    """Serves the three from a thread. Raises OSError when the port is taken."""

    def __init__(self, host: str, port: int, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._metrics = make_wsgi_app()
        self._server: WSGIServer = make_server(host, port, self._answer, _Server, _QuietHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def __enter__(self) -> HealthServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/healthz":
                status, body = "200 OK", {"status": "alive"}
            case "/readyz":
                status, body = readiness(self._checks)
            case _:
                status, body = "404 Not Found", {"status": "unknown path"}
        start_response(status, [("Content-Type", "application/json")])
        return [msgspec.json.encode(body)]


def readiness(checks: Mapping[str, Check]) -> tuple[str, dict[str, Any]]:
    """Status line and body of /readyz."""
    reasons = failing(checks)
    if reasons:
        return "503 Service Unavailable", {"status": "unready", "reasons": reasons}
    return "200 OK", {"status": "ready"}
