"""POST /api/v1/usage/events as a producer sees it, on a real broker: what a 202 promises, and what is refused."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from confluent_kafka import Consumer, TopicPartition

from catalog.store import CatalogStore
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas import usage_void
from schemas.meter import Aggregation, Meter
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Scope, secret_digest
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import UsageBatch, decode
from tests.services import Service
from tests.waiting import until

ADMIN = "ubk_admin_of_this_test"
EVENTS = "/api/v1/usage/events"
EVENT: dict[str, Any] = {"customer_id": "cus_1", "event_name": "calls", "timestamp": "2026-03-30T12:00:00Z", "value": 1}


class Stack:
    """A gateway, the log behind it, and a client with the admin key."""

    def __init__(self, broker: KafkaBroker, prefix: str, directory: Path, **more: str) -> None:
        env = {
            "USAGE_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "USAGE_TOPIC_PREFIX": prefix,
            "USAGE_ADMIN_KEY": ADMIN,
            **more,
        }
        self.settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers, topic_prefix=prefix)
        create_topics(self.settings)
        self.gateway = Service("gateway", env, directory).start()
        self.client = httpx.Client(
            base_url=self.gateway.address,
            headers={"Authorization": f"Bearer {ADMIN}"},
            timeout=10,
            # With more connections than it keeps, httpcore 1.0 closes idle ones, those just given to a thread too.
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
        )

    def close(self) -> None:
        self.client.close()
        self.gateway.stop()

    def post(self, *events: object, **headers: str) -> httpx.Response:
        return self.client.post(EVENTS, json={"events": events}, headers=headers)

    def log(self) -> dict[tuple[int, int], UsageBatch]:
        """Every batch of usage.events by (partition, offset)."""
        return {place: decode(message) for place, message in self.raw_log().items() if not usage_void.is_void(message)}

    def raw_log(self) -> dict[tuple[int, int], bytes]:
        """Every message of usage.events by (partition, offset)."""
        topic = topic_name(self.settings, USAGE_EVENTS)
        consumer = Consumer({**self.settings.kafka_properties, "group.id": "test", "enable.partition.eof": True})
        partitions = range(self.settings.event_partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        found: dict[tuple[int, int], bytes] = {}
        ended: set[int] = set()
        while len(ended) < len(partitions):
            message = consumer.poll(10)
            assert message is not None
            place = (message.partition() or 0, message.offset() or 0)
            if message.error():
                ended.add(place[0])
            else:
                found[place] = message.value() or b""
        consumer.close()
        return found

    def messages(self) -> int:
        return len(self.raw_log())


@pytest.fixture(scope="module")
def shared(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(kafka, f"gateway{time.time_ns()}.", tmp_path_factory.mktemp("gateway"))
    yield stack
    stack.close()


def test_receipt_names_the_offsets_of_every_event(shared: Stack) -> None:
    events = [{**EVENT, "customer_id": f"receipt_{i}", "value": f"{i}.5", "event_id": f"e{i}"} for i in range(1000)]
    answer = shared.post(*events)
    assert answer.status_code == 202
    body = answer.json()
    assert body["accepted"] == 1000
    assert sum(part["events"] for part in body["receipt"]) == 1000
    log = shared.log()
    for part in body["receipt"]:
        batch = log[part["partition"], part["first_offset"]]
        assert len(batch) == part["events"]
        for customer_id, organization_id in zip(batch.customer_id, batch.organization_id, strict=True):
            assert organization_id == DEFAULT_ORGANIZATION
            assert partition_of(organization_id, customer_id, shared.settings.event_partitions) == part["partition"]
    identities = {identity for place in log.values() for identity in place.identity}
    assert {f"c:e{i}" for i in range(1000)} <= identities


def test_concurrent_requests_share_messages_and_keep_their_own_receipts(shared: Stack) -> None:
    """Each receipt's events are in its message, whoever else's are there too."""
    import concurrent.futures

    def post(number: int) -> tuple[int, dict[str, Any]]:
        return number, shared.post({**EVENT, "customer_id": "together", "event_id": f"n{number}"}).json()

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(post, range(400)))
    log = shared.log()
    for number, body in answers:
        (part,) = body["receipt"]
        assert f"c:n{number}" in log[part["partition"], part["first_offset"]].identity


def test_idempotency_key_gives_each_event_an_identity(shared: Stack) -> None:
    body = shared.post(EVENT, {**EVENT, "event_id": "own"}, EVENT, **{"Idempotency-Key": "retry:1"}).json()
    (part,) = body["receipt"]
    batch = shared.log()[part["partition"], part["first_offset"]]
    assert list(batch.identity) == ["k:retry:1:0", "c:own", "k:retry:1:2"]


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("zstd", zstandard.ZstdCompressor().compress), ("identity", bytes)],
)
def test_compressed_bodies(shared: Stack, encoding: str, encode: Callable[[bytes], bytes]) -> None:
    body = encode(json.dumps({"events": [EVENT]}).encode())
    answer = shared.client.post(
        EVENTS, content=body, headers={"Content-Encoding": encoding, "Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)


NOW = time.time()


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW + seconds))


# what is posted → status, index, field, code
REFUSED: list[tuple[str, bytes, int, int | None, str | None, str]] = [
    ("0 events", b'{"events":[]}', 422, None, "events", "events_count"),
    ("1,001 events", json.dumps({"events": [EVENT] * 1001}).encode(), 422, None, "events", "events_count"),
    (
        "future",
        json.dumps({"events": [EVENT, {**EVENT, "timestamp": _at(3600)}]}).encode(),
        422,
        1,
        "timestamp",
        "timestamp_in_future",
    ),
    (
        "1969",
        json.dumps({"events": [{**EVENT, "timestamp": "1969-12-31T23:59:59Z"}]}).encode(),
        422,
        0,
        "timestamp",
        "timestamp_too_early",
    ),
    (
        "no offset",
        json.dumps({"events": [{**EVENT, "timestamp": "2026-03-30T12:00:00"}]}).encode(),
        422,
        0,
        "timestamp",
        "timestamp_missing_offset",
    ),
    (
        "NaN",
        b'{"events":[{"customer_id":"a","event_name":"b","timestamp":"2026-03-30T12:00:00Z","value":NaN}]}',
        422,
        0,
        "value",
        "value_not_finite",
    ),
    ("true", json.dumps({"events": [{**EVENT, "value": True}]}).encode(), 422, 0, "value", "value_type"),
    ("invalid UTF-8", b'{"events":[{"customer_id":"\xff"}]}', 400, None, None, "invalid_json"),
    ("brackets", b"[" * 100_000, 400, None, None, "invalid_json"),
    ("8 MiB", b" " * (8 * 1024 * 1024), 413, None, None, "body_too_large"),
]


@pytest.mark.parametrize(
    ("body", "status", "index", "field", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused_whole_and_nothing_enqueued(
    shared: Stack, body: bytes, status: int, index: int | None, field: str | None, code: str
) -> None:
    before = shared.messages()
    answer = shared.client.post(EVENTS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    if status == 422:
        (error,) = problem["errors"]
        assert (error["index"], error["field"], error["code"]) == (index, field, code)
        assert error["message"]
    else:
        assert problem["code"] == code
    assert shared.messages() == before


def test_a_bomb_is_refused_by_its_decoded_size(shared: Stack) -> None:
    bomb = gzip.compress(b" " * (64 * 1024 * 1024))
    assert len(bomb) < 100_000
    answer = shared.client.post(EVENTS, content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Authorization": ""}, 401, "missing_key"),
        ({"Authorization": "Basic x"}, 401, "missing_key"),
        ({"Authorization": "Bearer ubk_wrong"}, 401, "invalid_key"),
        ({"Content-Type": "text/csv"}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "br"}, 415, "unsupported_encoding"),
        ({"Content-Encoding": "gzip"}, 400, "invalid_encoding"),
        ({"Idempotency-Key": "x" * 257}, 422, "invalid_batch"),
    ],
)
def test_headers_refused(shared: Stack, headers: dict[str, str], status: int, code: str) -> None:
    answer = shared.post(EVENT, **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_keys_scopes_and_revocation(shared: Stack) -> None:
    def key(name: str, scope: Scope, archived: bool = False) -> ApiKey:
        return ApiKey(
            id=f"key_{name}",
            organization_id=DEFAULT_ORGANIZATION,
            scopes=(scope,),
            sha256=secret_digest(f"ubk_{name}"),
            hint="",
            created_at=0,
            archived=archived,
        )

    with CatalogStore(shared.settings) as catalog:
        catalog.write(key("ingest", Scope.INGEST), 0)
        catalog.write(key("read", Scope.READ), 0)

        def status(name: str) -> int:
            return shared.post(EVENT, Authorization=f"Bearer ubk_{name}").status_code

        until(lambda: status("ingest") == 202)
        assert status("read") == 403
        void = {"customer_id": "a", "event_name": "b", "event_id": "c", "reason": "d"}
        answer = shared.client.post(f"{EVENTS}/void", json=void, headers={"Authorization": "Bearer ubk_ingest"})
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
        catalog.write(key("ingest", Scope.INGEST, archived=True), 1)
        revoked = time.monotonic()
        until(lambda: status("ingest") == 401)
        assert time.monotonic() - revoked < 2


def test_value_is_required_once_a_meter_reads_it(shared: Stack) -> None:
    """Unmatched and accepted before the meter is there, refused without a value after it."""
    event = {**EVENT, "event_name": "storage", "value": None}
    body = shared.post(event).json()
    assert (body["accepted"], body["unmatched"]) == (1, 1)
    with CatalogStore(shared.settings) as catalog:
        catalog.write(
            Meter(
                id="mtr_storage",
                organization_id=DEFAULT_ORGANIZATION,
                name="Storage",
                event_name="storage",
                unit="GB",
                aggregation=Aggregation.MAX,
                created_at=0,
            ),
            0,
        )
    until(lambda: shared.post(event).status_code == 422)
    (error,) = shared.post(EVENT, event).json()["errors"]
    assert (error["index"], error["field"], error["code"]) == (1, "value", "value_missing")


def test_a_void_is_a_tombstone_where_its_event_is(shared: Stack) -> None:
    (event,) = shared.post({**EVENT, "customer_id": "voided", "event_id": "e1"}).json()["receipt"]
    void = {"customer_id": "voided", "event_name": "calls", "event_id": "e1", "reason": "sent by a load test"}
    answer = shared.client.post(f"{EVENTS}/void", json=void)
    assert answer.status_code == 202
    (place,) = answer.json()["receipt"]
    assert place["partition"] == event["partition"]
    assert place["first_offset"] > event["first_offset"]
    written = usage_void.decode(shared.raw_log()[place["partition"], place["first_offset"]])
    assert list(written.identity) == ["c:e1"]
    assert (*written.organization_id, *written.customer_id) == (DEFAULT_ORGANIZATION, "voided")
    assert (*written.event_name, *written.reason) == ("calls", "sent by a load test")


def test_a_void_with_errors_writes_nothing(shared: Stack) -> None:
    before = shared.messages()
    answer = shared.client.post(f"{EVENTS}/void", json={"customer_id": "voided", "event_id": 7})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_void")
    assert {error["field"] for error in answer.json()["errors"]} == {"event_name", "event_id", "reason"}
    assert shared.client.post(f"{EVENTS}/void", content=b"{").status_code == 400
    assert shared.client.get(f"{EVENTS}/void").status_code == 405
    assert shared.messages() == before


def test_broker_gone_503_in_time_and_every_202_is_in_the_log(
    kafka_factory: Callable[[], KafkaBroker], tmp_path: Path
) -> None:
    broker = kafka_factory()
    broker.start()
    stack = Stack(broker, "", tmp_path)
    receipts: list[dict[str, Any]] = [stack.post({**EVENT, "event_id": "before"}).json()["receipt"][0]]
    broker.kill()
    started = time.monotonic()
    answer = stack.post({**EVENT, "event_id": "while away"})
    assert answer.status_code == 503
    assert time.monotonic() - started < 5
    assert int(answer.headers["retry-after"]) >= 1
    until(lambda: stack.gateway.get("/readyz").status_code == 503)
    # Known to be away: refused at once, and the answer says that nothing was enqueued.
    assert "nothing was enqueued" in stack.post(EVENT).json()["detail"]
    broker.start()
    until(lambda: stack.post({**EVENT, "event_id": "after"}).status_code == 202, seconds=30)
    receipts.append(stack.post({**EVENT, "event_id": "last"}).json()["receipt"][0])
    log = stack.log()
    for part, event_id in zip(receipts, ("before", "last"), strict=True):
        assert f"c:{event_id}" in log[part["partition"], part["first_offset"]].identity
    stack.close()


def test_sigterm_answers_what_is_under_way(kafka_factory: Callable[[], KafkaBroker], tmp_path: Path) -> None:
    broker = kafka_factory()
    broker.start()
    stack = Stack(broker, "", tmp_path, USAGE_DELIVERY_TIMEOUT_MS="30000")
    assert stack.post(EVENT).status_code == 202
    broker.pause()
    with ThreadPoolExecutor(2) as pool:
        # One is with the broker, the other waits for it.
        answers = [pool.submit(lambda: stack.post(EVENT).status_code) for _ in range(2)]
        until(lambda: "usage_gateway_events_waiting 2.0" in stack.gateway.get("/metrics").text)
        stack.gateway.terminate()
        broker.resume()
        assert [answer.result() for answer in answers] == [202, 202]
    assert stack.gateway.stop() == 0
    assert sum(len(batch) for batch in stack.log().values()) == 3
