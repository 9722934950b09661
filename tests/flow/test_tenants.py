"""Every route, of the API and of the pages, asked with another organization's key: nothing is given, nothing changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from catalog.record import MODELS
from catalog.store import CatalogStore
from dashboard.pages import routers
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.organization import ApiKey, Organization, Scope, new_secret, secret_digest
from tests.flow.billing import APRIL
from tests.flow.pipe import ADMIN, Pipe, event
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)
OTHER = new_secret()
ENDLESS = ("/api/v1/stream", "/live/stream")
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def pipe(kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    with Pipe(kafka, clickhouse, tmp_path_factory.mktemp("tenants"), webhook_private_targets=True) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def ids(pipe: Pipe) -> dict[str, str]:
    """One of everything that the first organization has, by what the API calls it."""
    world = pipe.world
    world.catalog.write(Organization(id="other", organization_id="other", created_at=0, name="Other"), 0)
    digest = secret_digest(OTHER)
    key = ApiKey(id="key_other", organization_id="other", scopes=(Scope.ADMIN,), sha256=digest, hint="0", created_at=0)
    world.catalog.write(key, 0)
    subscription = world.subscribe("secretive", {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"})

    def made(path: str, **body: Any) -> str:
        answer = pipe.http.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    endpoint = made("webhook-endpoints", url="http://127.0.0.1:9/secretive-hook")
    rule = made("alert-rules", meter_id="mtr_calls", kind="quantity", threshold="1", past_cycles=True)
    pipe.accepted(event("secretive", 17, event_id="secretive-event", properties={"region": "secretive-region"}))
    pipe.everywhere("secretive", "17")
    assert world.close(APRIL).ok
    listed = lambda path: pipe.http.get(f"/api/v1/{path}").json()["data"]  # noqa: E731
    until(lambda: listed("webhook-deliveries") and listed("invoices") and listed("orders"))
    return {
        "customer": "secretive",
        "meter": "mtr_calls",
        "product": subscription.product_id,
        "subscription": subscription.id,
        "rule": rule,
        "endpoint": endpoint,
        "delivery": listed("webhook-deliveries")[0]["id"],
        "alert": listed("alerts")[0]["id"],
        "invoice": listed("invoices")[0]["id"],
        "order": listed("orders")[0]["id"],
        "key": next(each["id"] for each in listed("api-keys")),
    }


def leaked(answer: httpx.Response, sent: str, ids: dict[str, str]) -> list[str]:
    """What of the other organization is in the answer, besides what was sent."""
    texts = {*ids.values(), "secretive", "secretive-region"}
    return [text for text in texts if text in answer.text and text not in sent]


def everything(store: CatalogStore) -> list[Any]:
    return [state for model in MODELS.values() for state in store.view.all(model, "default")]


def body_of(document: dict[str, Any], operation: dict[str, Any], ids: dict[str, str]) -> Any:
    """The operation's example, with the other organization's ids in it."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    schema = content["schema"]
    refs = [each["$ref"].rsplit("/", 1)[-1] for each in (schema, *schema.get("anyOf", ())) if "$ref" in each]
    example = content.get("example") or document["components"]["schemas"][refs[0]]["examples"][0]
    text = json.dumps(example)
    for pattern, kind in (("mtr", "meter"), ("prod", "product"), ("sub", "subscription"), ("cus", "customer")):
        text = re.sub(rf'"{pattern}_[0-9a-f]+"', json.dumps(ids[kind]), text)
    body = json.loads(text)
    return {**body, "id": "cus_own"} if refs == ["CustomerSpec"] else body


def test_the_api_gives_another_organization_nothing(pipe: Pipe, ids: dict[str, str]) -> None:
    before = everything(pipe.world.catalog)
    document = pipe.http.get("/openapi.json").json()
    query = {
        "customer_id": ids["customer"], "meter_id": ids["meter"], "endpoint_id": ids["endpoint"], "cycle": None,
        "alert_id": ids["alert"], "rule_id": ids["rule"], "subscription_id": ids["subscription"],
        "event_id": "secretive-event", "from": "2026-01-01T00:00:00Z", "to": "2026-06-01T00:00:00Z",
    }  # fmt: skip
    asked = 0
    with httpx.Client(base_url=pipe.serve.address, headers={"Authorization": f"Bearer {OTHER}"}) as http:
        for path, operations in document["paths"].items():
            if path in ENDLESS:
                continue
            for method, operation in operations.items():
                known = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
                filters = {name: value for name, value in query.items() if name in known and value is not None}
                for id_ in ids.values() if "{" in path else ("",):
                    for params in (filters, {}) if method == "get" else ({},):
                        address = re.sub(r"\{[^}]+\}", id_, path)
                        body = body_of(document, operation, ids)
                        answer = http.request(method, address, params=params, json=body)
                        sent = f"{address} {json.dumps(body)} {params}"
                        asked += 1
                        assert answer.status_code < 500, (method, address, answer.text)
                        assert leaked(answer, sent, ids) == [], (method, address, params)
                        if "{" in path:
                            assert answer.status_code in (404, 422), (method, address, answer.text)
    assert asked > 300
    assert everything(pipe.world.catalog) == before


def test_the_pages_give_another_organization_nothing(pipe: Pipe, ids: dict[str, str]) -> None:
    before = everything(pipe.world.catalog)
    routes = [route for router in routers() for route in router.routes if isinstance(route, APIRoute)]
    signed = httpx.post(f"{pipe.serve.address}/sign-in", data={"key": OTHER})
    asked = 0
    with httpx.Client(base_url=pipe.serve.address, cookies=signed.cookies, headers=HTML, timeout=30) as http:
        token = re.search(r'name="csrf_token" value="([^"]+)"', http.get("/meters/new").text)
        assert token is not None
        for route in routes:
            if route.path in ENDLESS or route.path in ("/sign-out", "/sign-in"):
                continue
            for id_ in ids.values() if "{" in route.path else ("",):
                address = re.sub(r"\{[^}]+\}", id_, route.path)
                for method in route.methods or ():
                    fields = {"customer_id": ids["customer"], "meter_id": ids["meter"], "event_id": "secretive-event"}
                    actions = {"csrf_token": token[1], "action": "archive", "at": "now"}
                    answer = http.request(
                        method, address, params=fields if method == "GET" else None,
                        data={**fields, **actions} if method == "POST" else None,
                    )  # fmt: skip
                    asked += 1
                    assert answer.status_code < 500, (method, address, answer.text)
                    assert leaked(answer, f"{address} {fields}", ids) == [], (method, address)
    assert asked > 60
    assert everything(pipe.world.catalog) == before
    assert httpx.get(f"{pipe.serve.address}/", headers=HTML).status_code == 303
    assert pipe.http.get("/api/v1/organization", headers={"Authorization": f"Bearer {ADMIN}"}).json()["id"] == "default"
