"""ASGI request → its body: decoded; bounded in size, in time and by a least rate; discarded before a refusal.

A client that still sends when it is refused sees a broken pipe instead of the answer, so that what it sends is read
first. What never comes holds nothing for long: a body has a deadline, which grows with what has arrived.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import zstandard

from runtime.problem import Problem

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
Headers = dict[bytes, bytes]

SILENT_SECONDS_MAX = 5.0
"""A body may start so late; each LEAST_BYTES_PER_SECOND that arrive give it another second."""
LEAST_BYTES_PER_SECOND = 1024
SECONDS_MAX = 30.0
DISCARDED_BYTES_MAX = 32 * 1024 * 1024
DISCARDED_SECONDS_MAX = 2.0
_SWEEP_SECONDS = 0.25
_WINDOW_BYTES_MAX = 8 * 1024 * 1024


def headers_of(scope: dict[str, Any]) -> Headers:
    raw: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return dict(raw)


def check_content_type(headers: Headers) -> None:
    """Raises Problem 415 for anything but JSON. None given is taken as JSON."""
    content_type = headers.get(b"content-type")
    if content_type is None or content_type == b"application/json":
        return
    if content_type.split(b";", 1)[0].strip().lower() != b"application/json":
        raise Problem(415, "unsupported_media_type", "send JSON with Content-Type: application/json")


# -- time --------------------------------------------------------------------------------------------------------------


class Deadlines:
    """Ends waits that are overdue: one timer for all of them, since a timer each costs more than a small request.

    waiting_max: so many wait at once; one more ends the wait that is oldest. What is honest has arrived by then, and
    those who hold connections open only end one another's.
    """

    def __init__(self, waiting_max: int | None = None) -> None:
        self._waiting_max = waiting_max
        self._due: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeping = False

    def wait(self, seconds: float) -> Wait:
        """A block whose awaits end by then; it raises TimeoutError when its time is over."""
        return Wait(self, seconds)

    def begin(self, task: asyncio.Task[Any], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the waits of another loop are over
            self._loop, self._sweeping = loop, False
            self._due.clear()
        if self._waiting_max is not None and len(self._due) >= self._waiting_max:
            self._expire(next(iter(self._due)))
        self._due[task] = loop.time() + seconds
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(_SWEEP_SECONDS, self._sweep)

    def extend(self, task: asyncio.Task[Any], due: float) -> None:
        """due: by the loop's clock."""
        if task in self._due:
            self._due[task] = due

    def end(self, task: asyncio.Task[Any]) -> bool:
        """Whether the wait was ended because it was overdue."""
        self._due.pop(task, None)
        if task not in self._late:
            return False
        self._late.remove(task)
        return task.uncancel() == 0

    def _expire(self, task: asyncio.Task[Any]) -> None:
        del self._due[task]
        self._late.add(task)
        task.cancel()

    def _sweep(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        for task in [task for task, due in self._due.items() if due <= now]:
            self._expire(task)
        self._sweeping = bool(self._due)
        if self._sweeping:
            self._loop.call_later(_SWEEP_SECONDS, self._sweep)


class Wait:
    """A block of one task with a deadline, see Deadlines.wait."""

    __slots__ = ("_deadlines", "_seconds", "_task")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines = deadlines
        self._seconds = seconds

    def __enter__(self) -> Wait:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._deadlines.begin(task, self._seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._deadlines.end(self._task) and kind is asyncio.CancelledError:
            raise TimeoutError


STRANGERS_MAX = 128
"""Callers of one route that have shown no key and whose bodies are awaited."""
_known = Deadlines()


# -- reading -----------------------------------------------------------------------------------------------------------


class Incoming:
    """The receive of a request, which knows whether the body has been read to its end."""

    __slots__ = ("_receive", "complete")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self.complete = True
        return message

    async def discard(self, headers: Headers, deadlines: Deadlines = _known) -> None:
        """Read what the client still sends, up to a bound of bytes and time, before it is refused."""
        expected = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if self.complete or not expected or b"expect" in headers:
            return
        size = 0
        try:
            with deadlines.wait(DISCARDED_SECONDS_MAX):
                while not self.complete and size <= DISCARDED_BYTES_MAX:
                    size += len((await self()).get("body", b""))
        except TimeoutError:
            pass


class BodiesFirst:
    """ASGI middleware: a request is refused after its body was read or discarded, whoever refuses it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._deadlines = Deadlines(STRANGERS_MAX)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        incoming = Incoming(receive)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                await incoming.discard(headers_of(scope), self._deadlines)
            await send(message)

        await self._app(scope, incoming, answer)


class ClientGone(Exception):
    """The client went away before its request was complete: nobody waits for an answer, and nothing is wrong."""


async def read_body(receive: Receive, headers: Headers, bytes_max: int, deadlines: Deadlines = _known) -> bytes:
    """The whole body, decompressed. Raises Problem 400, 408, 413 or 415, or ClientGone."""
    length = headers.get(b"content-length", b"")
    if length and (not length.isdigit() or len(length) > 18 or int(length) > bytes_max):
        raise _too_large(bytes_max)
    task = asyncio.current_task()
    assert task is not None
    deadlines.begin(task, SILENT_SECONDS_MAX)  # as `with deadlines.wait` does, in half the time: once a request
    try:
        message = await receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise ClientGone
        # Most bodies come in one piece, though the server may still announce more.
        if message.get("more_body") and not (length and len(body) == int(length)):
            body = await _read_rest(receive, body, bytes_max, deadlines, task)
    except asyncio.CancelledError:
        if deadlines.end(task):
            detail = "the body did not arrive in time"
            raise Problem(408, "request_timeout", detail, headers={"connection": "close"}) from None
        raise
    finally:
        deadlines.end(task)
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else decompress(body, encoding.strip().lower(), bytes_max)


async def _read_rest(
    receive: Receive, first: bytes, bytes_max: int, deadlines: Deadlines, task: asyncio.Task[Any]
) -> bytes:
    loop = asyncio.get_running_loop()
    started, parts, size = loop.time(), [first], len(first)
    while size <= bytes_max:
        allowed = min(SECONDS_MAX, SILENT_SECONDS_MAX + size / LEAST_BYTES_PER_SECOND)
        deadlines.extend(task, started + allowed)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        413,
        "body_too_large",
        f"a body has at most {bytes_max} bytes, decompressed too",
        headers={"connection": "close"},
    )


# -- decompressing -----------------------------------------------------------------------------------------------------


def decompress(body: bytes, encoding: bytes, bytes_max: int) -> bytes:
    """gzip, zstd or identity, never more than bytes_max + 1 bytes in memory. Raises Problem 400, 413 or 415.

    All members of a gzip body and all frames of a zstd body are one body (RFC 1952, RFC 8878).
    """
    if encoding == b"identity":
        return body
    if encoding not in (b"gzip", b"zstd"):
        raise Problem(415, "unsupported_encoding", "Content-Encoding may be gzip, zstd or identity")
    try:
        if encoding == b"gzip":
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as source:
                decoded = source.read(bytes_max + 1)
        else:
            require_whole_frames(body)
            window = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
            with window.stream_reader(body, read_across_frames=True) as source:
                decoded = source.read(bytes_max + 1)
    except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError) as error:
        raise Problem(400, "invalid_encoding", f"the body is no {encoding.decode()}: {error}") from error
    if len(decoded) > bytes_max:
        raise _too_large(bytes_max)
    return decoded


_SKIPPABLE = 0x184D2A50  # to …5F
_BLOCK_RLE, _BLOCK_RESERVED = 1, 3


def require_whole_frames(body: bytes) -> None:
    """Raises ValueError unless the body is zstd frames from its first byte to its last; the reader takes a part of one.

    Source: RFC 8878, 3.1.1 and 3.1.2.
    """
    at = 0
    while at < len(body):
        magic = int.from_bytes(body[at : at + 4], "little")
        if magic & ~0xF == _SKIPPABLE:
            at += 8 + _uint(body, at + 4, 4)
        else:
            frame = body[at : at + 18]  # a header is not longer
            checksum = 4 if zstandard.get_frame_parameters(frame).has_checksum else 0
            at = _blocks_end(body, at + zstandard.frame_header_size(frame)) + checksum
    if at > len(body) or not body:
        raise ValueError("the last frame is cut off")


def _blocks_end(body: bytes, at: int) -> int:
    last = False
    while not last:
        header = _uint(body, at, 3)
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == _BLOCK_RESERVED:
            raise ValueError("a block has no known type")
        at += 3 + (1 if kind == _BLOCK_RLE else size)
    return at


def _uint(body: bytes, at: int, size: int) -> int:
    if at + size > len(body):
        raise ValueError("the last frame is cut off")
    return int.from_bytes(body[at : at + size], "little")
