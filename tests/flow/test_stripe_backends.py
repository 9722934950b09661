"""The same flows on every Stripe: the stand-in, a strict and silent server, and Stripe's own test mode.

Only what Stripe documents is asked of it. Test mode is asked where the environment has its key, as STRIPE_API_KEY.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stripe_standin.process import API_KEY, StripeStandin

from billing_job.collect import void_credit
from billing_job.collect.poller import Poller
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from ledger.invoice import Invoice
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from tests.flow.billing import BillingWorld

pytestmark = pytest.mark.timeout(300)


class StrictStripe(StripeStandin):
    """Knows only the customers that it is given, and sends no webhooks and lists no events. (Parameters are checked
    by the stand-in anyway: those of the SDK's version, and no others.)"""

    REFUSED = ("/v1/customers*", "/v1/payment_methods*", "/v1/events*", "/v1/credit_notes*", "/v1/refunds*")

    def start(self) -> None:
        super().start()
        self.refuse()

    def refuse(self) -> None:
        for path in self.REFUSED:
            self.fault("error", "*", path, times=0, status=404, message="Unrecognized request URL")


class TestMode(StripeStandin):
    """Stripe itself, where the flows expect a stand-in. It takes no orders, and its clock is the world's."""

    __test__ = False

    def __init__(self, path: Path, key: str) -> None:
        super().__init__(path)
        self._key = key

    @property
    def address(self) -> str:
        return "https://api.stripe.com"

    @property
    def api_key(self) -> str:
        return getattr(self, "_key", "")

    def start(self) -> None: ...

    def stop(self) -> None: ...


def test_mode(path: Path) -> StripeStandin:
    key = os.environ.get("STRIPE_API_KEY", "")
    if not key.startswith("sk_test_") or key in (API_KEY, "sk_test_local"):
        pytest.skip("STRIPE_API_KEY has no key of Stripe's test mode")
    return TestMode(path, key)


test_mode.__test__ = False  # type: ignore[attr-defined]
BACKENDS: dict[str, Callable[[Path], StripeStandin]] = {
    "standin": StripeStandin,
    "strict": StrictStripe,
    "test_mode": test_mode,
}


@pytest.fixture(scope="module", params=BACKENDS)
def world(
    request: pytest.FixtureRequest,
    kafka: KafkaBroker,
    clickhouse: ClickHouseLocal,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BillingWorld]:
    directory = tmp_path_factory.mktemp("billing")
    with BillingWorld(kafka, clickhouse, directory, stripe=BACKENDS[request.param](directory / "stripe")) as world:
        yield world


def billed(world: BillingWorld, card: str, **more: Any) -> Invoice:
    """The invoice of 135.00 of a new customer; its customer at Stripe is given where none can be made."""
    name = f"c_{secrets.token_hex(6)}"
    if isinstance(world.stripe, StrictStripe):
        more |= {"stripe_customer_id": customer_with(world, world.stripe, card), "payment_method": None}
    else:
        more |= {"payment_method": card}
    world.subscribe(name, **more)
    world.use(name, "150000")
    report = world.close()
    assert report.ok, report.problems
    (invoice,) = world.invoices(name)
    return invoice


def customer_with(world: BillingWorld, strict: StrictStripe, card: str) -> str:
    """Made beforehand, by whoever runs the strict server."""
    strict.control("DELETE", "faults")
    given: str = world.at_stripe("POST", "/v1/customers", name="given", email="given@example.com")["id"]
    method = world.at_stripe("POST", f"/v1/payment_methods/{card}/attach", customer=given)["id"]
    default = {"invoice_settings[default_payment_method]": method}
    world.at_stripe("POST", f"/v1/customers/{given}", **default)
    strict.refuse()
    return given


def again(world: BillingWorld, invoice: Invoice) -> Invoice:
    Poller(world.context.billing(), 0.0).run()
    return next(each for each in world.invoices(invoice.customer_id) if each.id == invoice.id)


def assert_paid_once(world: BillingWorld, invoice: Invoice, amount_minor: int = 13500) -> None:
    """One Stripe invoice with our subtotal and ids, one payment that succeeded, one order; a re-run changes nothing."""
    assert invoice.state == "paid", invoice.reason
    assert invoice.order is not None
    (at_stripe,) = [each for each in world.stripe_invoices(invoice.customer_id) if each["status"] != "void"]
    assert (at_stripe["id"], at_stripe["status"]) == (invoice.stripe_invoice_id, "paid")
    assert (at_stripe["subtotal"], at_stripe["amount_paid"]) == (13500, amount_minor)
    assert at_stripe["metadata"]["usage_invoice_id"] == invoice.id
    payments = world.at_stripe("GET", "/v1/invoice_payments", invoice=at_stripe["id"], status="paid")["data"]
    assert [each["amount_paid"] for each in payments] == [amount_minor]
    size = world.ledger_size()
    assert world.close().ok
    assert world.ledger_size() == size


def test_a_card_is_charged_once(world: BillingWorld) -> None:
    assert_paid_once(world, billed(world, "pm_card_visa"))


def test_a_declined_card_and_a_later_one(world: BillingWorld) -> None:
    invoice = billed(world, "pm_card_chargeCustomerFail")
    assert (invoice.state, invoice.order) == ("payment_failed", None)
    assert invoice.stripe is not None
    assert invoice.stripe.attempt_count >= 1
    if isinstance(world.stripe, StrictStripe):
        world.stripe.control("DELETE", "faults")
    (at_stripe,) = world.stripe_invoices(invoice.customer_id)
    method = world.at_stripe("POST", "/v1/payment_methods/pm_card_visa/attach", customer=at_stripe["customer"])["id"]
    world.at_stripe("POST", f"/v1/invoices/{at_stripe['id']}/pay", payment_method=method)
    if isinstance(world.stripe, StrictStripe):
        world.stripe.refuse()
    assert_paid_once(world, again(world, invoice))


def test_a_sent_invoice(world: BillingWorld) -> None:
    invoice = billed(world, "pm_card_visa", collection_method="send_invoice")
    assert invoice.state == "open"
    assert invoice.document()["due_date"] is not None
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/pay", paid_out_of_band="true")
    paid = again(world, invoice)
    assert paid.state == "paid"
    assert paid.order is not None


def test_a_void_invoice_and_its_revision(world: BillingWorld) -> None:
    invoice = billed(world, "pm_card_visa", collection_method="send_invoice")
    billing = world.context.billing()
    second = void_credit.reissue(billing, void_credit.void(billing, invoice, "wrong"))
    assert world.close().ok
    states = {each.id: each.state for each in world.invoices(invoice.customer_id)}
    assert states == {invoice.id: "void", second: "open"}
    at_stripe = sorted(each["status"] for each in world.stripe_invoices(invoice.customer_id))
    assert at_stripe == ["open", "void"]


def test_a_credit_note_that_refunds(world: BillingWorld) -> None:
    if isinstance(world.stripe, StrictStripe):
        pytest.skip("it has no credit notes")
    invoice = billed(world, "pm_card_visa")
    void_credit.credit(world.context.billing(), invoice, 3500, refund=True, reason="outage")
    adjusted = again(world, invoice)
    assert sorted((each.adjustment, each.amount_minor) for each in adjusted.adjustments.values()) == [
        ("credit_note", 3500),
        ("refund", 3500),
    ]
    assert adjusted.stripe is not None
    assert adjusted.stripe.credited_minor == 3500


def test_tax_by_a_rate(world: BillingWorld) -> None:
    rate = world.at_stripe("POST", "/v1/tax_rates", display_name="VAT", percentage="19", inclusive="false")["id"]
    known = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert known is not None
    version = world.catalog.view.version(Organization, DEFAULT_ORGANIZATION, DEFAULT_ORGANIZATION)
    world.catalog.write(known.model_copy(update={"tax_mode": "rates", "tax_rates": (rate,)}), version)
    try:
        invoice = billed(world, "pm_card_visa")
    finally:
        world.catalog.write(known, version + 1)
    assert invoice.document()["tax"] == "25.65"
    assert_paid_once(world, invoice, 16065)


def test_a_strict_server_was_asked_for_nothing_that_it_refuses(world: BillingWorld) -> None:
    if not isinstance(world.stripe, StrictStripe):
        pytest.skip("it refuses nothing")
    refused = [each for each in world.stripe.requests() if each["status"] not in (200, 402)]
    assert {(each["method"], each["path"]) for each in refused} <= {("GET", "/v1/events")}
    assert len(refused) <= 6  # one of each sweep: a sweep that was refused the list does not ask for it again
