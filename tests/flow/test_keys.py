"""Keys on a real catalog: rotated, revoked while a stream is open, and guessed at."""

import asyncio
import json
import threading
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from dashboard.app import Dashboard
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.organization import ApiKey, Scope, new_secret, secret_digest
from schemas.settings import Settings
from tests.flow.board import KEY, READ_KEY, Running, own, running_board, signed_in
from tests.waiting import until
from usage_billing.bootstrap import bootstrap


@pytest.fixture(scope="module")
def running(kafka: KafkaBroker, clickhouse: ClickHouseLocal) -> Iterator[Running]:
    with running_board(kafka, clickhouse, "keys", key_streams_max=2) as running:
        yield running


def start(running: Running, admin_key: str) -> None:
    """What a process does when it starts with that USAGE_ADMIN_KEY."""
    bootstrap(running.settings.model_copy(update={"admin_key": SecretStr(admin_key)}), running.store)


def in_force(running: Running, secret: str) -> bool:
    return running.store.view.key_by_digest(secret_digest(secret)) is not None


def test_another_admin_key_ends_the_one_before_and_its_sessions(running: Running) -> None:
    first, second = new_secret(), new_secret()
    start(running, first)
    with signed_in(running, first) as client:
        assert client.get("/").status_code == 200
        start(running, first)
        assert client.get("/").status_code == 200
        start(running, second)
        assert (in_force(running, first), in_force(running, second)) == (False, True)
        assert client.get("/").status_code == 303
    assert in_force(running, KEY)  # a key that someone made is not the setting's
    before = running.store.next_offset
    start(running, first)  # a process that still has yesterday's setting
    assert (in_force(running, first), in_force(running, second)) == (False, True)
    assert running.store.next_offset == before


@pytest.mark.parametrize("by", ["key", "session"])
def test_a_revoked_keys_stream_ends(running: Running, by: str) -> None:
    secret = new_secret()
    key = ApiKey(**own("default", f"key_stream_{by}"), scopes=(Scope.ADMIN,), sha256=secret_digest(secret), hint="0")
    running.store.write(key, 0)
    ended, seen = threading.Event(), list[str]()

    def listen(client: httpx.Client, path: str) -> None:
        with client.stream("GET", path) as answer:
            for line in answer.iter_lines():
                seen.append(line)
                if line == "event: ready":
                    running.store.write(key.model_copy(update={"archived": True}), 1)
                    running.total(f"after-{by}", 1, "1", offset=1)
        ended.set()

    if by == "key":
        client = httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {secret}"}, timeout=30)
    else:
        client = signed_in(running, secret)
    path = {"key": "/api/v1/stream", "session": "/live/stream"}[by]
    with client:
        listener = threading.Thread(target=listen, args=(client, path), daemon=True)
        listener.start()
        assert ended.wait(20)  # keep-alives and retries would hold it for ever
    rows = [row for line in seen if line.startswith("data: [") for row in json.loads(line.removeprefix("data: "))]
    assert [row for row in rows if row["customer_id"] == f"after-{by}"] == []


def sign_ins(running: Running, settings: Settings, attempts: list[tuple[str, str]], peer: str) -> list[int]:
    """attempts: key, X-Forwarded-For. The statuses."""
    transport = httpx.ASGITransport(Dashboard(settings, running.store).app, client=(peer, 1))

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=transport, base_url="http://usage") as client:
            answers = [
                await client.post("/sign-in", data={"key": key}, headers={"X-Forwarded-For": address})
                for key, address in attempts
            ]
        return [answer.status_code for answer in answers]

    return asyncio.run(run())


def test_failed_sign_ins_are_limited(running: Running) -> None:
    assert sign_ins(running, running.settings, [("wrong", "")] * 12, "10.0.0.9") == [401] * 10 + [429] * 2


def test_sign_ins_that_succeed_are_not_limited(running: Running) -> None:
    assert sign_ins(running, running.settings, [(KEY, "")] * 30, "10.0.0.9") == [303] * 30


def test_a_success_does_not_make_up_for_failures(running: Running) -> None:
    """Who has a key of an organization could otherwise guess at another's, ten times for each success."""
    attempts = [("wrong", "")] * 9 + [(KEY, "")] + [("wrong", "")] * 2
    assert sign_ins(running, running.settings, attempts, "10.0.0.9") == [401] * 9 + [303, 401, 429]


def test_behind_a_trusted_proxy_each_client_has_its_own_limit(running: Running) -> None:
    attempts = [("wrong", "1.1.1.1")] * 11 + [("wrong", "2.2.2.2")]
    trusting = running.settings.model_copy(update={"trusted_proxies": "10.0.0.0/8"})
    assert sign_ins(running, trusting, attempts, "10.0.0.9") == [401] * 10 + [429, 401]
    made_up = [("wrong", f"1.1.1.{n}") for n in range(11)]
    assert sign_ins(running, running.settings, made_up, "10.0.0.9")[-1] == 429


def test_every_change_says_who_made_it(running: Running) -> None:
    key = f"key_{secret_digest(KEY)[:8]}"
    fields = {"name": "By API", "event_name": "e", "unit": "u", "aggregation": "count"}
    made = httpx.post(
        f"{running.address}/api/v1/meters", json=fields, headers={"Authorization": f"Bearer {KEY}"}
    ).json()
    with signed_in(running) as client:
        token = client.get("/meters/new").text.split('name="csrf_token" value="')[1].split('"')[0]
        answer = client.post("/meters/new", data={**fields, "name": "By page", "csrf_token": token})
    by_page = answer.headers["location"].split("/")[2].partition("?")[0]

    def by(object_id: str) -> object:
        (change,) = running.get("/changes", KEY, kind="meter", object_id=object_id)["data"]
        return change["version"], change["by"]

    assert by(made["id"]) == (1, key)
    assert by(by_page) == (1, f"dashboard, {key}")
    assert by("mtr_miles") == (1, None)
    first = running.get("/changes", KEY, limit=1)
    assert first["data"][0]["object_id"] == by_page
    second = running.get("/changes", KEY, limit=1, cursor=first["next_cursor"])
    assert second["data"][0]["object_id"] == made["id"]


def test_open_streams_of_a_key_are_limited(running: Running) -> None:
    with (
        httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {READ_KEY}"}, timeout=30) as client,
        client.stream("GET", "/api/v1/stream") as first,
        client.stream("GET", "/api/v1/stream") as second,
    ):
        assert (first.status_code, second.status_code) == (200, 200)
        refused = client.get("/api/v1/stream")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert int(refused.headers["Retry-After"]) >= 1
        second.close()
        until(lambda: _opens(client))


def _opens(client: httpx.Client) -> bool:
    with client.stream("GET", "/api/v1/stream") as answer:
        return answer.status_code == 200
