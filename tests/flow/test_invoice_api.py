"""Invoices by API, asked of billing's own engine: preview with late lines, simulation, events, verification, approval,
void and credit; the latter on pages too.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from dashboard.app import Dashboard
from ledger.invoice import StepKey
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Organization, Scope, new_secret, secret_digest
from tests.flow.billing import APRIL, MARCH, MAY, BillingWorld
from usage_billing.billing_adapter import BillingAdapter

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
    billing = BillingAdapter(world.settings, world.catalog, world.context.log)
    board = Dashboard(world.settings, world.catalog, billing)
    headers = key_of(world, DEFAULT_ORGANIZATION, Scope.ADMIN)
    yield TestClient(board.app, base_url="http://usage/api/v1", headers=headers)
    billing.close()


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


def possible(world: BillingWorld, invoice_id: str) -> tuple[bool, bool]:
    """Whether the page offers to approve it, and whether it says that someone has."""
    billing = BillingAdapter(world.settings, world.catalog, world.context.log)
    found = billing.possible(invoice_id)
    billing.close()
    return found.approve, found.approved


def test_approval_and_retry(world: BillingWorld, api: TestClient) -> None:
    assert api.patch("/organization", json={"invoice_approval": "manual"}).status_code == 200
    try:
        world.subscribe("wanted", PER_UNIT)
        world.use("wanted", "5", at=MARCH)
        world.close(APRIL)
        invoice_id = projected(world, "wanted", "computed")
        reader = key_of(world, DEFAULT_ORGANIZATION, Scope.READ)
        assert api.post(f"/invoices/{invoice_id}/approve", headers=reader).status_code == 403
        assert possible(world, invoice_id) == (True, False)
        assert api.post(f"/invoices/{invoice_id}/approve").json() == {"accepted": True}
        assert possible(world, invoice_id) == (False, True)
        assert api.post(f"/invoices/{invoice_id}/approve").json() == {"accepted": False}
        world.stripe.fault("error", "POST", "/v1/invoices", status=400, message="not now")
        assert not world.close(APRIL).ok
        assert api.post(f"/invoices/{invoice_id}/retry").json() == {"accepted": True}
        assert world.close(MAY).ok
        assert world.invoices("wanted")[0].state == "paid"
        assert api.post(f"/invoices/{invoice_id}/retry").json() == {"accepted": False}
    finally:
        api.patch("/organization", json={"invoice_approval": "automatic"})


# --- Void and credit --------------------------------------------------------------------------------------------------


def billed(world: BillingWorld, customer: str, state: str, **more: Any) -> str:
    """Id of an invoice over 10.00, in that state."""
    world.subscribe(customer, PER_UNIT, **more)
    world.use(customer, "10")
    world.close(APRIL)
    return projected(world, customer, state)


def problem(answer: Response) -> tuple[int, str, list[str | None]]:
    """(status, code, fields at fault) of a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    return body["status"], body["code"], [each["field"] for each in body.get("errors", ())]


def credit_notes(world: BillingWorld, invoice_id: str) -> list[dict[str, Any]]:
    known = world.context.log.state.get(invoice_id)
    assert known is not None
    assert known.stripe_invoice_id is not None
    return world.at_stripe("GET", "/v1/credit_notes", invoice=known.stripe_invoice_id)["data"]


def asked_by(world: BillingWorld, invoice_id: str, step: StepKey) -> str | None:
    known = world.context.log.state.get(invoice_id)
    assert known is not None
    return known.steps[step].by


def test_an_invoice_is_voided_and_made_anew(world: BillingWorld, api: TestClient) -> None:
    invoice_id = billed(world, "voided", "payment_failed", payment_method="pm_card_chargeCustomerFail")
    wanted = {"reason": "wrong card", "reissue": True}
    made = api.post(f"/invoices/{invoice_id}/void", json=wanted, headers={"Idempotency-Key": "v-1"})
    assert made.status_code == 200, made.text
    document = made.json()
    assert (document["invoice"]["id"], document["invoice"]["state"]) == (invoice_id, "void")
    assert (document["invoice"]["reason"], document["invoice"]["reissued"]) == ("wrong card", True)
    assert [each["status"] for each in world.stripe_invoices("voided")] == ["void"]
    assert (asked_by(world, invoice_id, ("void", 0)) or "").startswith("key_")
    size = world.ledger_size()
    assert api.post(f"/invoices/{invoice_id}/void", json=wanted).json() == document
    assert world.ledger_size() == size, "asking twice is asking once"
    world.close(APRIL)
    assert [(each.id, each.revision, each.state) for each in world.invoices("voided") if each.id != invoice_id] == [
        (document["reissued_as"], 2, "payment_failed")
    ]
    world.until(lambda: api.get(f"/invoices/{document['reissued_as']}").status_code == 200)
    left = api.post(f"/invoices/{document['reissued_as']}/void", json={"reason": "not wanted"}).json()
    assert (left["invoice"]["state"], left["reissued_as"]) == ("void", None)


