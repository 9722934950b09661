"""The control API on the real log: what goes in comes out, and every refusal has its status, code and field."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from deploy.local.kafka import KafkaBroker
from runtime.topics import create_topics
from schemas.organization import ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.settings import Settings

pytestmark = pytest.mark.anyio
KEYS = {scope: new_secret() for scope in Scope}
OTHER_KEY, REVOKED_KEY = new_secret(), new_secret()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def api_key(secret: str, organization: str, scope: Scope, *, archived: bool = False) -> ApiKey:
    return ApiKey(
        id=f"key_{secret_digest(secret)[:12]}",
        organization_id=organization,
        scopes=(scope,),
        sha256=secret_digest(secret),
        hint=secret[-4:],
        created_at=0,
        archived=archived,
    )


@pytest.fixture(scope="module")
def settings(kafka: KafkaBroker) -> Settings:
    made = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix="control-api.", event_partitions=2)
    create_topics(made)
    return made


@pytest.fixture(scope="module")
def store(settings: Settings) -> Iterator[CatalogStore]:
    with CatalogStore(settings) as opened:
        for organization in ("default", "other"):
            opened.write(
                Organization(id=organization, organization_id=organization, time_zone="America/New_York", created_at=0),
                0,
            )
        for scope, secret in KEYS.items():
            opened.write(api_key(secret, "default", scope), 0)
        opened.write(api_key(OTHER_KEY, "other", Scope.ADMIN), 0)
        opened.write(api_key(REVOKED_KEY, "default", Scope.ADMIN), 0)
        opened.write(api_key(REVOKED_KEY, "default", Scope.ADMIN, archived=True), 1)
        yield opened


def client_of(settings: Settings, store: CatalogStore, key: str = KEYS[Scope.ADMIN]) -> httpx.AsyncClient:
    app = Dashboard(settings, store).app
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=transport, base_url="http://usage/api/v1", headers=headers)


@pytest.fixture(scope="module")
async def api(settings: Settings, store: CatalogStore) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(settings, store) as client:
        yield client


async def made(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await api.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


METER = {"name": "Requests", "event_name": "api_request", "unit": "requests", "aggregation": "count"}


async def test_a_meter_is_created_read_listed_changed_and_archived(api: httpx.AsyncClient) -> None:
    created = await api.post("/meters", json=METER)
    assert created.status_code == 201 and created.headers["ETag"] == '"1"'
    meter = created.json()
    assert meter["id"].startswith("mtr_") and len(meter["id"]) == 28
    assert METER.items() <= meter.items() and meter["version"] == 1 and meter["created_at"].endswith("Z")
    one = f"/meters/{meter['id']}"
    assert (await api.get(one)).json() == meter
    assert meter in (await api.get("/meters")).json()["data"]

    changed = await api.patch(one, json={"name": "Calls"}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200 and changed.headers["ETag"] == '"2"'
    assert changed.json() == {**meter, "name": "Calls", "version": 2}
    stale = await api.patch(one, json={"name": "Late"}, headers={"If-Match": '"1"'})
    assert stale.status_code == 412 and stale.headers["ETag"] == '"2"'

    archived = await api.delete(one)
    assert archived.status_code == 200 and archived.json()["archived"] is True
    assert (await api.delete(one)).json() == archived.json()
    assert archived.json() in (await api.get("/meters?archived=true")).json()["data"]
    assert all(found["id"] != meter["id"] for found in (await api.get("/meters")).json()["data"])
    refused = await api.patch(one, json={"name": "Again"})
    assert refused.status_code == 409 and refused.json()["code"] == "archived"
