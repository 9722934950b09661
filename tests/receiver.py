"""A merchant's service that webhooks are sent to → what came, when, and how often."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


@dataclass(frozen=True)
class Received:
    """One request. headers: names in lower case. at: monotonic seconds."""

    path: str
    headers: dict[str, str]
    body: str
    at: float


class Receiver(ThreadingHTTPServer):
    """answer: path → status of the next request; 200 where nothing is said."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[Received] = []
        self.answer: Callable[[str], int] = lambda _: 200
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def of(self, path: str) -> list[dict[str, str]]:
        """Headers of what came to a path."""
        return [each.headers for each in self.got if each.path == path]

    @property
    def times(self) -> Counter[str]:
        """Id of an alert → how often it came."""
        return Counter(each.headers["webhook-id"] for each in self.got)

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        receiver = cast(Receiver, self.server)
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        receiver.got.append(Received(self.path, headers, body, time.monotonic()))
        status = receiver.answer(self.path)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", receiver.url("/elsewhere"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass
