"""Who is charged: wrong ids, deleted customers, another Stripe, settings corrected before anything is at Stripe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from stripe_standin.process import StripeStandin

from billing_job.context import BillingContext
from billing_job.invoice.verify import verify_invoices
from dashboard.app import Dashboard
from ledger.invoice import Invoice
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.settings import Settings
from tests.flow.billing import MAY, BillingWorld
from tests.standin import stripe_standin
from usage_billing.billing_adapter import BillingAdapter

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("faults_end")]

FLAT = {"model": "flat_fee", "amount": "49.00"}


@pytest.fixture(scope="module")
def api(world: BillingWorld) -> Iterator[TestClient]:
    secret = new_secret()
    key = {"id": "key_customers", "organization_id": DEFAULT_ORGANIZATION, "scopes": (Scope.ADMIN,), "created_at": 0}
    world.catalog.write(ApiKey.model_validate({**key, "sha256": secret_digest(secret), "hint": secret[-4:]}), 0)
    billing = BillingAdapter(world.settings, world.catalog, world.context.log)
    headers = {"Authorization": f"Bearer {secret}"}
    yield TestClient(
        Dashboard(world.settings, world.catalog, billing).app, base_url="http://usage/api/v1", headers=headers
    )
    billing.close()


@pytest.fixture
def own_account(world: BillingWorld) -> Iterator[None]:
    """The organization's settings come back."""
    yield
    organization(world, tax_mode="none", tax_rates=(), stripe_account_id=None)


def only(world: BillingWorld, name: str) -> Invoice:
    (invoice,) = world.invoices(name)
    return invoice


def change(world: BillingWorld, name: str, **changes: Any) -> None:
    known = world.catalog.view.get(Customer, DEFAULT_ORGANIZATION, name)
    assert known is not None
    version = world.catalog.view.version(Customer, DEFAULT_ORGANIZATION, name)
    world.catalog.write(known.model_copy(update=changes), version)


def organization(world: BillingWorld, **changes: Any) -> None:
    known = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert known is not None
    version = world.catalog.view.version(Organization, DEFAULT_ORGANIZATION, DEFAULT_ORGANIZATION)
    world.catalog.write(known.model_copy(update=changes), version)


def made_at_stripe(world: BillingWorld, name: str, **metadata: str) -> str:
    """A customer at Stripe with a card that somebody made there."""
    more = {f"metadata[{key}]": value for key, value in metadata.items()}
    made = world.at_stripe("POST", "/v1/customers", name=name, email="a@example.com", **more)["id"]
    method = world.at_stripe("POST", "/v1/payment_methods/pm_card_visa/attach", customer=made)["id"]
    world.at_stripe("POST", f"/v1/customers/{made}", **{"invoice_settings[default_payment_method]": method})
    return made


def charged(world: BillingWorld, name: str) -> str:
    """Id at Stripe of the customer that the newest invoice was made for."""
    found = world.stripe_invoices(name)
    return max(found, key=lambda each: each["created"])["customer"]


# --- Wrong ids --------------------------------------------------------------------------------------------------------


def test_a_wrong_stripe_customer_id_is_refused_when_it_is_given(world: BillingWorld, api: TestClient) -> None:
    """It was 201, and every invoice stayed `computed` for ever."""
    taken = made_at_stripe(world, "taken", usage_organization_id=DEFAULT_ORGANIZATION, usage_customer_id="another")
    foreign = made_at_stripe(world, "foreign", usage_organization_id="org_2", usage_customer_id="secret name")
    deleted = made_at_stripe(world, "deleted")
    world.at_stripe("DELETE", f"/v1/customers/{deleted}")
    free = made_at_stripe(world, "free")
    for given, code, word in (
        ("cus_doesnotexist", "stripe_customer_unknown", "cus_doesnotexist"),
        (deleted, "stripe_customer_unknown", "deleted"),
        (taken, "stripe_customer_taken", "another"),
        (foreign, "stripe_customer_taken", "another organization"),
    ):
        body = {"id": "wrong", "name": "Example", "stripe_customer_id": given}
        refused = api.post("/customers", json=body)
        (error,) = refused.json()["errors"]
        assert (refused.status_code, error["field"], error["code"]) == (422, "stripe_customer_id", code)
        assert word in error["message"]
        assert "secret name" not in refused.text
        assert world.catalog.view.get(Customer, DEFAULT_ORGANIZATION, "wrong") is None
    assert api.post("/customers", json={"id": "right", "name": "R", "stripe_customer_id": free}).status_code == 201
    assert api.patch("/customers/right", json={"stripe_customer_id": taken}).status_code == 422
    assert api.get("/customers/right").json()["stripe_customer_id"] == free