def test_what_can_not_be_voided_says_why(world: BillingWorld, api: TestClient) -> None:
    invoice_id = billed(world, "unvoidable", "paid")
    path = f"/invoices/{invoice_id}/void"
    before = (world.changes(), world.ledger_size())
    assert problem(api.post(path, json={"reason": "late"})) == (409, "invoice_paid", [])
    assert problem(api.post(path, json={})) == (422, "invalid_request", ["reason"])
    assert problem(api.post(path, json={"reason": ""})) == (422, "invalid_request", ["reason"])
    assert problem(api.post(path, json={"reason": "x", "why": "y"})) == (422, "invalid_request", ["why"])
    long = {"Idempotency-Key": "k" * 256}
    assert problem(api.post(path, json={"reason": "x"}, headers=long))[:2] == (400, "invalid_idempotency_key")
    reader = key_of(world, DEFAULT_ORGANIZATION, Scope.READ)
    foreign = key_of(world, "other", Scope.ADMIN)
    for what, body in (("void", {"reason": "x"}), ("credit", {"reason": "x", "amount": "1"})):
        at = f"/invoices/{invoice_id}/{what}"
        assert problem(api.post(at, json=body, headers=reader))[0] == 403
        assert problem(api.post(at, json=body, headers=foreign))[:2] == (404, "not_found")
        assert problem(api.post(f"/invoices/inv_nobody/{what}", json=body))[:2] == (404, "not_found")
    assert (world.changes(), world.ledger_size()) == before


def test_a_credit_note_is_issued_once_for_its_key(world: BillingWorld, api: TestClient) -> None:
    invoice_id = billed(world, "refunded", "paid")
    path, key = f"/invoices/{invoice_id}/credit", {"Idempotency-Key": "c-1"}
    wanted = {"amount": "2.5", "reason": "outage", "refund": True}
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: api.post(path, json=wanted, headers=key), range(3)))
    # Who was first is answered; who came while that was going on may have to ask again.
    assert {each.status_code for each in answers} <= {201, 409, 503}, [each.text for each in answers]
    answer = api.post(path, json=wanted, headers=key)
    assert answer.status_code == 201, answer.text
    (note,) = credit_notes(world, invoice_id)
    made = answer.json()
    assert (made["credit_note"]["id"], made["credit_note"]["amount"]) == (note["id"], "2.50")
    assert (note["memo"], note["amount"]) == ("outage", 250)
    assert (asked_by(world, invoice_id, ("credit", 1)) or "").startswith("key_")
    assert [each["type"] for each in made["invoice"]["adjustments"]] == ["credit_note", "refund"]
    for other in ({"amount": "3"}, {"reason": "another"}, {"refund": False}):
        reused = api.post(path, json={**wanted, **other}, headers=key)
        assert problem(reused) == (422, "idempotency_key_reused", ["Idempotency-Key"])
    assert api.post(path, json={"amount": "1", "reason": "goodwill"}).status_code == 201
    assert api.post(path, json={"amount": "1", "reason": "goodwill"}).status_code == 201, "another one, without a key"
    assert sorted(each["amount"] for each in credit_notes(world, invoice_id)) == [100, 100, 250]
    too_much = api.post(path, json={"amount": "5.51", "reason": "all"}, headers={"Idempotency-Key": "c-2"})
    assert problem(too_much) == (422, "stripe_refused", [None])
    for amount in ("0", "1.005"):
        assert problem(api.post(path, json={"amount": amount, "reason": "x"})) == (422, "invalid_amount", ["amount"])
    for amount in ("-1", "NaN", "much"):
        assert problem(api.post(path, json={"amount": amount, "reason": "x"}))[2] == ["amount"]
    assert len(credit_notes(world, invoice_id)) == 3


def test_a_credit_that_pays_an_open_invoice_is_told_again_by_its_key(world: BillingWorld, api: TestClient) -> None:
    invoice_id = billed(world, "waived", "open", collection_method="send_invoice")
    path, key = f"/invoices/{invoice_id}/credit", {"Idempotency-Key": "w-1"}
    wanted = {"amount": "10", "reason": "waived"}
    refund = api.post(path, json={**wanted, "refund": True})
    assert problem(refund) == (409, "invoice_not_paid", [])
    made = api.post(path, json=wanted, headers=key)
    assert (made.status_code, made.json()["invoice"]["state"]) == (201, "paid")
    again = api.post(path, json=wanted, headers=key)
    assert (again.status_code, again.json()["credit_note"]) == (201, made.json()["credit_note"])
    assert len(credit_notes(world, invoice_id)) == 1


