"""A start in the past, on the real log: what would be invoiced is asked for first, and nothing is charged twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas.organization import ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.settings import Settings
from schemas.subscription import Subscription

pytestmark = pytest.mark.anyio
KEY = new_secret()
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
FLAT = {"name": "Flat", "currency": "eur", "prices": [{"model": "flat_fee", "amount": "49.00"}]}


def days_ago(days: int) -> str:
    return (TODAY - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def settings(kafka: KafkaBroker) -> Settings:
    made = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix="backdated.", event_partitions=2)
    create_topics(made)
    return made


@pytest.fixture(scope="module")
def store(settings: Settings) -> Iterator[CatalogStore]:
    with CatalogStore(settings) as opened:
        opened.write(Organization(id="default", organization_id="default", time_zone="UTC", created_at=0), 0)
        key = ApiKey(
            id="key_1",
            organization_id="default",
            scopes=(Scope.ADMIN,),
            sha256=secret_digest(KEY),
            hint="",
            created_at=0,
        )
        opened.write(key, 0)
        yield opened


@pytest.fixture(scope="module")
async def api(settings: Settings, store: CatalogStore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Dashboard(settings, store).app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://usage/api/v1", headers={"Authorization": f"Bearer {KEY}"}
    ) as client:
        yield client


async def made(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await api.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
async def body(api: httpx.AsyncClient, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A day subscription of a new customer to a new flat-fee product, without a start."""
    customer = await made(api, "/customers", {"name": request.node.name})
    product = await made(api, "/products", FLAT)
    return {"customer_id": customer["id"], "product_id": product["id"], "billing_interval": "day"}


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["errors"][0]
    return answer.status_code, error["field"], error["code"]


async def test_a_flat_fee_product_subscribed_again_from_the_same_start_is_refused(
    api: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    body |= {"started_at": days_ago(5), "backdate": True}
    first = await made(api, "/subscriptions", body)
    assert (await api.post(f"/subscriptions/{first['id']}/cancel")).status_code == 200
    assert refused(await api.post("/subscriptions", json=body)) == (409, "product_id", "product_subscribed_twice")
    later = {**body, "started_at": None, "backdate": False}
    assert (await made(api, "/subscriptions", later))["status"] == "active"


async def test_of_two_at_once_one_is_refused(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answers = await asyncio.gather(*(api.post("/subscriptions", json=body) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [201, 409]


async def test_a_start_years_back_is_asked_for(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    asked = {**body, "started_at": days_ago(117)}
    answer = await api.post("/subscriptions", json=asked)
    assert refused(answer) == (422, "backdate", "backdate_required")
    assert answer.json()["detail"].startswith("117 billing periods")
    assert (await made(api, "/subscriptions", {**asked, "backdate": True}))["started_at"] == days_ago(117)


async def test_a_start_in_the_current_period_needs_no_word(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    await made(api, "/subscriptions", {**body, "billing_interval": "year", "started_at": days_ago(360)})


async def test_billed_from_leaves_earlier_periods_out(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    asked = {**body, "started_at": days_ago(117)}
    made_ = await made(api, "/subscriptions", {**asked, "billed_from": days_ago(0)})
    assert (made_["started_at"], made_["billed_from"]) == (days_ago(117), days_ago(0))
    assert (await api.get(f"/subscriptions/{made_['id']}")).json() == made_


@pytest.mark.parametrize(
    ("billed_from", "code"),
    [
        (days_ago(118), "billed_from_range"),
        (days_ago(-2), "billed_from_range"),
        ((TODAY - timedelta(hours=3)).isoformat(), "billed_from_not_a_start"),
        ("soon", "timestamp_invalid"),
    ],
)
async def test_billed_from_is_the_start_of_a_period(
    api: httpx.AsyncClient, body: dict[str, Any], billed_from: str, code: str
) -> None:
    asked = {**body, "started_at": days_ago(117), "billed_from": billed_from}
    assert refused(await api.post("/subscriptions", json=asked)) == (422, "billed_from", code)


async def test_a_repeated_post_meets_what_the_first_made_also_when_its_period_is_over(
    api: httpx.AsyncClient, body: dict[str, Any], store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, headers = {**body, "started_at": days_ago(0)}, {"Idempotency-Key": "k"}
    first = await api.post("/subscriptions", json=asked, headers=headers)
    made_ = store.view.get(Subscription, "default", first.json()["id"])
    assert made_ is not None
    monkeypatch.setattr("dashboard.control.subscriptions.now_us", lambda: made_.created_at + 3 * 86_400_000_000)
    again = await api.post("/subscriptions", json=asked, headers=headers)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])


async def test_the_form_asks_too(settings: Settings, store: CatalogStore, body: dict[str, Any]) -> None:
    """The page says how many periods, shows the box, and takes it."""
    transport = httpx.ASGITransport(Dashboard(settings, store).app)
    async with httpx.AsyncClient(transport=transport, base_url="https://usage") as browser:
        await browser.post("/sign-in", data={"key": KEY})
        page = (await browser.get("/subscriptions/new")).text
        form = {
            **body,
            "csrf_token": page.split('name="csrf_token" value="')[1].split('"')[0],
            "started_at": days_ago(9)[:16],
            "collection_method": "charge_automatically",
        }
        answer = await browser.post("/subscriptions/new", data=form)
        assert answer.status_code == 422
        assert "9 billing periods" in answer.text
        assert 'type="checkbox" name="backdate"' in answer.text
        assert (await browser.post("/subscriptions/new", data={**form, "backdate": "on"})).status_code == 303