def test_while_stripe_is_away_no_id_is_taken(world: BillingWorld, api: TestClient) -> None:
    world.stripe.fault("500_before", "GET", "/v1/customers/*", times=0)
    body = {"id": "unasked", "name": "U", "stripe_customer_id": "cus_1"}
    refused = api.post("/customers", json=body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert world.catalog.view.get(Customer, DEFAULT_ORGANIZATION, "unasked") is None


def test_a_corrected_id_reaches_what_is_not_at_stripe_yet(world: BillingWorld, api: TestClient) -> None:
    """By a catalog from before ids were checked: only the log said that another id was in force."""
    world.subscribe("mistyped", FLAT, stripe_customer_id="cus_doesnotexist", payment_method=None)
    assert not world.close().ok
    invoice = only(world, "mistyped")
    assert (invoice.state, invoice.stripe_invoice_id) == ("computed", None)
    assert "No such customer: 'cus_doesnotexist'" in (invoice.reason or "")
    world.until(lambda: "No such customer" in (api.get(f"/invoices/{invoice.id}").json().get("reason") or ""))
    right = made_at_stripe(world, "right one")
    assert api.patch("/customers/mistyped", json={"stripe_customer_id": right}).status_code == 200
    assert world.close(scheduled=True).ok, "the correction ends the rest"
    invoice = only(world, "mistyped")
    assert (invoice.state, invoice.reason, charged(world, "mistyped")) == ("paid", None, right)


def test_a_link_may_be_replaced_and_a_draft_follows(world: BillingWorld) -> None:
    """A wrong id that was another customer's was charged twice, in silence, also after the correction."""
    wrong, right = made_at_stripe(world, "wrong"), made_at_stripe(world, "right")
    world.subscribe("relinked", FLAT, stripe_customer_id=wrong, payment_method=None)
    world.stripe.fault("error", "POST", "/v1/invoices/*/finalize", message="not now", status=400)
    assert not world.close().ok
    assert only(world, "relinked").state == "draft"
    change(world, "relinked", stripe_customer_id=right)
    world.stripe.control("DELETE", "faults")
    assert world.close().ok
    assert (only(world, "relinked").state, charged(world, "relinked")) == ("paid", right)
    assert world.at_stripe("GET", "/v1/invoices", customer=wrong)["data"] == []
    assert world.close(MAY).ok
    assert {each["customer"] for each in world.stripe_invoices("relinked")} == {right}


def test_a_customer_that_was_deleted_at_stripe_is_made_again(world: BillingWorld) -> None:
    world.subscribe("deleted_there", FLAT)
    assert world.close().ok
    first = charged(world, "deleted_there")
    world.at_stripe("DELETE", f"/v1/customers/{first}")
    report = world.close(MAY)
    assert report.ok, report.problems
    assert [each.state for each in world.invoices("deleted_there")] == ["paid", "paid"]
    assert charged(world, "deleted_there") != first


def test_a_given_customer_that_was_deleted_is_the_reason_until_it_is_replaced(world: BillingWorld) -> None:
    given = made_at_stripe(world, "given")
    world.subscribe("given_deleted", FLAT, stripe_customer_id=given, payment_method=None)
    assert world.close().ok
    world.at_stripe("DELETE", f"/v1/customers/{given}")
    assert not world.close(MAY).ok
    assert "No such customer" in (world.invoices("given_deleted")[1].reason or "")
    change(world, "given_deleted", stripe_customer_id=made_at_stripe(world, "next"))
    assert world.close(MAY).ok


def test_what_stripe_refuses_of_a_customer_stands_on_the_invoice(world: BillingWorld, api: TestClient) -> None:
    """A tax id from before it was checked: `reason` was null, and only the terminal of that close said why."""
    world.subscribe("bad_tax_id", FLAT, tax_ids=[{"type": "eu_vat", "value": "DE1"}])
    assert not world.close().ok
    invoice = only(world, "bad_tax_id")
    assert invoice.state == "computed"
    assert invoice.reason is not None
    assert invoice.reason.startswith("tax_id_invalid")
    size = world.ledger_size()
    assert not world.close().ok
    assert only(world, "bad_tax_id").reason == invoice.reason
    assert sum(world.ledger_size().values()) - sum(size.values()) <= 3, "the same news is not written again and again"
    tax_ids = [{"type": "eu_vat", "value": "DE123456789"}]
    assert api.patch("/customers/bad_tax_id", json={"tax_ids": tax_ids}).status_code == 200
    assert world.close(scheduled=True).ok
    assert (only(world, "bad_tax_id").state, only(world, "bad_tax_id").reason) == ("paid", None)


# --- Cards that are given while someone is there ----------------------------------------------------------------------


def test_a_new_card_reaches_stripe_when_it_is_given(world: BillingWorld, api: TestClient) -> None:
    world.subscribe("brings_card", FLAT, payment_method="pm_card_chargeDeclined")
    assert world.close().ok
    assert only(world, "brings_card").state == "open"
    refused = api.patch("/customers/brings_card", json={"payment_method": "pm_card_chargeDeclinedExpiredCard"})
    (error,) = refused.json()["errors"]
    assert (refused.status_code, error["field"], error["code"]) == (422, "payment_method", "payment_method_refused")
    assert "expired" in error["message"]
    assert api.patch("/customers/brings_card", json={"payment_method": "pm_card_visa"}).status_code == 200
    (at_stripe,) = world.stripe_invoices("brings_card")
    methods = world.at_stripe("GET", f"/v1/customers/{at_stripe['customer']}/payment_methods")["data"]
    assert len(methods) == 1
    assert world.close(scheduled=True).ok
    assert only(world, "brings_card").state == "paid"
    assert api.patch("/customers/brings_card", json={"payment_method": None}).status_code == 200
    assert world.at_stripe("GET", f"/v1/customers/{at_stripe['customer']}/payment_methods")["data"] == []


def test_a_retry_is_taken_for_an_open_invoice(world: BillingWorld, api: TestClient) -> None:
    """It answered `accepted: false`."""
    world.subscribe("asks_again", FLAT, payment_method="pm_card_chargeCustomerFail")
    assert world.close().ok
    invoice = only(world, "asks_again")
    world.until(lambda: api.get(f"/invoices/{invoice.id}").status_code == 200)
    assert api.post(f"/invoices/{invoice.id}/retry").json() == {"accepted": True}
    assert world.close(scheduled=True).ok
    counted = world.stripe.charges()[invoice.stripe_invoice_id or ""]
    assert counted["failed"] == 2


# --- Settings that an invoice fixes -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_account")
def test_a_corrected_setting_reaches_what_is_not_at_stripe_yet(world: BillingWorld) -> None:
    """Account, tax rates and collection were fixed with the invoice: a typo was there for ever."""
    rate = world.at_stripe("POST", "/v1/tax_rates", display_name="VAT", percentage="19", inclusive="false")["id"]
    organization(world, stripe_account_id="acct_\u200bwrong", tax_mode="rates", tax_rates=("txr_typo",))
    world.subscribe("corrected", FLAT)
    world.subscribe("corrected_neighbour", FLAT)
    report = world.close()
    assert not report.ok
    before = only(world, "corrected")
    assert before.fixed is not None
    assert (before.state, before.reason) == (
        "computed", "account_invalid: 'acct_\\u200bwrong' is no id of a Stripe account"
    )  # fmt: skip
    organization(world, stripe_account_id=None)
    assert not world.close(scheduled=True).ok
    assert "No such tax rate: 'txr_typo'" in (only(world, "corrected").reason or "")
    organization(world, tax_rates=(rate,))
    assert world.close(scheduled=True).ok
    after = only(world, "corrected")
    assert after.fixed is not None
    assert (after.state, after.reason, after.document()["tax"]) == ("paid", None, "9.31")
    assert (after.fixed.lines, after.fixed.watermark) == (before.fixed.lines, before.fixed.watermark)
    (found,) = verify_invoices(world.context.log.state, [after.fixed], world.context.usage)
    assert found.differences == ()


def test_settings_that_stripe_does_not_know_are_refused_when_they_are_given(
    world: BillingWorld, api: TestClient
) -> None:
    refused = api.patch("/organization", json={"tax_mode": "rates", "tax_rates": ["txr_typo"]})
    (error,) = refused.json()["errors"]
    assert (refused.status_code, error["field"], error["code"]) == (422, "tax_rates.0", "tax_rate_unknown")
    known = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert known is not None
    assert known.tax_rates == ()


# --- Another Stripe ---------------------------------------------------------------------------------------------------


def at_another_stripe(world: BillingWorld, standin: StripeStandin) -> BillingContext:
    changed = Settings.model_validate(
        world.settings.model_copy(
            update={"stripe_api_base": standin.address, "stripe_api_key": standin.api_key}
        ).model_dump()
    )
    return BillingContext(changed, catalog=world.catalog, ledger=world.context.log, usage=world.context.usage)


def test_a_step_to_another_stripe_makes_new_customers(world: BillingWorld, tmp_path: Path) -> None:
    """README's own step from the stand-in to test mode, on the same Kafka, left every invoice `computed`."""
    world.subscribe("moves_on", FLAT)
    assert world.close().ok
    first = charged(world, "moves_on")
    here = world.context
    with stripe_standin(tmp_path) as other:
        world.context = at_another_stripe(world, other)
        try:
            report = world.close(MAY)
        finally:
            world.context.api.close()
            world.context = here
        assert report.ok, report.problems
        second = world.invoices("moves_on")[1]
        assert second.state == "paid"
        assert re.fullmatch(r"in_1\w+", second.stripe_invoice_id or "")
        links = world.context.log.state.links(DEFAULT_ORGANIZATION, "moves_on", None)
        assert [each.stripe_customer_id == first for each in links] == [True, False]
        assert len({each.owner for each in links}) == 2
    # Back again: the customer that is known here is the one in force.
    world.subscribe("moves_on_too", FLAT)
    known = world.context.log.state.link(DEFAULT_ORGANIZATION, "moves_on", None, here.api.owner)
    assert known is not None
    assert known.stripe_customer_id == first
