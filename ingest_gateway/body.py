"""ASGI request → its decoded body, bounded in size before and after decompression, and in time."""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import zstandard

from runtime.problem import Problem

Receive = Callable[[], Awaitable[dict[str, Any]]]
Headers = dict[bytes, bytes]
_READ_SECONDS_MAX = 30.0


def headers_of(scope: dict[str, Any]) -> Headers:
    raw: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return dict(raw)


def check_content_type(headers: Headers) -> None:
    """Raises Problem 415 for anything but JSON. None given is taken as JSON."""
    content_type = headers.get(b"content-type")
    if content_type is not None and content_type.split(b";", 1)[0].strip().lower() != b"application/json":
        raise Problem(415, "unsupported_media_type", "send JSON with Content-Type: application/json")


async def read_body(receive: Receive, headers: Headers, bytes_max: int) -> bytes:
    """The whole body, decompressed. Raises Problem 400, 408, 413 or 415."""
    length = headers.get(b"content-length", b"")
    if length and (not length.isdigit() or int(length) > bytes_max):
        raise _too_large(bytes_max)
    message = await receive()
    body: bytes = message.get("body", b"")
    # Most bodies come in one piece; the server may still announce more, and a time-out would cost more than the rest.
    if message["type"] == "http.disconnect" or (message.get("more_body") and not (length and len(body) == int(length))):
        body = await _read_rest(receive, message, bytes_max)
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else decompress(body, encoding.strip().lower(), bytes_max)


async def _read_rest(receive: Receive, message: dict[str, Any], bytes_max: int) -> bytes:
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(_READ_SECONDS_MAX):
            while True:
                if message["type"] == "http.disconnect":
                    raise Problem(400, "disconnected", "the client went away before its request was complete")
                part: bytes = message.get("body", b"")
                parts.append(part)
                size += len(part)
                if size > bytes_max:
                    raise _too_large(bytes_max)
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
    except TimeoutError:
        raise Problem(408, "request_timeout", f"the body did not arrive within {_READ_SECONDS_MAX:g} s") from None


def decompress(body: bytes, encoding: bytes, bytes_max: int) -> bytes:
    """gzip, zstd or identity, never more than bytes_max + 1 bytes in memory. Raises Problem 400, 413 or 415."""
    if encoding == b"identity":
        return body
    if encoding not in (b"gzip", b"zstd"):
        raise Problem(415, "unsupported_encoding", "Content-Encoding may be gzip, zstd or identity")
    try:
        if encoding == b"gzip":
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as source:
                decoded = source.read(bytes_max + 1)
        else:
            with zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024).stream_reader(body) as source:
                decoded = source.read(bytes_max + 1)
    except (OSError, EOFError, ValueError, zstandard.ZstdError) as error:
        raise Problem(400, "invalid_encoding", f"the body is no {encoding.decode()}: {error}") from error
    if len(decoded) > bytes_max:
        raise _too_large(bytes_max)
    return decoded


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        413,
        "body_too_large",
        f"a body has at most {bytes_max} bytes, decompressed too",
        headers={"connection": "close"},
    )
