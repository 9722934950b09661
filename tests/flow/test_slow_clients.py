"""Clients that are slow, silent, too loud or gone, at the running service: none of them keeps another from being served."""

import gzip
import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import zstandard

from deploy.local.kafka import KafkaBroker
from deploy.local.process import HOST
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from tests.flow.test_gateway import ADMIN, EVENT, EVENTS
from tests.services import Service
from tests.waiting import until

IDLE_POSTS = 4096
BATCH = json.dumps({"events": [EVENT]}).encode()


@pytest.fixture(scope="module")
def serve(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Gateway and dashboard on one port, as `serve` runs them."""
    prefix = f"slow{time.time_ns()}."
    create_topics(Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix=prefix))
    env = {
        "USAGE_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "USAGE_TOPIC_PREFIX": prefix,
        "USAGE_ADMIN_KEY": ADMIN,
    }
    service = Service("serve", env, tmp_path_factory.mktemp("slow")).start()
    yield service
    service.stop()


def connected(service: Service, data: bytes, seconds: float = 20) -> socket.socket:
    client = socket.create_connection((HOST, service.port), timeout=seconds)
    client.sendall(data)
    return client


def head(path: str, length: int, **headers: str) -> bytes:
    named = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(length)}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    return "\r\n".join([f"POST {path} HTTP/1.1", *(f"{n}: {value}" for n, value in named.items()), "", ""]).encode()


def answer(client: socket.socket) -> tuple[int, bytes]:
    """Status and body; the body as far as it came with the head."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(65536)
        assert part, data
        data += part
    top, _, rest = data.partition(b"\r\n\r\n")
    return int(top.split(b" ", 2)[1]), rest


def posted(service: Service, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    with connected(service, head(path, len(body), **headers) + body) as client:
        return answer(client)


KEY = {"Authorization": f"Bearer {ADMIN}"}
FORM = {"Content_Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize("path", ["/sign-in", "/webhooks/stripe", EVENTS, "/api/v1/meters"])
def test_idle_posts_do_not_stop_ingest(serve: Service, path: str) -> None:
    """4,096 requests whose bodies never come: events are taken and probes answered while they wait."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3 * IDLE_POSTS), hard))
    with ExitStack() as idle:
        for _ in range(IDLE_POSTS if path == "/sign-in" else 512):
            more = FORM if path == "/sign-in" else KEY
            idle.enter_context(connected(serve, head(path, 100, **more)))
        assert posted(serve, EVENTS, BATCH, **KEY)[0] == 202
        assert posted(serve, "/sign-in", f"key={ADMIN}&next=/".encode(), **FORM)[0] == 303
        assert serve.get("/healthz").status_code == 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/sign-in", FORM), ("/webhooks/stripe", {}), (EVENTS, KEY), (f"{EVENTS}/void", KEY), ("/api/v1/meters", KEY)],
)
def test_a_body_that_never_comes_ends_its_request(serve: Service, path: str, headers: dict[str, str]) -> None:
    with connected(serve, head(path, 100, **headers) + b"x") as client:
        assert answer(client)[0] == 408


def test_a_connection_that_says_nothing_is_closed(serve: Service) -> None:
    with connected(serve, b"") as silent, connected(serve, b"GET /healthz HTTP/1.1\r\nHos") as half:
        assert serve.get("/healthz").status_code == 200
        for client in (silent, half):
            assert b"HTTP/1.1 2" not in client.recv(1024)


@pytest.mark.parametrize(
    ("path", "size", "headers", "status"),
    [
        (EVENTS, 20_000_000, KEY, 413),
        (EVENTS, 20_000_000, {}, 401),
        (f"{EVENTS}/void", 2_000_000, KEY, 413),
        ("/api/v1/meters", 20_000_000, KEY, 413),
        ("/sign-in", 2_000_000, FORM, 413),
        ("/webhooks/stripe", 2_000_000, {}, 400),
        ("/nowhere", 2_000_000, {}, 404),
    ],
)
def test_a_client_that_sends_too_much_reads_the_answer(
    serve: Service, path: str, size: int, headers: dict[str, str], status: int
) -> None:
    """It writes its whole body first, as many clients do, and sees no broken pipe."""
    assert posted(serve, path, bytes(size), **headers)[0] == status


def _gone(service: Service) -> float:
    found = re.search(r'usage_gateway_requests_total\{status="499"\} (\S+)', service.get("/metrics").text)
    return float(found[1]) if found else 0


def test_a_client_that_went_away_is_no_error(serve: Service) -> None:
    before = _gone(serve)
    for path, headers in ((EVENTS, KEY), ("/api/v1/meters", KEY), ("/sign-in", FORM), ("/webhooks/stripe", {})):
        connected(serve, head(path, 1000, **headers) + b"{").close()
    until(lambda: _gone(serve) > before)
    assert serve.get("/healthz").status_code == 200
    log = serve.log_path.read_text()
    assert "Traceback" not in log
    assert "request_failed" not in log


def test_frames_are_one_body_and_damage_is_named(serve: Service) -> None:
    def post(body: bytes, encoding: str, path: str = EVENTS) -> tuple[int, bytes]:
        return posted(serve, path, body, Content_Encoding=encoding, **KEY)

    zstd = zstandard.ZstdCompressor().compress
    assert post(zstd(BATCH[:30]) + zstd(BATCH[30:]), "zstd")[0] == 202
    assert post(zstd(BATCH) + zstd(BATCH), "zstd")[0] == 400  # two JSON texts
    damaged = bytearray(gzip.compress(BATCH))
    damaged[12] ^= 0xFF
    for path in (EVENTS, f"{EVENTS}/void", "/api/v1/meters"):
        status, rest = post(bytes(damaged), "gzip", path)
        assert (status, json.loads(rest)["code"]) == (400, "invalid_encoding"), path


def test_half_of_a_surrogate_pair_is_named(serve: Service) -> None:
    bodies: list[tuple[str, bytes, Any]] = [
        (EVENTS, BATCH[:-1] + b',"\\ud800":1}', "\\ud800"),
        (f"{EVENTS}/void", b'{"\\ud800":1}', "\\ud800"),
        ("/api/v1/meters", b'{"name":"\\ud800"}', "name"),
        ("/api/v1/products", b'{"prices":[{"model":"\\ud800"}]}', "prices.0.model"),
        ("/api/v1/meters", b'{"\\ud800":1}', "\\ud800"),
    ]
    for path, body, field in bodies:
        status, rest = posted(serve, path, body, **KEY)
        assert status == 422, (path, body)
        assert field in {error["field"] for error in json.loads(rest)["errors"]}, (path, rest)


def test_a_small_body_that_holds_much_is_refused_without_delay_to_others(serve: Service) -> None:
    """826 bytes of zstd held the event loop for 1.9 s: two million numbers where events are expected."""
    numbers = b'{"events":[' + b"1," * 2_000_000 + b"1]}"
    body = zstandard.ZstdCompressor().compress(numbers)
    assert len(body) < 1000
    status, rest = posted(serve, EVENTS, body, Content_Encoding="zstd", **KEY)
    assert (status, json.loads(rest)["errors"][0]["code"]) == (422, "events_count")
