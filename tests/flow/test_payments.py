"""What pays an invoice: bank debits that take days, a card that is brought, replaced or taken away."""

from __future__ import annotations

from typing import Any

import pytest

from billing_job.collect.customer_changes import apply_customer_change
from billing_job.collect.poller import Poller
from billing_job.collect.requests import may_retry
from ledger.benefits import benefits_state, unpaid
from ledger.invoice import Invoice
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION
from tests.flow.billing import APRIL, MAY, BillingWorld

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("faults_end")]

DAY = 86_400
FLAT = {"model": "flat_fee", "amount": "49.00"}


def billed(world: BillingWorld, name: str, **more: Any) -> Invoice:
    """The invoice of 49.00 for March of a new customer; more: of BillingWorld.subscribe."""
    world.subscribe(name, FLAT, **more)
    report = world.close()
    assert report.ok, report.problems
    return only(world, name)


def only(world: BillingWorld, name: str) -> Invoice:
    (invoice,) = world.invoices(name)
    return invoice


def sweep(world: BillingWorld) -> int:
    return Poller(world.context.billing(), 0.0).run()


def benefits(world: BillingWorld, name: str) -> str:
    owed = [each for invoice in world.invoices(name) if (each := unpaid(invoice))]
    now = world.stripe.control("GET", "clock")["now"] * 1_000_000
    return benefits_state(owed, None, now, 7 * DAY * 1_000_000)


def change(world: BillingWorld, name: str, **changes: Any) -> None:
    known = world.catalog.view.get(Customer, DEFAULT_ORGANIZATION, name)
    assert known is not None
    version = world.catalog.view.version(Customer, DEFAULT_ORGANIZATION, name)
    world.catalog.write(known.model_copy(update=changes), version)


def retry(world: BillingWorld, name: str) -> Invoice:
    """What `POST /invoices/{id}/retry` and the next close do."""
    invoice = only(world, name)
    assert may_retry(invoice)
    world.service.retry([invoice.id], organization_id=None, by="a test")
    return only(world, name)


# --- Bank debits ------------------------------------------------------------------------------------------------------

# fmt: off
DEBITS = [
    # payment method                         currency  state after days   benefits
    ("pm_sepaDebit_success_de",              "eur",    "paid",            "active"),
    ("pm_sepaDebit_failedDelayed_de",        "eur",    "payment_failed",  "suspended"),
    ("pm_usBankAccount_success",             "usd",    "paid",            "active"),
    ("pm_usBankAccount_insufficientFunds",   "usd",    "payment_failed",  "suspended"),
]
# fmt: on


@pytest.mark.parametrize(("method", "currency", "state", "state_of_benefits"), DEBITS)
def test_a_debit_under_way_is_no_failure(
    world: BillingWorld, method: str, currency: str, state: str, state_of_benefits: str
) -> None:
    """It was `payment_failed` at once, with benefits suspended, while the bank had not answered."""
    invoice = billed(world, method, payment_method=method, currency=currency)
    assert (invoice.state, invoice.reason, benefits(world, method)) == ("open", "payment_processing", "active")
    assert not may_retry(invoice)
    calls = world.changes()
    assert world.close().ok
    assert (sweep(world), world.changes()) == (0, calls)
    assert only(world, method).reason == "payment_processing"

    world.stripe.advance(4 * DAY)
    assert sweep(world) == 1
    invoice = only(world, method)
    assert (invoice.state, benefits(world, method)) == (state, state_of_benefits)
    assert (invoice.order is not None) is (state == "paid")
    if state == "paid":
        assert invoice.reason is None
    else:
        assert invoice.reason is not None
        assert invoice.reason != "payment_processing"
        change(world, method, payment_method="pm_card_visa")
        invoice = retry(world, method)
        assert (invoice.state, invoice.reason, benefits(world, method)) == ("paid", None, "active")


def test_a_lost_answer_to_a_debit_begins_no_second_one(world: BillingWorld) -> None:
    world.stripe.fault("timeout_after", "POST", "/v1/invoices/*/pay", seconds=0.1)
    world.subscribe("lost_debit", FLAT, payment_method="pm_sepaDebit_success_de")
    world.close(settings={"stripe_timeout_seconds": 5.0})
    world.stripe.control("DELETE", "faults")
    world.close()
    invoice = only(world, "lost_debit")
    assert (invoice.state, invoice.reason) == ("open", "payment_processing")
    world.stripe.advance(4 * DAY)
    sweep(world)
    assert only(world, "lost_debit").state == "paid"
    assert world.stripe.charges()[invoice.stripe_invoice_id or ""]["succeeded"] == 1


# --- Cards ------------------------------------------------------------------------------------------------------------


def test_a_new_card_pays_what_is_open(world: BillingWorld) -> None:
    """`retry` answered that it was not waiting for that, and the card came to Stripe with the next invoice."""
    invoice = billed(world, "declined_card", payment_method="pm_card_chargeDeclined")
    assert (invoice.state, invoice.steps["pay", 0].code) == ("open", "no_payment_method")
    change(world, "declined_card", payment_method="pm_card_visa")
    invoice = retry(world, "declined_card")
    assert (invoice.state, invoice.reason) == ("paid", None)
    assert invoice.order is not None
    assert world.stripe.charges()[invoice.stripe_invoice_id or ""]["succeeded"] == 1


