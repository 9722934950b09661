"""usage.alerts on a real broker → signed requests to a receiver: within moments, again until answered, once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer
from standardwebhooks import Webhook

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas import alert as alerts
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, NotSent, alert_id
from schemas.organization import ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import USAGE_ALERTS, topic_name
from tests.receiver import Receiver
from tests.waiting import until

KEY, OTHER_KEY = new_secret(), new_secret()


class World:
    """A dashboard with its worker, on topics of its own."""

    def __init__(self, kafka: KafkaBroker, prefix: str, *, private: bool = True, timeout: float = 1.0) -> None:
        self.settings = Settings(  # pyright: ignore[reportCallIssue]
            kafka_bootstrap_servers=kafka.bootstrap_servers,
            topic_prefix=prefix,
            event_partitions=2,
            webhook_private_targets=private,
            webhook_retry_seconds=0.3,
            webhook_timeout_seconds=timeout,
        )
        create_topics(self.settings)
        self.store = CatalogStore(self.settings)
        self.store.start()
        for organization, key in (("default", KEY), ("other", OTHER_KEY)):
            self.store.write(Organization(id=organization, organization_id=organization, created_at=0), 0)
            digest = secret_digest(key)
            self.store.write(
                ApiKey(
                    id=f"key_{digest[:8]}", organization_id=organization, scopes=(Scope.ADMIN,), sha256=digest,
                    hint="0000", created_at=0,
                ),
                0,
            )  # fmt: skip
        self.board = Dashboard(self.settings, self.store)
        self.producer = Producer(self.settings.kafka_properties)

    def start(self) -> None:
        self.board.start()

    def restart(self) -> None:
        """As another process would: nothing is kept in memory."""
        self.stop()
        self.board = Dashboard(self.settings, self.store)
        self.start()

    def stop(self) -> None:
        asyncio.run(self.board.stop())

    def call(self, method: str, path: str, key: str = KEY, **more: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.board.app)
            headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
            async with httpx.AsyncClient(transport=transport, base_url="http://usage/api/v1", headers=headers) as api:
                return await api.request(method, path, **more)

        return asyncio.run(run())

    def endpoint(self, url: str) -> dict[str, Any]:
        answer = self.call("POST", "/webhook-endpoints", json={"url": url})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def fire(self, customer: str, not_sent: NotSent | None = None) -> Alert:
        alert = Alert(
            alert_id("rule_1", customer, 0), "default", "rule_1", customer, "mtr_1", AlertKind.QUANTITY, "80", "90", 0,
            1_000_000, time.time_ns() // 1000, not_sent=not_sent,
        )  # fmt: skip
        partition = partition_of("default", customer, 2)
        self.producer.produce(topic_name(self.settings, USAGE_ALERTS), alerts.encode(alert), alert.key, partition)
        self.producer.flush()
        return alert

    def deliveries(self, **wanted: str) -> list[dict[str, Any]]:
        return self.call("GET", "/webhook-deliveries", params=wanted).json()["data"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.end()


@pytest.fixture
def world(kafka: KafkaBroker, topic_prefix: str) -> Iterator[World]:
    made = World(kafka, topic_prefix)
    made.start()
    yield made
    made.stop()
    made.store.stop()


def test_every_alert_reaches_every_endpoint_once_and_signed(world: World, receiver: Receiver) -> None:
    first, second = world.endpoint(receiver.url("/a")), world.endpoint(receiver.url("/b"))
    until(lambda: world.board.checks["webhooks"]() is None)
    world.fire("warm")
    until(lambda: len(receiver.got) == 2)
    for n in range(10):
        alert = world.fire(f"c{n}")
        world.fire(f"c{n}")  # published again, as after a crash
        until(lambda alert=alert: receiver.times[alert.id] == 2)
    for each in receiver.got:
        secret = first["secret"] if each.path == "/a" else second["secret"]
        assert Webhook(secret).verify(each.body, each.headers)["data"]["id"] == each.headers["webhook-id"]
    until(lambda: len(world.deliveries(state="delivered")) == 22)
    # What was answered is not sent again by whoever comes next, be it asked to.
    world.restart()
    world.fire("c0")
    world.fire("last")
    until(lambda: len(world.deliveries(state="delivered")) == 24)
    assert len(receiver.of("/a")) == len({headers["webhook-id"] for headers in receiver.of("/a")}) == 12
    (delivery, *_) = world.deliveries()
    again = world.call("POST", f"/webhook-deliveries/{delivery['id']}/retry")
    assert (again.status_code, again.json()["code"]) == (409, "already_delivered")


def test_an_alert_of_a_cycle_that_was_over_is_shown_and_not_sent(world: World, receiver: Receiver) -> None:
    world.endpoint(receiver.url("/a"))
    until(lambda: world.board.checks["webhooks"]() is None)
    kept, sent = world.fire("c", NotSent.CYCLE_OVER), world.fire("d")
    until(lambda: len(receiver.got) == 1)
    world.restart()
    world.fire("e")
    until(lambda: len(receiver.got) == 2)
    assert receiver.times.keys() >= {sent.id}
    assert kept.id not in receiver.times

    def shown() -> set[tuple[str, str | None]]:
        return {(alert["id"], alert["not_sent"]) for alert in world.call("GET", "/alerts").json()["data"]}

    # The view is another reader of the topic than what sends; after the restart it reads it again.
    until(lambda: shown() >= {(kept.id, "cycle_over"), (sent.id, None)})


def test_what_fails_is_sent_again_also_by_the_next_worker(world: World, receiver: Receiver) -> None:
    statuses = {"/bad": 500, "/moved": 302}
    receiver.answer = lambda path: statuses.get(path, 200)
    bad, moved = world.endpoint(receiver.url("/bad")), world.endpoint(receiver.url("/moved"))
    slow = world.endpoint("http://127.0.0.1:9/nobody")
    good = world.endpoint(receiver.url("/good"))
    world.fire("c")
    until(lambda: len(receiver.of("/good")) == 1)
    until(lambda: len(receiver.of("/bad")) == 2)
    until(lambda: world.deliveries(endpoint_id=bad["id"])[0]["attempts_made"] >= 2)
    assert world.deliveries(endpoint_id=bad["id"])[0]["attempts"][0]["error"] == "answered 500"
    assert world.deliveries(endpoint_id=moved["id"])[0]["attempts"][0]["status"] == 302
    assert "ConnectError" in world.deliveries(endpoint_id=slow["id"])[0]["attempts"][0]["error"]
    assert receiver.of("/elsewhere") == []

    statuses["/bad"] = 200
    world.restart()
    until(lambda: [each["state"] for each in world.deliveries(endpoint_id=bad["id"])] == ["delivered"])
    assert len({headers["webhook-id"] for headers in receiver.of("/bad")}) == 1
    assert len(world.deliveries(endpoint_id=good["id"])) == len(receiver.of("/good")) == 1

    # A retry that is asked for comes at once, whatever the wait was.
    statuses["/moved"] = 200
    (waiting,) = world.deliveries(endpoint_id=moved["id"])
    assert waiting["state"] == "pending"
    assert world.call("POST", f"/webhook-deliveries/{waiting['id']}/retry", OTHER_KEY).status_code == 404
    assert world.call("POST", f"/webhook-deliveries/{waiting['id']}/retry").status_code == 202
    until(lambda: world.deliveries(endpoint_id=moved["id"])[0]["state"] == "delivered")

    # Archived: what waits is given up, and nothing new comes.
    answer = world.call("DELETE", f"/webhook-endpoints/{slow['id']}")
    assert answer.json()["archived"] is True
    until(lambda: world.deliveries(endpoint_id=slow["id"])[0]["state"] == "failed", seconds=40)
    world.fire("d")
    until(lambda: len(receiver.of("/good")) == 2)
    assert len(world.deliveries(endpoint_id=slow["id"])) == 1


def test_an_endpoint_that_does_not_answer_holds_up_no_other(world: World, receiver: Receiver) -> None:
    release, answered = threading.Event(), threading.Event()

    def answer(path: str) -> int:
        if path == "/stuck":
            release.wait(60)
            answered.set()
        return 200

    receiver.answer = answer
    world.endpoint(receiver.url("/stuck"))
    world.endpoint(receiver.url("/good"))
    for n in range(30):
        world.fire(f"c{n}")
    until(lambda: len({headers["webhook-id"] for headers in receiver.of("/good")}) == 30)
    assert not answered.is_set()
    until(lambda: any("no answer within" in str(each["attempts"]) for each in world.deliveries()))
    release.set()


def test_private_targets_are_refused_when_made_and_when_sent(
    kafka: KafkaBroker, topic_prefix: str, receiver: Receiver
) -> None:
    world = World(kafka, topic_prefix)
    try:
        made = world.endpoint(receiver.url("/a"))
        closed = World.__new__(World)
        closed.__dict__ = {
            **world.__dict__,
            "settings": world.settings.model_copy(update={"webhook_private_targets": False}),
        }
        closed.board = Dashboard(closed.settings, world.store)
        for url in (receiver.url("/b"), "https://127.0.0.1/", "https://localhost/", "http://example.com/"):
            answer = closed.call("POST", "/webhook-endpoints", json={"url": url})
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "refused_target")
        answer = closed.call("PATCH", f"/webhook-endpoints/{made['id']}", json={"url": "https://10.0.0.1/"})
        assert answer.status_code == 422
        closed.start()
        closed.fire("c")
        until(lambda: bool(closed.deliveries() and closed.deliveries()[0]["attempts_made"]))
        assert "https" in closed.deliveries()[0]["attempts"][0]["error"]
        assert receiver.got == []
        closed.stop()
    finally:
        world.store.stop()


def test_the_secret_is_shown_once_and_a_repeated_post_makes_one_endpoint(world: World) -> None:
    body, headers = {"url": "https://example.com/hooks", "description": "<script>"}, {"Idempotency-Key": "one"}
    first = world.call("POST", "/webhook-endpoints", json=body, headers=headers)
    second = world.call("POST", "/webhook-endpoints", json=body, headers=headers)
    assert first.json() == second.json()
    assert first.json()["secret"].startswith("whsec_")
    id_ = first.json()["id"]
    assert "secret" not in world.call("GET", f"/webhook-endpoints/{id_}").json()
    assert [each["id"] for each in world.call("GET", "/webhook-endpoints").json()["data"]] == [id_]
    assert world.call("GET", "/webhook-endpoints", OTHER_KEY).json()["data"] == []
    assert world.call("GET", f"/webhook-endpoints/{id_}", OTHER_KEY).status_code == 404
    stale = world.call("PATCH", f"/webhook-endpoints/{id_}", json={"description": "x"}, headers={"If-Match": '"7"'})
    assert stale.status_code == 412
    changed = world.call("PATCH", f"/webhook-endpoints/{id_}", json={"description": "x"}, headers={"If-Match": '"1"'})
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    assert world.call("POST", "/webhook-endpoints", json={"url": "nonsense"}).status_code == 422


def test_what_was_answered_while_the_broker_was_away_is_not_sent_again(
    kafka_factory: Callable[[], KafkaBroker], topic_prefix: str, receiver: Receiver
) -> None:
    broker = kafka_factory()
    broker.start()
    world = World(broker, topic_prefix, timeout=60)  # they wait for their answers until the broker is away
    release = threading.Event()
    receiver.answer = lambda _: 200 if release.wait(50) else 500
    try:
        world.endpoint(receiver.url("/a"))
        world.start()
        alerts_fired = [world.fire(f"c{n}") for n in range(3)]
        until(lambda: len(receiver.got) == 3)
        broker.stop()
        release.set()
        until(lambda: "interrupted" in (world.board.checks["webhooks"]() or ""), 60)
        broker.start()
        until(lambda: world.board.checks["webhooks"]() is None, 60)
        until(lambda: len(world.deliveries(state="delivered")) == 3, 60)
        world.fire("last")  # sent after all that was due before it
        until(lambda: len(world.deliveries(state="delivered")) == 4, 60)
        assert [receiver.times[alert.id] for alert in alerts_fired] == [1, 1, 1]
    finally:
        release.set()
        world.stop()
        world.store.stop()
