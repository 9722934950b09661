"""The control API on the real log: what goes in comes out, and every refusal has its status, code and field."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas.customer import Customer
from schemas.organization import ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.settings import Settings
from schemas.subscription import Subscription

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


def client_of(settings: Settings, store: CatalogStore, key: str | None = KEYS[Scope.ADMIN]) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Dashboard(settings, store).app)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=transport, base_url="http://usage/api/v1", headers=headers)


@pytest.fixture(scope="module")
async def api(settings: Settings, store: CatalogStore) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(settings, store) as client:
        yield client


async def made(api: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = await api.post(path, json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


METER = {"name": "Requests", "event_name": "api_request", "unit": "requests", "aggregation": "count"}


@pytest.fixture(scope="module")
async def meter(api: httpx.AsyncClient) -> dict[str, Any]:
    return await made(api, "/meters", METER)


@pytest.fixture(scope="module")
async def product(api: httpx.AsyncClient, meter: dict[str, Any]) -> dict[str, Any]:
    price = {"meter_id": meter["id"], "model": "per_unit", "unit_amount": "0.001", "included_units": "1000"}
    return await made(api, "/products", {"name": "Standard", "currency": "eur", "prices": [price]})


@pytest.fixture(scope="module")
async def free_product(api: httpx.AsyncClient) -> dict[str, Any]:
    fee = {"model": "flat_fee", "amount": "49.00"}
    return await made(api, "/products", {"name": "Fee", "currency": "eur", "prices": [fee], "benefits": ["support"]})


# -- lists -------------------------------------------------------------------------------------------------------------


async def test_a_cursor_survives_the_object_that_it_names(api: httpx.AsyncClient) -> None:
    """In each list whose objects can leave it: nothing skipped, nothing twice."""
    bodies: dict[str, Any] = {
        "customers": {"name": "c"},
        "meters": METER,
        "products": {"name": "p", "currency": "eur", "prices": [{"model": "flat_fee", "amount": "1"}]},
        "alert-rules": {"meter_id": (await made(api, "/meters", METER))["id"], "kind": "quantity", "threshold": "1"},
        "api-keys": {"name": "k", "scopes": ["read"]},
        "webhook-endpoints": {"url": "https://example.com/hook"},
    }
    for path, body in bodies.items():
        ids = [(await made(api, f"/{path}", body))["id"] for _ in range(5)]
        first = (await api.get(f"/{path}", params={"limit": 2})).json()
        assert [each["id"] for each in first["data"]] == ids[:2:-1], path
        for each in first["data"]:
            assert (await api.delete(f"/{path}/{each['id']}")).status_code in (200, 204), path
        second = await api.get(f"/{path}", params={"limit": 2, "cursor": first["next_cursor"]})
        assert [each["id"] for each in second.json()["data"]] == ids[2:0:-1], path
        theirs = await api.get(
            f"/{path}", params={"cursor": first["next_cursor"]}, headers={"Authorization": f"Bearer {OTHER_KEY}"}
        )
        assert theirs.status_code == 422, path


# -- one object's life -------------------------------------------------------------------------------------------------


async def test_a_meter_is_created_read_listed_changed_and_archived(api: httpx.AsyncClient) -> None:
    created = await api.post("/meters", json=METER)
    assert created.status_code == 201
    assert created.headers["ETag"] == '"1"'
    meter = created.json()
    assert meter["id"].startswith("mtr_")
    assert len(meter["id"]) == 28
    assert METER.items() <= meter.items()
    assert meter["version"] == 1
    assert meter["created_at"].endswith("Z")
    one = f"/meters/{meter['id']}"
    assert (await api.get(one)).json() == meter
    assert meter in (await api.get("/meters")).json()["data"]

    changed = await api.patch(one, json={"name": "Calls"}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200
    assert changed.headers["ETag"] == '"2"'
    assert changed.json() == {**meter, "name": "Calls", "version": 2}
    unchanged = await api.patch(one, json={"name": "Calls", "event_name": METER["event_name"]})
    assert unchanged.json()["version"] == 2

    archived = await api.delete(one)
    assert archived.status_code == 200
    assert archived.json()["archived"] is True
    assert (await api.delete(one)).json() == archived.json()
    assert archived.json() in (await api.get("/meters?archived=true")).json()["data"]
    assert all(found["id"] != meter["id"] for found in (await api.get("/meters")).json()["data"])
    refused = await api.patch(one, json={"name": "Again"})
    assert (refused.status_code, refused.json()["code"]) == (409, "archived")


async def test_a_customer_has_the_id_that_events_name(api: httpx.AsyncClient) -> None:
    body = {
        "id": "acme/eu ünïcode",
        "name": "Acme",
        "email": "billing@acme.example",
        "address": {"line1": "1 Road", "city": "Graz", "country": "AT"},
        "tax_ids": [{"type": "eu_vat", "value": "ATU12345678"}],
        "payment_method": "pm_card_visa",
    }
    customer = await made(api, "/customers", body)
    assert body.items() <= {**customer, "address": {k: v for k, v in customer["address"].items() if v}}.items()
    again = await api.post("/customers", json={"id": "acme/eu ünïcode", "name": "Other"})
    assert (again.status_code, again.json()["code"]) == (409, "version_conflict")
    listed = await api.get("/customers", params={"email": "billing@acme.example"})
    assert [found["id"] for found in listed.json()["data"]] == ["acme/eu ünïcode"]
    one = "/customers/acme%2Feu%20%C3%BCn%C3%AFcode"
    cleared = await api.patch(one, json={"email": None, "address": {"city": "Linz"}})
    assert cleared.json()["email"] is None
    assert cleared.json()["address"]["line1"] is None
    assert (await api.get(one)).json()["address"]["city"] == "Linz"


async def test_decimals_come_back_as_they_were_spelled(api: httpx.AsyncClient, meter: dict[str, Any]) -> None:
    tiers = [{"up_to": "10000", "unit_amount": "0.002"}, {"up_to": None, "unit_amount": "0.000000000001"}]
    body = {
        "name": "Tiered",
        "currency": "eur",
        "prices": [{"model": "graduated", "meter_id": meter["id"], "tiers": tiers}],
    }
    product = await made(api, "/products", body)
    assert product["prices"][0]["tiers"] == tiers
    answer = await api.post(
        "/products",
        content=b'{"name":"N","currency":"eur","prices":[{"model":"flat_fee","amount":0.1000000000000000055}]}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.json()["errors"][0]["code"] == "decimal_places"  # read as the decimal that it spells, not as 0.1


async def test_lists_come_in_pages_newest_first(api: httpx.AsyncClient, meter: dict[str, Any]) -> None:
    rules = [
        await made(api, "/alert-rules", {"meter_id": meter["id"], "kind": "quantity", "threshold": str(n + 1)})
        for n in range(5)
    ]
    seen: list[str] = []
    cursor: str | None = None
    for expected in (2, 2, 1):
        params = {"limit": 2, "meter_id": meter["id"], **({"cursor": cursor} if cursor else {})}
        page = (await api.get("/alert-rules", params=params)).json()
        assert len(page["data"]) == expected
        seen += [rule["id"] for rule in page["data"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert seen == [rule["id"] for rule in reversed(rules)]


async def test_an_api_key_is_shown_once_and_works_until_it_is_revoked(
    api: httpx.AsyncClient, settings: Settings, store: CatalogStore
) -> None:
    created = await api.post(
        "/api-keys", json={"name": "reader", "scopes": ["read"]}, headers={"Idempotency-Key": "k1"}
    )
    key = created.json()
    assert created.headers["Cache-Control"] == "no-store"
    assert key["secret"].startswith("ubk_")
    assert key["secret"].endswith(key["hint"])
    assert "sha256" not in created.text
    again = await api.post("/api-keys", json={"name": "reader", "scopes": ["read"]}, headers={"Idempotency-Key": "k1"})
    assert (again.status_code, again.json()["code"]) == (409, "secret_not_recoverable")
    assert "secret" not in (await api.get(f"/api-keys/{key['id']}")).json()
    async with client_of(settings, store, key["secret"]) as reader:
        assert (await reader.get("/alerts")).status_code == 200
        assert (await reader.get("/meters")).status_code == 403
        assert (await api.delete(f"/api-keys/{key['id']}")).json()["archived"] is True
        assert (await reader.get("/alerts")).status_code == 401
    own = store.view.key_by_digest(secret_digest(KEYS[Scope.ADMIN]))
    assert own is not None
    assert (await api.delete(f"/api-keys/{own.id}")).json()["code"] == "own_key"


async def test_the_operators_key_sets_the_stripe_account(settings: Settings, store: CatalogStore) -> None:
    """An organization's own admin key could have its invoices charged in another tenant's account."""
    operators = settings.model_copy(update={"admin_key": SecretStr(KEYS[Scope.ADMIN])})
    async with client_of(operators, store) as api:
        changed = await api.patch("/organization", json={"stripe_account_id": "acct_1AbC"})
        assert (changed.status_code, changed.json()["stripe_account_id"]) == (200, "acct_1AbC")
    async with client_of(settings, store) as api:
        refused = await api.patch("/organization", json={"stripe_account_id": None})
        assert (refused.status_code, refused.json()["code"]) == (403, "operator_only")
        assert (await api.patch("/organization", json={"stripe_account_id": "acct_1AbC"})).status_code == 200
    async with client_of(operators, store) as api:
        assert (await api.patch("/organization", json={"stripe_account_id": None})).status_code == 200


async def test_what_was_stored_before_a_check_is_shown_and_bars_no_other_change(
    api: httpx.AsyncClient, store: CatalogStore
) -> None:
    old = {"stripe_customer_id": "cus_a_b", "payment_method": "../invoices/in_1/void#"}
    state = Customer.model_validate({"id": "old", "organization_id": "default", "created_at": 0, "name": "Old", **old})
    store.write(state, 0)
    assert old.items() <= (await api.get("/customers/old")).json().items()
    changed = await api.patch("/customers/old", json={"name": "New", "payment_method": old["payment_method"]})
    assert changed.status_code == 200, changed.text
    assert {**old, "name": "New"}.items() <= changed.json().items()
    refused = await api.patch("/customers/old", json={"payment_method": "../invoices/in_2/void#"})
    assert refused.status_code == 422
    mended = await api.patch("/customers/old", json={"payment_method": "pm_1AbC"})
    assert mended.json()["payment_method"] == "pm_1AbC"


async def test_the_organization_is_the_callers(api: httpx.AsyncClient) -> None:
    before = (await api.get("/organization")).json()
    changed = await api.patch(
        "/organization", json={"late_policy": "ignore"}, headers={"If-Match": f'"{before["version"]}"'}
    )
    assert changed.json() == {**before, "late_policy": "ignore", "version": before["version"] + 1}


async def test_a_dry_run_makes_no_rule(api: httpx.AsyncClient, meter: dict[str, Any]) -> None:
    body = {"meter_id": meter["id"], "kind": "quantity", "threshold": "7"}
    before = (await api.get("/alert-rules")).json()["data"]
    answer = await api.post("/alert-rules", params={"dry_run": "true"}, json=body)
    assert answer.status_code == 200
    assert (answer.json()["version"], answer.json()["alert_existing"], answer.json()["past_cycles"]) == (
        0,
        False,
        False,
    )
    assert answer.json()["customers_reached"] is None  # live totals are not read here
    refused = await api.post("/alert-rules", params={"dry_run": "true"}, json={**body, "meter_id": "mtr_none"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "meter_id")
    assert (await api.get("/alert-rules")).json()["data"] == before


# -- subscriptions -----------------------------------------------------------------------------------------------------


async def test_a_subscription_is_begun_changed_and_cancelled(
    api: httpx.AsyncClient, product: dict[str, Any], free_product: dict[str, Any]
) -> None:
    await made(api, "/customers", {"id": "subscriber", "name": "S"})
    body = {
        "customer_id": "subscriber",
        "product_id": product["id"],
        "started_at": "2026-01-31T00:00:00-05:00",
        "backdate": True,
    }
    subscription = await made(api, "/subscriptions", body)
    assert subscription["time_zone"] == "America/New_York"
    assert subscription["started_at"] == "2026-01-31T05:00:00Z"
    assert subscription["status"] == "active"
    assert subscription["ends_at"] is None
    one = f"/subscriptions/{subscription['id']}"
    cycle_end = subscription["current_cycle"]["end"]

    changed = (await api.post(one + "/change", json={"product_id": free_product["id"]})).json()
    assert changed["changes"] == [{"product_id": free_product["id"], "from": cycle_end}]
    assert changed["product_id"] == product["id"]
    back = (await api.post(one + "/change", json={"product_id": product["id"]})).json()
    assert back["changes"] == []

    ending = (await api.post(one + "/cancel", json={"at": "cycle_end"})).json()
    assert (ending["ends_at"], ending["status"]) == (cycle_end, "active")
    late = await api.post(one + "/change", json={"product_id": free_product["id"]})
    assert (late.status_code, late.json()["code"]) == (409, "already_ended")
    ended = (await api.post(one + "/cancel")).json()
    assert ended["status"] == "ended"
    assert ended["ends_at"] < cycle_end
    assert ended["current_cycle"] is None
    assert (await api.post(one + "/cancel", json={"at": "cycle_end"})).json() == ended
    assert (await api.delete(one)).json() == ended
    found = (await api.get("/subscriptions", params={"customer_id": "subscriber", "status": "ended"})).json()["data"]
    assert found == [ended]


async def test_a_meter_is_priced_once_for_a_customer_at_a_time(api: httpx.AsyncClient, product: dict[str, Any]) -> None:
    await made(api, "/customers", {"id": "twice", "name": "T"})
    body = {"customer_id": "twice", "product_id": product["id"]}
    first = await made(api, "/subscriptions", body)
    refused = await api.post("/subscriptions", json=body)
    assert refused.status_code == 409
    assert refused.json()["errors"][0]["code"] == "meter_priced_twice"
    assert refused.json()["errors"][0]["field"] == "product_id"
    await api.post(f"/subscriptions/{first['id']}/cancel")
    await made(api, "/subscriptions", body)


async def test_what_a_subscription_needs_is_not_archived(api: httpx.AsyncClient, free_product: dict[str, Any]) -> None:
    meter = await made(api, "/meters", {**METER, "event_name": "needed"})
    price = {"meter_id": meter["id"], "model": "per_unit", "unit_amount": "1"}
    product = await made(api, "/products", {"name": "P", "currency": "eur", "prices": [price]})
    await made(api, "/customers", {"id": "needed", "name": "N"})
    subscription = await made(api, "/subscriptions", {"customer_id": "needed", "product_id": product["id"]})
    for path in (f"/meters/{meter['id']}", "/customers/needed"):
        refused = await api.delete(path)
        assert (refused.status_code, refused.json()["code"]) == (409, "in_use"), path
    assert (await api.delete(f"/products/{product['id']}")).status_code == 200  # those that have it keep it
    refused = await api.post("/subscriptions", json={"customer_id": "needed", "product_id": product["id"]})
    assert refused.json()["errors"][0] == {
        "field": "product_id",
        "code": "unknown_reference",
        "message": f'there is no product with the ID "{product["id"]}"',
    }
    await api.post(f"/subscriptions/{subscription['id']}/cancel")
    for path in (f"/meters/{meter['id']}", "/customers/needed"):
        assert (await api.delete(path)).status_code == 200, path


# -- retries and races -------------------------------------------------------------------------------------------------


async def test_a_repeated_post_with_its_key_meets_what_the_first_made(
    api: httpx.AsyncClient, product: dict[str, Any]
) -> None:
    await made(api, "/customers", {"id": "idem", "name": "I"}, **{"Idempotency-Key": "c"})
    await made(api, "/customers", {"id": "idem", "name": "I"}, **{"Idempotency-Key": "c"})
    header = {"Idempotency-Key": "the same"}
    body = {"customer_id": "idem", "product_id": product["id"]}
    both = await asyncio.gather(
        made(api, "/subscriptions", body, **header), made(api, "/subscriptions", body, **header)
    )
    assert both[0] == both[1]
    assert await made(api, "/subscriptions", body, **header) == both[0]
    other = await api.post("/subscriptions", json={**body, "billing_interval": "year"}, headers=header)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    meters = [await made(api, "/meters", METER, **header) for _ in range(2)]
    assert meters[0] == meters[1]
    assert (await made(api, "/meters", METER))["id"] != meters[0]["id"]


async def test_of_two_writers_one_wins_and_the_other_is_told(
    api: httpx.AsyncClient, settings: Settings, store: CatalogStore, meter: dict[str, Any]
) -> None:
    one = f"/meters/{(await made(api, '/meters', METER))['id']}"
    with CatalogStore(settings) as second:
        async with client_of(settings, second) as other:
            answers = await asyncio.gather(
                *(
                    client.patch(one, json={"name": f"{n} {i}"})
                    for n in range(5)
                    for i, client in enumerate((api, other))
                )
            )
            statuses = [answer.status_code for answer in answers]
            assert statuses.count(200) >= 1
            assert statuses.count(409) >= 1
            assert set(statuses) == {200, 409}
            lost = next(answer for answer in answers if answer.status_code == 409)
            assert lost.json()["code"] == "version_conflict"
            while (await api.get(one)).json()["version"] < 1 + statuses.count(200):
                await asyncio.sleep(0.01)  # the other's last write is on its way to this view
            assert (await api.get(one)).json()["version"] == 1 + statuses.count(200)
    stale = await api.patch(one, json={"name": "Late"}, headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "version_mismatch")
    assert stale.headers["ETag"] == f'"{1 + statuses.count(200)}"'


# -- refusals ----------------------------------------------------------------------------------------------------------

PRICE = {"meter_id": "METER", "model": "per_unit", "unit_amount": "1"}
PRODUCT = {"name": "P", "currency": "eur", "prices": []}
RULE = {"meter_id": "METER", "kind": "quantity", "threshold": "80"}
SUBSCRIPTION = {"customer_id": "refused", "product_id": "PRODUCT"}


def tiers(*bounds: str | None) -> dict[str, Any]:
    return {"meter_id": "METER", "model": "volume", "tiers": [{"up_to": bound, "unit_amount": "1"} for bound in bounds]}


# method, path, body, status, field, code
REFUSALS: list[tuple[str, str, Any, int, str | None, str]] = [
    ("POST", "/meters", {}, 422, "name", "missing"),
    ("POST", "/meters", [], 422, None, "model_attributes_type"),
    ("POST", "/meters", {**METER, "name": ""}, 422, "name", "string_too_short"),
    ("POST", "/meters", {**METER, "name": "   "}, 422, "name", "string_too_short"),
    ("POST", "/meters", {**METER, "name": "x" * 257}, 422, "name", "string_too_long"),
    ("POST", "/meters", {**METER, "name": 5}, 422, "name", "string_type"),
    ("POST", "/meters", {**METER, "event_name": "a\0b"}, 422, "event_name", "string_pattern_mismatch"),
    ("POST", "/meters", {**METER, "aggregation": "mean"}, 422, "aggregation", "enum"),
    ("POST", "/meters", {**METER, "surprise": 1}, 422, "surprise", "extra_forbidden"),
    ("PATCH", "/meters/METER", {"event_name": "other"}, 422, "event_name", "immutable_field"),
    ("PATCH", "/meters/METER", {"aggregation": "sum"}, 422, "aggregation", "immutable_field"),
    ("PATCH", "/meters/METER", {"name": None}, 422, "name", "string_type"),
    ("PATCH", "/meters/METER", {"id": "mtr_1"}, 422, "id", "extra_forbidden"),
    ("GET", "/meters/mtr_none", None, 404, None, "not_found"),
    ("PATCH", "/meters/mtr_none", {}, 404, None, "not_found"),
    ("DELETE", "/meters/mtr_none", None, 404, None, "not_found"),
    ("PUT", "/meters/METER", {}, 405, None, "method_not_allowed"),
    ("GET", "/meters?limit=0", None, 422, "limit", "greater_than_equal"),
    ("GET", "/meters?limit=501", None, 422, "limit", "less_than_equal"),
    ("GET", "/meters?limit=x", None, 422, "limit", "int_parsing"),
    ("GET", "/meters?cursor=nonsense", None, 422, "cursor", "invalid_cursor"),
    ("GET", "/meters?cursor=%E2%82%AC", None, 422, "cursor", "invalid_cursor"),
    ("POST", "/products", {**PRODUCT, "currency": "EUR"}, 422, "currency", "currency_case"),
    ("POST", "/products", {**PRODUCT, "currency": "xxx"}, 422, "currency", "currency_unknown"),
    ("POST", "/products", {**PRODUCT, "prices": [{"model": "free"}]}, 422, "prices.0", "union_tag_invalid"),
    ("POST", "/products", {**PRODUCT, "prices": [{"amount": "1"}]}, 422, "prices.0", "union_tag_not_found"),
    ("POST", "/products", {**PRODUCT, "prices": [{**PRICE, "meter_id": "mtr_none"}]}, 422, "prices.0.meter_id", "unknown_reference"),
    ("POST", "/products", {**PRODUCT, "prices": [{**PRICE, "unit_amount": "-1"}]}, 422, "prices.0.unit_amount", "decimal_negative"),
    ("POST", "/products", {**PRODUCT, "prices": [{**PRICE, "unit_amount": "1e400"}]}, 422, "prices.0.unit_amount", "decimal_range"),
    ("POST", "/products", {**PRODUCT, "prices": [{**PRICE, "unit_amount": True}]}, 422, "prices.0.unit_amount", "decimal_type"),
    ("PATCH", "/organization", {"tax_mode": "rates"}, 422, "tax_rates", "tax_rates_missing"),
    ("PATCH", "/organization", {"tax_mode": "rates", "tax_rates": []}, 422, "tax_rates", "tax_rates_missing"),
    ("POST", "/products", {**PRODUCT, "prices": [PRICE, PRICE]}, 422, None, "meter_twice"),
    ("POST", "/products", {**PRODUCT, "prices": [tiers("10")]}, 422, "prices.0.tiers", "tiers_closed"),
    ("POST", "/products", {**PRODUCT, "prices": [tiers("10", "10", None)]}, 422, "prices.0.tiers", "tiers_order"),
    ("POST", "/products", {**PRODUCT, "prices": [tiers(None, None)]}, 422, "prices.0.tiers", "tiers_open"),
    ("POST", "/products", {**PRODUCT, "prices": [tiers("x", None)]}, 422, "prices.0.tiers.0.up_to", "decimal_parsing"),
    ("POST", "/products", {**PRODUCT, "benefits": ["a", "a"]}, 422, None, "benefit_twice"),
    ("PATCH", "/products/PRODUCT", {"prices": []}, 422, "prices", "immutable_field"),
    ("PATCH", "/products/PRODUCT", {"currency": "usd"}, 422, "currency", "immutable_field"),
    ("POST", "/customers", {"name": "N", "email": "none"}, 422, "email", "string_pattern_mismatch"),
    ("POST", "/customers", {"name": "N", "id": "a\0b"}, 422, "id", "string_pattern_mismatch"),
    ("POST", "/customers", {"name": "N", "address": {"country": "Austria"}}, 422, "address.country", "string_pattern_mismatch"),
    ("POST", "/customers", {"name": "N", "stripe_customer_id": "x"}, 422, "stripe_customer_id", "string_pattern_mismatch"),
    ("POST", "/customers", {"name": "N", "stripe_customer_id": "cus_1/../x"}, 422, "stripe_customer_id", "string_pattern_mismatch"),
    ("POST", "/customers", {"name": "N", "payment_method": "4242 4242 4242 4242"}, 422, "payment_method", "card_number"),
    ("POST", "/customers", {"name": "N", "payment_method": "../invoices/in_1/void#"}, 422, "payment_method", "payment_method_id"),
    ("PATCH", "/customers/refused", {"payment_method": "4242424242424242"}, 422, "payment_method", "card_number"),
    ("POST", "/customers", {"name": "N", "email": "a@b..c"}, 422, "email", "string_pattern_mismatch"),
    ("POST", "/customers", {"name": "N", "tax_ids": [{"type": "vat", "value": "DE123456789"}]}, 422, "tax_ids.0", "tax_id_type"),
    ("POST", "/customers", {"name": "N", "tax_ids": [{"type": "eu_vat", "value": "DE1"}]}, 422, "tax_ids.0", "tax_id_invalid"),
    ("PATCH", "/customers/refused", {"email": "none"}, 422, "email", "string_pattern_mismatch"),
    ("POST", "/alert-rules", {**RULE, "meter_id": "mtr_none"}, 422, "meter_id", "unknown_reference"),
    ("POST", "/alert-rules", {**RULE, "customer_id": "nobody"}, 422, "customer_id", "unknown_reference"),
    ("POST", "/alert-rules", {**RULE, "threshold": "0"}, 422, "threshold", "greater_than"),
    ("POST", "/alert-rules", {**RULE, "kind": "mood"}, 422, "kind", "enum"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "customer_id": "nobody"}, 422, "customer_id", "unknown_reference"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "product_id": "prod_none"}, 422, "product_id", "unknown_reference"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "started_at": "2026-01-01T00:00:00"}, 422, "started_at", "timestamp_missing_offset"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "started_at": "yesterday"}, 422, "started_at", "timestamp_invalid"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "started_at": "9999-12-31T23:59:59Z"}, 422, "started_at", "started_at_range"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "started_at": "1950-01-01T00:00:00Z"}, 422, "started_at", "started_at_range"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "billing_interval": "hour"}, 422, "billing_interval", "literal_error"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "collection_method": "cash"}, 422, "collection_method", "literal_error"),
    ("POST", "/subscriptions", {**SUBSCRIPTION, "customer_id": "refused", "collection_method": "send_invoice"}, 422, "collection_method", "customer_without_email"),
    ("POST", "/subscriptions/sub_none/cancel", {"at": "now"}, 404, None, "not_found"),
    ("POST", "/subscriptions/sub_none/cancel", {"at": "later"}, 422, "at", "literal_error"),
    ("POST", "/subscriptions/sub_none/change", {"product_id": "prod_none"}, 422, "product_id", "unknown_reference"),
    ("GET", "/subscriptions?status=asleep", None, 422, "status", "literal_error"),
    ("POST", "/api-keys", {"scopes": []}, 422, "scopes", "too_short"),
    ("POST", "/api-keys", {"scopes": ["root"]}, 422, "scopes.0", "enum"),
    ("PATCH", "/organization", {"time_zone": "Mars/Olympus"}, 422, "time_zone", "invalid"),
    ("PATCH", "/organization", {"grace_seconds": -1}, 422, "grace_seconds", "greater_than_equal"),
    ("PATCH", "/organization", {"stripe_account_id": 5}, 422, "stripe_account_id", "string_type"),
    ("PATCH", "/organization", {"stripe_account_id": "acct_1\u200b"}, 422, "stripe_account_id", "string_pattern_mismatch"),
    ("PATCH", "/organization", {"stripe_account_id": "acct_another"}, 403, "stripe_account_id", "operator_only"),
    ("PATCH", "/organization", {"tax_rates": ["19 %"]}, 422, "tax_rates.0", "string_pattern_mismatch"),
    ("GET", "/nothing", None, 404, None, "not_found"),
]  # fmt: skip


@pytest.fixture(scope="module")
async def refused_customer(api: httpx.AsyncClient) -> str:
    return (await made(api, "/customers", {"id": "refused", "name": "R"}))["id"]


def named(value: Any, meter: str, product: str) -> Any:
    """The value with the ids that the fixtures made in place of METER and PRODUCT."""
    match value:
        case dict():
            return {key: named(inner, meter, product) for key, inner in value.items()}
        case list():
            return [named(inner, meter, product) for inner in value]
        case str():
            return value.replace("METER", meter).replace("PRODUCT", product)
        case _:
            return value


@pytest.mark.parametrize(("method", "path", "body", "status", "field", "code"), REFUSALS)
async def test_a_refusal_names_what_is_wrong_and_changes_nothing(
    api: httpx.AsyncClient,
    store: CatalogStore,
    meter: dict[str, Any],
    free_product: dict[str, Any],
    refused_customer: str,
    method: str,
    path: str,
    body: Any,
    status: int,
    field: str | None,
    code: str,
) -> None:
    before = store.next_offset
    path, body = named((path), meter["id"], free_product["id"]), named(body, meter["id"], free_product["id"])
    answer = await api.request(method, path, json=body) if body is not None else await api.request(method, path)
    problem = answer.json()
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "status", "code", "detail"} <= problem.keys()
    found = {
        (error["field"], error["code"]) for error in problem.get("errors", [{"field": None, "code": problem["code"]}])
    }
    assert (field, code) in found
    assert store.next_offset == before


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{",                 "application/json",       400, "invalid_body"),
        (b"\xff\xfe",          "application/json",       400, "invalid_body"),
        (b'{"name": NaN}',     "application/json",       400, "invalid_body"),
        (b"[" * 100_000,       "application/json",       400, "invalid_body"),
        (b"",                  "application/json",       422, "invalid_request"),
        (b'{"name":"\\ud800"}',"application/json",       422, "invalid_request"),
        (b"name=x",            "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"{}",                "",                       415, "unsupported_media_type"),
        (b" " * 5_000_000,     "application/json",       413, "body_too_large"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_json_is_refused(
    api: httpx.AsyncClient, body: bytes, content_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await api.post("/meters", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_every_error_of_a_request_is_named(api: httpx.AsyncClient) -> None:
    answer = await api.post("/meters", json={"name": "", "aggregation": "mean", "more": 1})
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields == {"name", "event_name", "unit", "aggregation", "more"}


# -- who may ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        (None,                              401, "missing_key"),
        ("",                                401, "missing_key"),
        ("Bearer",                          401, "missing_key"),
        (f"Basic {KEYS[Scope.ADMIN]}",      401, "missing_key"),
        ("Bearer wrong",                    401, "invalid_key"),
        (f"Bearer {REVOKED_KEY}",           401, "invalid_key"),
        (f"Bearer {KEYS[Scope.READ]}",      403, "missing_scope"),
        (f"Bearer {KEYS[Scope.INGEST]}",    403, "missing_scope"),
        (f"bearer  {KEYS[Scope.ADMIN]} ",   200, ""),
    ],
    ids=["none", "empty", "no key", "basic", "unknown", "revoked", "read key", "ingest key", "loosely written"],
)  # fmt: skip
async def test_a_key_in_force_with_the_scope_is_needed(
    settings: Settings, store: CatalogStore, authorization: str | None, status: int, code: str
) -> None:
    async with client_of(settings, store, None) as client:
        headers = {"Authorization": authorization} if authorization is not None else {}
        for request in (client.get("/meters", headers=headers), client.post("/meters", content=b"{", headers=headers)):
            answer = await request
            if status == 200:
                assert answer.status_code in (200, 415)
            else:
                assert (answer.status_code, answer.json()["code"]) == (status, code)
                assert ("WWW-Authenticate" in answer.headers) == (status == 401)


async def test_nothing_of_another_organization_is_seen_or_changed(
    api: httpx.AsyncClient, settings: Settings, store: CatalogStore, meter: dict[str, Any], product: dict[str, Any]
) -> None:
    customer = await made(api, "/customers", {"id": "private", "name": "Private"})
    subscription = await made(api, "/subscriptions", {"customer_id": "private", "product_id": product["id"]})
    rule = await made(api, "/alert-rules", {"meter_id": meter["id"], "kind": "quantity", "threshold": "1"})
    key = await made(api, "/api-keys", {"scopes": ["read"]})
    owned = {
        "meters": meter, "products": product, "customers": customer, "subscriptions": subscription,
        "alert-rules": rule, "api-keys": key,
    }  # fmt: skip
    offset = store.next_offset
    async with client_of(settings, store, OTHER_KEY) as other:
        for kind, mine in owned.items():
            listed = (await other.get(f"/{kind}")).json()["data"]
            assert all(each["id"] != mine["id"] for each in listed)
            one = f"/{kind}/{mine['id']}"
            assert (await other.get(one)).status_code == 404
            assert (await other.delete(one)).status_code == 404
            if kind not in ("alert-rules", "api-keys"):
                assert (await other.patch(one, json={})).status_code == 404
        assert (await other.post(f"/subscriptions/{subscription['id']}/cancel")).status_code == 404
        refused = await other.post("/alert-rules", json={"meter_id": meter["id"], "kind": "quantity", "threshold": "1"})
        assert refused.status_code == 422
        price = {"meter_id": meter["id"], "model": "per_unit", "unit_amount": "1"}
        assert (
            await other.post("/products", json={"name": "P", "currency": "eur", "prices": [price]})
        ).status_code == 422
        body = {"customer_id": "private", "product_id": product["id"]}
        assert (await other.post("/subscriptions", json=body)).status_code == 422
        assert store.next_offset == offset
        same_name = await made(other, "/customers", {"id": "private", "name": "Theirs"})
        assert same_name["name"] == "Theirs"
    assert (await api.get("/customers/private")).json()["name"] == "Private"


# -- faults and documents -----------------------------------------------------------------------------------------------


async def test_an_unexpected_error_tells_nothing_of_itself(
    api: httpx.AsyncClient, store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(store.view, "all", broken)
    answer = await api.get("/meters")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


async def test_the_document_describes_every_route(api: httpx.AsyncClient) -> None:
    answer = await api.get("http://usage/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            content = operation["responses"]["401"]["content"]
            assert list(content) == ["application/problem+json"], (method, path)


async def test_a_subscription_keeps_the_zone_it_was_made_in(
    api: httpx.AsyncClient, store: CatalogStore, free_product: dict[str, Any]
) -> None:
    await made(api, "/customers", {"id": "zoned", "name": "Z"})
    subscription = await made(api, "/subscriptions", {"customer_id": "zoned", "product_id": free_product["id"]})
    await api.patch("/organization", json={"time_zone": "Europe/Vienna"})
    kept = store.view.get(Subscription, "default", subscription["id"])
    assert kept is not None
    assert kept.time_zone == "America/New_York"
    await api.patch("/organization", json={"time_zone": "America/New_York"})
