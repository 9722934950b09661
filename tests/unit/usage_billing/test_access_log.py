"""One line a request: who asked what and what came of it; probes and most posted events make none."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtime.access import BATCH_IDS, KEY, RECEIPT, STATUS
from schemas.networks import networks
from usage_billing.access_log import AccessLog

EVENTS = "/api/v1/usage/events"


def logged(requests: Sequence[tuple[str, int]], *, sample: int = 100, method: str = "GET", **headers: str) -> list[Any]:
    """requests: path and the status of its answer; 0: none is sent. A POST of events is answered by a gateway."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        del receive
        scope[KEY] = ("default", "key_1")
        if scope["path"] == EVENTS:
            scope[RECEIPT] = [SimpleNamespace(partition=3, first_offset=1871)]
            scope[BATCH_IDS] = [bytes(16), b"\xff" * 16]
        if scope["status"]:
            if scope["method"] == "POST":
                scope[STATUS] = scope["status"]
            await send({"type": "http.response.start", "status": scope["status"]})

    async def send(message: dict[str, Any]) -> None:
        del message

    async def run() -> None:
        logging = AccessLog(app, sample, networks("10.0.0.0/8"), notes_events=method == "POST")
        for path, status in requests:
            raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
            scope = {"type": "http", "method": method, "path": path, "status": status, "headers": raw}
            await logging({**scope, "client": ("10.0.0.1", 1)}, None, send)

    with capture_logs() as lines:
        asyncio.run(run())
    return lines


def test_a_line_says_who_asked_what_and_what_came_of_it() -> None:
    (line,) = logged([(EVENTS, 202)], sample=1, x_forwarded_for="1.1.1.1")
    assert line.pop("milliseconds") >= 0
    assert line == {
        "event": "request", "log_level": "info", "method": "GET", "path": EVENTS, "status": 202, "client": "1.1.1.1",
        "organization": "default", "key": "key_1", "places": "3:1871",
        "batch_id": f"{'00' * 16} {'ff' * 16}",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("path", "status", "sample", "lines"),
    [
        (EVENTS, 202, 100, 3),
        (EVENTS, 202, 1, 201),
        (EVENTS, 422, 100, 201),
        (EVENTS, 0, 100, 201),
        (EVENTS, 422, 0, 0),
        ("/invoices", 200, 100, 201),
        ("/healthz", 200, 100, 0),
        ("/readyz", 503, 100, 201),
        ("/live/numbers", 200, 100, 0),
        ("/invoices", 0, 100, 201),
        ("/invoices", 500, 0, 0),
    ],
)
def test_what_is_logged(path: str, status: int, sample: int, lines: int, method: str) -> None:
    assert len(logged([(path, status)] * 201, sample=sample, method=method)) == lines
