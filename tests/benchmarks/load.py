"""An HTTP load with as little client as possible: prepared requests over kept connections, one process, uvloop."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import uvloop

_ANSWER_SECONDS_MAX = 30.0


@dataclass(frozen=True)
class Load:
    """What came of it. latencies: seconds, sorted."""

    requests: int
    failures: int
    seconds: float
    latencies: Sequence[float]

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def percentile(self, share: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))]


class _Connection(asyncio.Protocol):
    """Sends the prepared request, and again as soon as the answer is whole, until the time is over."""

    def __init__(self, request: bytes, until: float, done: asyncio.Event) -> None:
        self._request, self._until, self._done = request, until, done
        self._received = b""
        self.latencies: list[float] = []
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        now = time.perf_counter()
        self.latencies.append(now - self._sent_at)
        self.failures += b" 202 " not in head.partition(b"\r\n")[0]
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


def run(port: int, body: bytes, key: str, connections: int, seconds: float) -> Load:
    """POST the body over and over on each connection for so many seconds."""
    head = (
        f"POST /api/v1/usage/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async def all_of_them() -> Load:
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        made: list[tuple[_Connection, asyncio.Event]] = []
        for _ in range(connections):
            done = asyncio.Event()
            connection = _Connection(head.encode() + body, started + seconds, done)
            await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", port)
            made.append((connection, done))
        async with asyncio.timeout(seconds + _ANSWER_SECONDS_MAX):
            for _, done in made:
                await done.wait()
        elapsed = time.perf_counter() - started
        latencies = sorted(latency for connection, _ in made for latency in connection.latencies)
        return Load(len(latencies), sum(connection.failures for connection, _ in made), elapsed, latencies)

    return uvloop.run(all_of_them())