def test_a_new_card_pays_what_failed_and_benefits_follow(world: BillingWorld) -> None:
    world.stripe.settings(retry_seconds=[])
    try:
        invoice = billed(world, "failed_card", payment_method="pm_card_chargeCustomerFail")
    finally:
        world.stripe.settings(retry_seconds=[3 * DAY, 5 * DAY, 7 * DAY])
    assert (invoice.state, benefits(world, "failed_card")) == ("payment_failed", "suspended")
    invoice = retry(world, "failed_card")  # with the same card: it fails once more, and can be tried again
    assert (invoice.state, benefits(world, "failed_card")) == ("payment_failed", "suspended")
    change(world, "failed_card", payment_method="pm_card_mastercard")
    invoice = retry(world, "failed_card")
    assert (invoice.state, benefits(world, "failed_card")) == ("paid", "active")
    counted = world.stripe.charges()[invoice.stripe_invoice_id or ""]
    assert (counted["succeeded"], counted["failed"]) == (1, 2)


def test_a_lost_answer_to_a_retry_charges_once(world: BillingWorld) -> None:
    billed(world, "lost_retry", payment_method="pm_card_chargeCustomerFail")
    change(world, "lost_retry", payment_method="pm_card_visa")
    world.stripe.fault("reset_before", "POST", "/v1/invoices/*/pay", times=50)
    invoice = only(world, "lost_retry")
    world.service.retry([invoice.id], organization_id=None, by="a test")
    assert only(world, "lost_retry").state == "payment_failed"
    world.stripe.control("DELETE", "faults")
    world.close()
    assert only(world, "lost_retry").state == "paid"
    assert world.stripe.charges()[invoice.stripe_invoice_id or ""]["succeeded"] == 1


def test_a_card_that_is_taken_away_is_detached_and_not_charged(world: BillingWorld) -> None:
    first = billed(world, "taken_away")
    assert first.state == "paid"
    (at_stripe,) = world.stripe_invoices("taken_away")
    methods = f"/v1/customers/{at_stripe['customer']}/payment_methods"
    assert len(world.at_stripe("GET", methods)["data"]) == 1
    change(world, "taken_away", payment_method=None)
    assert world.close(MAY).ok
    assert world.at_stripe("GET", methods)["data"] == []
    (_, second) = world.invoices("taken_away")
    assert (second.cycle_start, second.state, second.steps["pay", 0].code) == (APRIL, "open", "no_payment_method")
    assert world.stripe.charges().get(second.stripe_invoice_id or "") is None


def test_a_card_that_is_replaced_is_detached(world: BillingWorld) -> None:
    billed(world, "replaced_card")
    (at_stripe,) = world.stripe_invoices("replaced_card")
    change(world, "replaced_card", payment_method="pm_card_mastercard")
    assert world.close(MAY).ok
    left = world.at_stripe("GET", f"/v1/customers/{at_stripe['customer']}/payment_methods")["data"]
    assert [each["card"]["brand"] for each in left] == ["mastercard"]
    assert [each.state for each in world.invoices("replaced_card")] == ["paid", "paid"]


# --- Uncollectible ----------------------------------------------------------------------------------------------------


def written_off(world: BillingWorld, name: str) -> Invoice:
    """Its card failed, and someone has marked it uncollectible at Stripe."""
    invoice = billed(world, name, payment_method="pm_card_chargeCustomerFail")
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/mark_uncollectible")
    sweep(world)
    assert (only(world, name).state, benefits(world, name)) == ("uncollectible", "suspended")
    return only(world, name)


def test_an_uncollectible_invoice_is_paid_when_someone_asks_for_it(world: BillingWorld) -> None:
    """No button collected it, though Stripe lets it be paid."""
    written_off(world, "regained")
    invoice = retry(world, "regained")  # with the card that failed
    assert (invoice.state, may_retry(invoice), benefits(world, "regained")) == ("uncollectible", True, "suspended")
    assert "declined" in (invoice.reason or "")
    calls = world.changes()
    assert world.close().ok
    assert world.changes() == calls, "nothing is tried again by itself"

    change(world, "regained", payment_method="pm_card_visa")
    assert world.close().ok
    assert only(world, "regained").state == "uncollectible"
    invoice = retry(world, "regained")
    assert (invoice.state, invoice.reason, benefits(world, "regained")) == ("paid", None, "active")
    assert invoice.order is not None
    assert not may_retry(invoice)
    assert world.stripe.charges()[invoice.stripe_invoice_id or ""]["succeeded"] == 1


def test_an_uncollectible_invoice_may_be_paid_by_a_debit_that_takes_days(world: BillingWorld) -> None:
    written_off(world, "debited")
    change(world, "debited", payment_method="pm_sepaDebit_success_de")
    invoice = retry(world, "debited")
    assert (invoice.state, invoice.reason, may_retry(invoice)) == ("uncollectible", "payment_processing", False)
    world.stripe.advance(4 * DAY)
    sweep(world)
    assert (only(world, "debited").state, benefits(world, "debited")) == ("paid", "active")


def test_a_new_card_alone_does_not_collect_what_was_written_off(world: BillingWorld) -> None:
    invoice = written_off(world, "forgiven")
    known = world.catalog.view.get(Customer, DEFAULT_ORGANIZATION, "forgiven")
    assert known is not None
    after = known.model_copy(update={"payment_method": "pm_card_visa"})
    apply_customer_change(world.context, known, after, "a test")
    assert only(world, "forgiven").retry_asked_at == invoice.retry_asked_at
