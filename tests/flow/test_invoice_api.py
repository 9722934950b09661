"""Invoices by API, asked of billing's own engine: preview with late lines, simulation, events, verification, approval."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from dashboard.app import Dashboard
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Organization, Scope, new_secret, secret_digest
from tests.flow.billing import APRIL, MARCH, MAY, BillingWorld
from usage_billing.invoice_desk import LedgerDesk

pytestmark = pytest.mark.timeout(300)
PER_UNIT = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}


@pytest.fixture(scope="module")
def world(world: BillingWorld) -> BillingWorld:
    """With an organization that may see none of it."""
    world.catalog.write(Organization(id="other", organization_id="other", created_at=0), 0)
    return world


def key_of(world: BillingWorld, organization_id: str, scope: Scope) -> dict[str, str]:
    secret = new_secret()
    key = ApiKey(
        id=f"key_{secret[-8:]}",
        organization_id=organization_id,
        scopes=(scope,),
        sha256=secret_digest(secret),
        hint=secret[-4:],
        created_at=0,
    )
    world.catalog.write(key, 0)
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture(scope="module")
def api(world: BillingWorld) -> Iterator[TestClient]:
    desk = LedgerDesk(world.settings, world.catalog, world.stage.log)
    board = Dashboard(world.settings, world.catalog, desk)
    headers = key_of(world, DEFAULT_ORGANIZATION, Scope.ADMIN)
    yield TestClient(board.app, base_url="http://usage/api/v1", headers=headers)
    desk.close()


def projected(world: BillingWorld, customer: str, state: str) -> str:
    """Id of the customer's newest invoice, once the tables have it in that state."""
    invoice_id = world.invoices(customer)[-1].id
    world.until(lambda: world.query(f"SELECT state FROM invoices WHERE id = '{invoice_id}'") == [(state,)])
    return invoice_id


def test_a_preview_has_the_late_lines(world: BillingWorld, api: TestClient) -> None:
    world.subscribe("late", PER_UNIT)
    world.use("late", "100")
    assert world.close(APRIL).ok
    world.use("late", "20")
    world.use("late", "3", at=APRIL)

    def total() -> str:
        (found,) = api.get("/invoices/preview", params={"customer_id": "late", "at": "2026-04-10T00:00:00Z"}).json()[
            "data"
        ]
        return found["total"]

    world.until(lambda: total() == "23.00")


def test_events_and_verification(world: BillingWorld, api: TestClient) -> None:
    world.subscribe("told", PER_UNIT, {"model": "flat_fee", "amount": "1"})
    world.use("told", "1.5", "2", identities=["c:a", "c:b"])
    assert world.close(APRIL).ok
    invoice_id = projected(world, "told", "paid")
    answer = api.get(f"/invoices/{invoice_id}/events")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["line"], row["event_id"], row["value"]) for row in rows] == [("0", "a", "1.5"), ("0", "b", "2")]
    assert len(api.get(f"/invoices/{invoice_id}/events", params={"line": 1}).text.splitlines()) == 1
    assert api.get(f"/invoices/{invoice_id}/events", params={"line": 2}).json()["errors"][0]["field"] == "line"
    assert api.get(f"/invoices/{invoice_id}/verify").json()["ok"] is True
    for path in ("events", "verify"):
        assert api.get(f"/invoices/inv_nobody/{path}").status_code == 404
        foreign = key_of(world, "other", Scope.ADMIN)
        assert api.get(f"/invoices/{invoice_id}/{path}", headers=foreign).status_code == 404


def test_a_simulation(world: BillingWorld, api: TestClient) -> None:
    world.subscribe("asked", PER_UNIT, ends_at=APRIL)
    world.use("asked", "100")
    assert world.close(APRIL).ok
    spec = {"name": "Half", "currency": "eur", "prices": [{**PER_UNIT, "unit_amount": "0.5"}]}
    body = {"customer_id": "asked", "product": spec, "from": "2026-03-01T00:00:00Z", "to": "2026-06-01T00:00:00Z"}
    (cycle,) = api.post("/simulations", json=body).json()["data"]
    assert (cycle["total"], cycle["billed"], cycle["difference"]) == ("50.00", "100.00", "-50.00")
    assert api.post("/simulations", json={**body, "product_id": "prod_asked"}).status_code == 422
    assert api.post("/simulations", json={**body, "customer_id": "nobody"}).status_code == 404
    unknown = {**spec, "prices": [{**PER_UNIT, "meter_id": "mtr_none"}]}
    assert api.post("/simulations", json={**body, "product": unknown}).json()["errors"][0]["field"] == "product"


def test_approval_and_retry(world: BillingWorld, api: TestClient) -> None:
    assert api.patch("/organization", json={"invoice_approval": "manual"}).status_code == 200
    try:
        world.subscribe("wanted", PER_UNIT)
        world.use("wanted", "5", at=MARCH)
        world.close(APRIL)
        invoice_id = projected(world, "wanted", "computed")
        reader = key_of(world, DEFAULT_ORGANIZATION, Scope.READ)
        assert api.post(f"/invoices/{invoice_id}/approve", headers=reader).status_code == 403
        assert api.post(f"/invoices/{invoice_id}/approve").json() == {"accepted": True}
        assert api.post(f"/invoices/{invoice_id}/approve").json() == {"accepted": False}
        world.stripe.fault("error", "POST", "/v1/invoices", status=400, message="not now")
        assert not world.close(APRIL).ok
        assert api.post(f"/invoices/{invoice_id}/retry").json() == {"accepted": True}
        assert world.close(MAY).ok
        assert world.invoices("wanted")[0].state == "paid"
        assert api.post(f"/invoices/{invoice_id}/retry").json() == {"accepted": False}
    finally:
        api.patch("/organization", json={"invoice_approval": "automatic"})
