"""A request's body: what a client may send, slowly, damaged, or not at all."""

import asyncio
import contextlib
import gzip
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from runtime import body as bodies
from runtime.body import BodiesFirst, ClientGone, Deadlines, Incoming, decompress, read_body
from runtime.problem import Problem

MAX = 1000


def chunks(*parts: bytes, then: dict[str, Any] | None = None) -> Any:
    """A receive with these parts; after them `then`, or silence."""
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive() -> dict[str, Any]:
        if waiting:
            message = waiting.pop(0)
            if not waiting and then is None:
                message["more_body"] = False
            return message
        return then if then else await asyncio.Event().wait()  # pyright: ignore[reportReturnType]

    return receive


async def silence() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SWEEP_SECONDS", 0.005)
    monkeypatch.setattr(bodies, "SILENT_SECONDS_MAX", 0.02)
    monkeypatch.setattr(bodies, "DISCARDED_SECONDS_MAX", 0.02)


def problem_of(reading: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        asyncio.run(reading)
    return refused.value


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_a_body_that_never_comes_ends_its_request() -> None:
    async def read() -> bytes:
        return await read_body(silence, {b"content-length": b"9"}, MAX)

    assert problem_of(read()).status == 408


@pytest.mark.usefixtures("quick")
def test_a_body_that_trickles_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is less than the least rate."""
    monkeypatch.setattr(bodies, "LEAST_BYTES_PER_SECOND", 10_000)

    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0.003)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert problem_of(read_body(trickle, {}, 10**9)).status == 408


@pytest.mark.usefixtures("quick")
def test_one_that_waits_longest_makes_room_for_the_next() -> None:
    """Without a key no more than so many wait; whoever sends a body is served all the same."""

    async def crowd() -> tuple[list[Any], bytes]:
        deadlines = Deadlines(3)
        idle = [asyncio.create_task(read_body(silence, {}, MAX, deadlines)) for _ in range(10)]
        await asyncio.sleep(0)
        served = await read_body(chunks(b"key"), {}, MAX, deadlines)
        return await asyncio.gather(*idle, return_exceptions=True), served

    ends, served = asyncio.run(crowd())
    assert served == b"key"
    assert {end.status for end in ends} == {408}


def test_a_cancelled_request_is_cancelled() -> None:
    async def cancel() -> None:
        task = asyncio.create_task(read_body(silence, {}, MAX))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def test_a_client_that_goes_away_is_no_error() -> None:
    gone = {"type": "http.disconnect"}
    for receive in (chunks(then=gone), chunks(b"half", then=gone)):
        with pytest.raises(ClientGone):
            asyncio.run(read_body(receive, {}, MAX))


# -- size --------------------------------------------------------------------------------------------------------------


def test_too_large_by_its_length_or_by_what_comes() -> None:
    assert problem_of(read_body(silence, {b"content-length": b"1001"}, MAX)).status == 413
    assert problem_of(read_body(silence, {b"content-length": b"9" * 99}, MAX)).status == 413
    assert problem_of(read_body(chunks(b"x" * 600, b"x" * 600), {}, MAX)).status == 413
    assert asyncio.run(read_body(chunks(b"x" * 500, b"x" * 500), {}, MAX)) == b"x" * 1000


def refused(receive: Any, headers: list[tuple[bytes, bytes]]) -> Incoming:
    """What BodiesFirst has of a request that its application refuses unread."""
    found: list[Incoming] = []

    async def app(scope: Any, incoming: Any, send: Callable[[Any], Any]) -> None:
        found.append(incoming)
        await send({"type": "http.response.start", "status": 413, "headers": []})

    async def send(_: Any) -> None:
        pass

    asyncio.run(BodiesFirst(app)({"type": "http", "headers": headers}, receive, send))
    return found[0]


def test_a_refused_body_is_read_before_the_answer() -> None:
    assert refused(chunks(*[b"x" * 9999] * 100), [(b"content-length", b"999900")]).complete


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-length", b"0")],
        [(b"content-length", b"9")],  # and nothing comes
        [(b"content-length", b"9"), (b"expect", b"100-continue")],
    ],
)
def test_what_nobody_sends_is_not_waited_for(headers: list[tuple[bytes, bytes]]) -> None:
    assert not refused(silence, headers).complete


# -- compression -------------------------------------------------------------------------------------------------------

zstd = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress
SKIPPABLE = b"\x51\x2a\x4d\x18\x03\x00\x00\x00abc"
TEXT = b'{"events": [' + b'{"a": 1}, ' * 50 + b"]}"


def test_all_frames_and_members_are_one_body() -> None:
    for at in (0, 1, 100, len(TEXT)):
        assert decompress(zstd(TEXT[:at]) + SKIPPABLE + zstd(TEXT[at:]), b"zstd", MAX) == TEXT
        assert decompress(gzip.compress(TEXT[:at]) + gzip.compress(TEXT[at:]), b"gzip", MAX) == TEXT


@pytest.mark.parametrize(
    ("encoding", "body"), [(b"gzip", gzip.compress(TEXT, mtime=0)), (b"zstd", zstd(TEXT) + zstd(TEXT[:9]))]
)
def test_a_body_that_is_cut_off_is_no_body(encoding: bytes, body: bytes) -> None:
    whole = len(zstd(TEXT)) if encoding == b"zstd" else len(body)
    for end in range(1, len(body)):
        if end != whole:
            with pytest.raises(Problem) as refused:
                decompress(body[:end], encoding, MAX)
            assert (refused.value.status, refused.value.code) == (400, "invalid_encoding"), end


@given(st.sampled_from([b"gzip", b"zstd"]), st.integers(0, 10**6), st.binary(max_size=6), st.binary(max_size=20))
def test_damage_wherever_it_is_is_named(encoding: bytes, at: int, damage: bytes, tail: bytes) -> None:
    body = gzip.compress(TEXT, mtime=0) if encoding == b"gzip" else zstd(TEXT)
    at %= len(body)
    with contextlib.suppress(Problem):  # anything else would be our error
        decompress(body[:at] + damage + body[at + len(damage) :] + tail, encoding, 2 * MAX)


@pytest.mark.parametrize("encoding", [b"gzip", b"zstd"])
def test_a_bomb_is_too_large(encoding: bytes) -> None:
    bomb = gzip.compress(bytes(10**7)) if encoding == b"gzip" else zstd(bytes(10**7)) * 3
    with pytest.raises(Problem) as refused:
        decompress(bomb, encoding, MAX)
    assert refused.value.status == 413