@pytest.mark.usefixtures("faults_end")
def test_an_unknown_outcome_is_told_and_settled_by_the_same_key(world: BillingWorld, api: TestClient) -> None:
    invoice_id = billed(world, "unknown", "paid")
    path, key = f"/invoices/{invoice_id}/credit", {"Idempotency-Key": "u-1"}
    wanted = {"amount": "4", "reason": "outage"}
    world.stripe.fault("500_after", "POST", "/v1/credit_notes")
    world.stripe.fault("500_before", "GET", "/v1/credit_notes", times=0)
    away = api.post(path, json=wanted, headers=key)
    assert problem(away)[:2] == (503, "unavailable")
    assert away.headers["Retry-After"]
    world.stripe.control("DELETE", "faults")
    other = api.post(path, json=wanted)
    assert problem(other) == (409, "credit_note_unfinished", []), "another wish does not overtake it"
    assert api.post(path, json=wanted, headers=key).status_code == 201
    assert [each["amount"] for each in credit_notes(world, invoice_id)] == [400]


# --- Pages ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(world: BillingWorld) -> Iterator[TestClient]:
    """A browser that is signed in."""
    billing = BillingAdapter(world.settings, world.catalog, world.context.log)
    board = Dashboard(world.settings, world.catalog, billing)
    client = TestClient(board.app, base_url="http://usage")
    key = key_of(world, DEFAULT_ORGANIZATION, Scope.ADMIN)["Authorization"].removeprefix("Bearer ")
    assert client.post("/sign-in", data={"key": key}, follow_redirects=False).status_code == 303
    yield client
    billing.close()


def hidden(page: str) -> dict[str, str]:
    return dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', page))


def buttons(pages: TestClient, invoice_id: str) -> list[str]:
    page = pages.get(f"/invoices/{invoice_id}").text
    return [what for what in ("void", "credit") if f'href="/invoices/{invoice_id}/{what}"' in page]


def test_an_invoice_is_voided_on_its_page(world: BillingWorld, pages: TestClient) -> None:
    invoice_id = billed(world, "page_voided", "payment_failed", payment_method="pm_card_chargeCustomerFail")
    assert buttons(pages, invoice_id) == ["void", "credit"]
    path = f"/invoices/{invoice_id}/void"
    form = pages.get(path)
    assert form.status_code == 200
    assert "€10.00" in form.text
    assert pages.post(path, data={"reason": "x"}).status_code == 403, "without its token"
    assert world.invoices("page_voided")[0].state == "payment_failed"
    empty = pages.post(path, data=hidden(form.text))
    assert (empty.status_code, 'aria-invalid="true"' in empty.text) == (422, True)
    done = pages.post(path, data={**hidden(form.text), "reason": "<wrong> card", "reissue": "on"})
    assert done.status_code == 200
    assert "A corrected one follows" in done.text
    assert "&lt;wrong&gt; card" in done.text
    (invoice,) = world.invoices("page_voided")
    assert (invoice.state, invoice.reissued) == ("void", True)
    projected(world, "page_voided", "void")
    assert buttons(pages, invoice_id) == []
    for what in ("void", "credit"):
        assert pages.get(f"/invoices/{invoice_id}/{what}").status_code == 409
    late = pages.post(f"/invoices/{invoice_id}/credit", data={**hidden(form.text), "reason": "x", "amount": "1"})
    assert (late.status_code, "only what was issued can be credited" in late.text) == (409, True)


def test_an_invoice_is_credited_on_its_page_once(world: BillingWorld, pages: TestClient) -> None:
    invoice_id = billed(world, "page_credited", "paid")
    assert buttons(pages, invoice_id) == ["credit"]
    path = f"/invoices/{invoice_id}/credit"
    form = pages.get(path)
    assert "Up to €10.00" in form.text
    wrong = pages.post(path, data={**hidden(form.text), "amount": "10.01", "reason": "all"})
    assert (wrong.status_code, "Stripe refused it" in wrong.text) == (422, True)
    assert 'value="10.01"' in wrong.text
    sent = {**hidden(wrong.text), "amount": "10", "reason": "all", "refund": "on"}
    pages.post(path, data=sent)
    done = pages.post(path, data=sent)  # a double click
    assert (done.status_code, "for €10.00 issued" in done.text) == (200, True), done.text
    assert "Adjustments" in done.text
    assert [each["amount"] for each in credit_notes(world, invoice_id)] == [1000]
    assert buttons(pages, invoice_id) == [], "nothing is left to credit"


def test_another_organization_sees_no_form(world: BillingWorld, pages: TestClient) -> None:
    invoice_id = billed(world, "page_secret", "paid")
    other = TestClient(pages.app, base_url="http://usage")
    key = key_of(world, "other", Scope.ADMIN)["Authorization"].removeprefix("Bearer ")
    assert other.post("/sign-in", data={"key": key}, follow_redirects=False).status_code == 303
    token = hidden(other.get("/meters/new").text)
    for what in ("void", "credit"):
        assert other.get(f"/invoices/{invoice_id}/{what}").status_code == 404
        sent = {**token, "reason": "x", "amount": "1"}
        assert other.post(f"/invoices/{invoice_id}/{what}", data=sent).status_code == 404
    assert credit_notes(world, invoice_id) == []
