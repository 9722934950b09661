"""An invoice's whole life at Stripe: dunning and benefits, void and reissue, credit notes, refunds, disputes, taxes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stripe_standin import stripe_mock

from billing_job.collect import void_credit
from billing_job.collect.charge import discard
from billing_job.collect.poller import Poller
from billing_job.collect.void_credit import NotPossible
from billing_job.stripe.errors import StripeFailure
from ledger.benefits import benefits_state, unpaid
from ledger.invoice import Invoice
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from tests.flow.billing import APRIL, JUNE, MAY, BillingWorld

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("faults_end")]

DAY = 86_400
WEEK_US = 7 * DAY * 1_000_000
FAILING = "pm_card_chargeCustomerFail"


def billed(world: BillingWorld, name: str, **more: Any) -> Invoice:
    """The invoice of 135.00 for March of a new customer; more: of BillingWorld.subscribe."""
    world.subscribe(name, **more)
    world.use(name, "150000")
    report = world.close()
    assert report.ok, report.problems
    (invoice,) = world.invoices(name)
    return invoice


def only(world: BillingWorld, name: str) -> Invoice:
    (invoice,) = world.invoices(name)
    return invoice


def sweep(world: BillingWorld) -> int:
    return Poller(world.context.billing(), 0.0).run()


def benefits(world: BillingWorld, name: str, *, later_us: int = 0) -> str:
    owed = [each for invoice in world.invoices(name) if (each := unpaid(invoice))]
    now = world.stripe.control("GET", "clock")["now"] * 1_000_000
    return benefits_state(owed, None, now + later_us, WEEK_US)


def give_card(world: BillingWorld, name: str, card: str = "pm_card_visa") -> None:
    """The customer brings another card."""
    (at_stripe, *_) = world.stripe_invoices(name)
    customer = at_stripe["customer"]
    method = world.at_stripe("POST", f"/v1/payment_methods/{card}/attach", customer=customer)["id"]
    default = {"invoice_settings[default_payment_method]": method}
    world.at_stripe("POST", f"/v1/customers/{customer}", **default)


# --- Dunning and benefits ---------------------------------------------------------------------------------------------


def test_benefits_are_suspended_when_stripe_gives_up_and_return_with_the_payment(world: BillingWorld) -> None:
    invoice = billed(world, "dunned", payment_method=FAILING)
    assert (invoice.state, benefits(world, "dunned")) == ("payment_failed", "active")
    for days in (3, 5):
        world.stripe.advance(days * DAY)
        sweep(world)
        assert benefits(world, "dunned") == "active"
    world.stripe.advance(7 * DAY)
    sweep(world)
    invoice = only(world, "dunned")
    assert (invoice.state, invoice.order, benefits(world, "dunned")) == ("payment_failed", None, "suspended")
    assert invoice.stripe is not None
    assert (invoice.stripe.attempt_count, invoice.stripe.next_payment_attempt) == (4, None)

    # Another customer's, and other subscriptions, know nothing of it.
    assert billed(world, "dunned_neighbour").state == "paid"
    assert benefits(world, "dunned_neighbour") == "active"

    give_card(world, "dunned")
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/pay")
    assert sweep(world) == 1
    assert sweep(world) == 0
    invoice = only(world, "dunned")
    assert (invoice.state, benefits(world, "dunned")) == ("paid", "active")
    assert invoice.order is not None
    assert invoice.order.amount_paid == "135.00"
    assert len([o for o in world.context.log.state.orders if o.customer_id == "dunned"]) == 1


def test_an_uncollectible_invoice_suspends_until_it_is_paid_after_all(world: BillingWorld) -> None:
    invoice = billed(world, "written_off", payment_method=FAILING)
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/mark_uncollectible")
    sweep(world)
    assert (only(world, "written_off").state, benefits(world, "written_off")) == ("uncollectible", "suspended")
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/pay", paid_out_of_band="true")
    sweep(world)
    assert (only(world, "written_off").state, benefits(world, "written_off")) == ("paid", "active")


def test_a_sent_invoice_suspends_once_it_is_overdue(world: BillingWorld) -> None:
    invoice = billed(world, "posted", collection_method="send_invoice")
    assert (invoice.state, benefits(world, "posted")) == ("open", "active")
    assert benefits(world, "posted", later_us=31 * DAY * 1_000_000) == "suspended"
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/pay", paid_out_of_band="true")
    sweep(world)
    assert benefits(world, "posted", later_us=31 * DAY * 1_000_000) == "active"


def test_a_payment_that_the_customer_must_confirm_and_then_does(world: BillingWorld) -> None:
    world.stripe.settings(retry_seconds=[])
    try:
        invoice = billed(world, "confirms", payment_method="pm_card_authenticationRequired")
    finally:
        world.stripe.settings(retry_seconds=[3 * DAY, 5 * DAY, 7 * DAY])
    assert (invoice.state, invoice.steps["pay", 0].code) == ("payment_failed", "action_required")
    assert benefits(world, "confirms") == "active"
    assert benefits(world, "confirms", later_us=WEEK_US) == "suspended"
    payments = world.at_stripe("GET", "/v1/invoice_payments", invoice=invoice.stripe_invoice_id or "")["data"]
    intent = payments[0]["payment"]["payment_intent"]
    world.stripe.control("POST", f"payment_intents/{intent}/authenticate")
    assert sweep(world) == 1
    assert (only(world, "confirms").state, benefits(world, "confirms", later_us=WEEK_US)) == ("paid", "active")


def test_without_a_card_benefits_last_for_a_grace(world: BillingWorld) -> None:
    world.stripe.settings(retry_seconds=[])
    try:
        invoice = billed(world, "cardless", payment_method=None)
        assert (invoice.state, invoice.steps["pay", 0].code) == ("open", "no_payment_method")
        assert benefits(world, "cardless", later_us=WEEK_US) == "active"  # Stripe has planned an attempt
        world.stripe.advance(2 * 3600)
    finally:
        world.stripe.settings(retry_seconds=[3 * DAY, 5 * DAY, 7 * DAY])
    sweep(world)
    assert (only(world, "cardless").state, benefits(world, "cardless")) == ("payment_failed", "active")
    assert benefits(world, "cardless", later_us=WEEK_US) == "suspended"


# --- Void and reissue -------------------------------------------------------------------------------------------------


def test_a_void_invoice_is_made_anew_as_a_revision(world: BillingWorld) -> None:
    first = billed(world, "reissued", payment_method=FAILING)
    billing = world.context.billing()
    voided = void_credit.void(billing, first, "wrong address")
    assert voided.state == "void"
    assert world.close().ok
    assert [each.state for each in world.invoices("reissued")] == ["void"]  # nobody asked for another

    second_id = void_credit.reissue(billing, voided)
    assert void_credit.reissue(billing, only(world, "reissued")) == second_id
    give_card(world, "reissued")
    world.use("reissued", "1000")  # late: the new invoice counts up to its own watermark
    assert world.close().ok
    void, second = sorted(world.invoices("reissued"), key=lambda each: each.revision)
    assert (void.id, void.state, second.id, second.state, second.revision) == (first.id, "void", second_id, "paid", 2)
    assert second.fixed is not None
    assert second.fixed.total == "135.50"
    assert second.order is not None
    at_stripe = {each["id"]: each["status"] for each in world.stripe_invoices("reissued")}
    assert at_stripe == {first.stripe_invoice_id: "void", second.stripe_invoice_id: "paid"}
    changes = world.changes()
    assert world.close().ok
    assert world.changes() == changes
    with pytest.raises(NotPossible, match="credit it"):
        void_credit.void(billing, second, "too late")
    with pytest.raises(NotPossible, match="only a void one"):
        void_credit.reissue(billing, second)


def test_what_was_credited_on_an_open_invoice_is_on_its_reissue_and_late_usage_is_billed_once(
    world: BillingWorld,
) -> None:
    """The credit was lost, and 0.50 that April's invoice had billed was charged again."""
    first = billed(world, "kept", payment_method=FAILING)
    world.use("kept", "1000")
    assert world.close(MAY).ok
    billing = world.context.billing()
    void_credit.credit(billing, only_of(world, "kept", first.id), 3500, refund=False, reason="sorry")
    voided = void_credit.void(billing, only_of(world, "kept", first.id), "wrong address")
    second_id = void_credit.reissue(billing, voided)
    assert world.close(MAY).ok
    second = only_of(world, "kept", second_id)
    assert second.fixed is not None
    assert [(line.model, line.amount) for line in second.fixed.lines] == [
        ("graduated", "135.50"), ("billed_elsewhere", "-0.50"), ("carried_credit", "-35.00"),
    ]  # fmt: skip
    at_stripe = world.at_stripe("GET", f"/v1/invoices/{second.stripe_invoice_id}")
    assert (second.fixed.total, at_stripe["subtotal"]) == ("100.00", 10000)
    for invoice in world.invoices("kept"):
        assert world.service.verify(invoice.id).ok


def test_a_waived_cycle_is_given_back_what_other_invoices_billed_for_it(world: BillingWorld) -> None:
    first = billed(world, "waived", payment_method=FAILING)
    world.use("waived", "1000")
    assert world.close(MAY).ok
    void_credit.void(world.context.billing(), only_of(world, "waived", first.id), "waived")
    assert world.close(JUNE).ok
    assert [each.document()["total"] for each in world.invoices("waived")] == ["135.00", "0.50", "-0.50"]
    for invoice in world.invoices("waived"):
        assert world.service.verify(invoice.id).ok


def test_usage_that_was_credited_and_voided_is_credited_once(world: BillingWorld) -> None:
    world.subscribe("noted")
    world.use("noted", "100000", "50000", identities=["c:a", "c:b"])
    assert world.close().ok
    after = void_credit.credit(
        world.context.billing(), only(world, "noted"), 2500, refund=True, reason="sent twice", credit_for="usage"
    )
    assert [each.credit_for for each in after.adjustments.values() if each.adjustment == "credit_note"] == ["usage"]
    world.void("noted", "b")
    assert world.close(MAY).ok
    assert [each.document()["total"] for each in world.invoices("noted")] == ["135.00", "0.00"]


@pytest.mark.parametrize("by", ["refund", "person"])
def test_paid_twice_is_held_until_it_is_refunded_or_settled(world: BillingWorld, by: str) -> None:
    """A close with manual approval made it paid with nothing refunded, and a refund did not end the hold."""
    name = f"twice_{by}"
    invoice = billed(world, name)
    (own,) = world.stripe_invoices(name)
    metadata = {"metadata[usage_invoice_id]": invoice.id, "metadata[usage_customer_id]": name}
    stray = world.at_stripe("POST", "/v1/invoices", customer=own["customer"], currency="eur", **metadata)["id"]
    world.at_stripe("POST", "/v1/invoiceitems", customer=own["customer"], invoice=stray, amount="500", currency="eur")
    world.at_stripe("POST", f"/v1/invoices/{stray}/finalize")
    billing = world.context.billing()
    assert invoice.fixed is not None
    discard(billing, invoice.fixed, world.at_stripe("POST", f"/v1/invoices/{stray}/pay"))
    organization(world, invoice_approval="manual")
    try:
        world.close()
        assert (only(world, name).state, only(world, name).held_by) == ("mismatch", "charged_twice")
        size = world.ledger_size()
        world.close()
        assert world.ledger_size() == size, "the same hold was written again"
    finally:
        organization(world, invoice_approval="automatic")
    if by == "person":
        void_credit.settle_paid_twice(billing, only(world, name), "by bank transfer", by="key_1")
        assert only(world, name).reason == "by bank transfer"
    else:
        payments = world.at_stripe("GET", "/v1/invoice_payments", invoice=stray)["data"]
        intent = payments[0]["payment"]["payment_intent"]
        world.at_stripe("POST", "/v1/refunds", payment_intent=intent, amount="200")
        sweep(world)
        assert only(world, name).held_by == "charged_twice", "a part is no refund of it"
        world.at_stripe("POST", "/v1/refunds", payment_intent=intent, amount="300")
        sweep(world)
    assert (only(world, name).state, only(world, name).held_by) == ("paid", None)
    with pytest.raises(NotPossible, match="nothing to settle"):
        void_credit.settle_paid_twice(billing, only(world, name), "again", by="key_1")


def only_of(world: BillingWorld, name: str, invoice_id: str) -> Invoice:
    (found,) = [each for each in world.invoices(name) if each.id == invoice_id]
    return found


def test_what_is_held_can_be_voided_before_anyone_pays_it(world: BillingWorld) -> None:
    world.subscribe("held")
    world.use("held", "150000")
    world.stripe.fault("error", "POST", "/v1/invoices/*/finalize")
    assert not world.close().ok
    (draft,) = world.stripe_invoices("held")
    voided = void_credit.void(world.context.billing(), only(world, "held"), "not wanted")
    assert (voided.state, voided.reason) == ("void", "not wanted")
    assert world.stripe_invoices("held") == []
    assert draft["status"] == "draft"
    void_credit.reissue(world.context.billing(), voided)
    assert world.close().ok
    assert sorted(each.state for each in world.invoices("held")) == ["paid", "void"]


def test_what_was_voided_at_stripe_can_be_made_anew(world: BillingWorld) -> None:
    invoice = billed(world, "voided_there", payment_method=FAILING)
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/void")
    sweep(world)
    voided = void_credit.void(world.context.billing(), only(world, "voided_there"), "again")
    assert voided.state == "void"
    void_credit.reissue(world.context.billing(), voided)
    give_card(world, "voided_there")
    assert world.close().ok
    assert sorted(each.state for each in world.invoices("voided_there")) == ["paid", "void"]


def test_an_invoice_that_was_paid_meanwhile_is_not_voided(world: BillingWorld) -> None:
    invoice = billed(world, "paid_first", payment_method=FAILING)
    world.at_stripe("POST", f"/v1/invoices/{invoice.stripe_invoice_id}/pay", paid_out_of_band="true")
    with pytest.raises(NotPossible, match="paid meanwhile"):
        void_credit.void(world.context.billing(), invoice, "wrong")
    invoice = only(world, "paid_first")
    assert invoice.state == "paid"
    assert invoice.order is not None


# fmt: off
FAULTS = [
    # kind            path                    method    ok at once
    ("429",           "/v1/invoices/*/void",  "POST",   True),
    ("409",           "/v1/invoices/*/void",  "POST",   True),
    ("reset_before",  "/v1/invoices/*/void",  "POST",   True),
    ("reset_after",   "/v1/invoices/*/void",  "POST",   True),
    ("500_before",    "/v1/invoices/*/void",  "POST",   True),
    ("500_after",     "/v1/invoices/*/void",  "POST",   True),
    ("error",         "/v1/invoices/*/void",  "POST",   False),
    ("500_before",    "/v1/invoices/*",       "GET",    True),
]
# fmt: on


@pytest.mark.parametrize(("kind", "path", "method", "ok"), FAULTS)
def test_a_void_with_a_stripe_that_fails(world: BillingWorld, kind: str, path: str, method: str, ok: bool) -> None:
    invoice = billed(world, f"void_{kind}_{method}", payment_method=FAILING)
    world.stripe.fault(kind, method, path)
    if not ok:
        with pytest.raises(StripeFailure):
            void_credit.void(world.context.billing(), invoice, "wrong")
        invoice = only(world, invoice.customer_id)
    assert void_credit.void(world.context.billing(), invoice, "wrong").state == "void"
    assert [each["status"] for each in world.stripe_invoices(invoice.customer_id)] == ["void"]


@pytest.mark.parametrize("finisher", ["close", "sweep"])
def test_a_void_that_was_begun_is_finished(world: BillingWorld, finisher: str) -> None:
    name = f"void_begun_{finisher}"
    invoice = billed(world, name, payment_method=FAILING)
    world.stripe.fault("500_before", "GET", f"/v1/invoices/{invoice.stripe_invoice_id}", times=0)
    with pytest.raises(StripeFailure):
        void_credit.void(world.context.billing(), invoice, "wrong")
    world.stripe.control("DELETE", "faults")
    assert only(world, name).voiding
    if finisher == "close":
        assert world.close().ok
    else:
        assert sweep(world) == 1
    assert only(world, name).state == "void"
    assert world.stripe_invoices(name)[0]["status"] == "void"


# --- Credit notes, refunds, disputes ----------------------------------------------------------------------------------


def shown(world: BillingWorld, name: str) -> list[tuple[str, str, str]]:
    """(type, amount, status) of a customer's adjustments."""
    return [
        (each["type"], each["amount"], each["status"])
        for invoice in world.invoices(name)
        for each in invoice.document()["adjustments"]
    ]


def test_a_credit_before_payment_lowers_what_is_to_pay(world: BillingWorld) -> None:
    invoice = billed(world, "credited_open", payment_method=FAILING)
    after = void_credit.credit(world.context.billing(), invoice, 3500, refund=False, reason="outage")
    assert shown(world, "credited_open") == [("credit_note", "35.00", "issued")]
    assert (after.state, after.document()["amount_remaining"]) == ("payment_failed", "100.00")
    with pytest.raises(NotPossible, match="nothing to refund"):
        void_credit.credit(world.context.billing(), invoice, 1, refund=True, reason="x")
    after = void_credit.credit(world.context.billing(), after, 10000, refund=False, reason="all of it")
    assert (after.state, after.document()["amount_paid"]) == ("paid", "0.00")
    assert after.order is not None
    assert after.order.amount_paid == "0.00"


def test_a_credit_after_payment_goes_to_the_balance_or_back_to_the_card(world: BillingWorld) -> None:
    invoice = billed(world, "credited_paid")
    billing = world.context.billing()
    void_credit.credit(billing, invoice, 1000, refund=False, reason="goodwill")
    after = void_credit.credit(billing, only(world, "credited_paid"), 2000, refund=True, reason="outage")
    assert shown(world, "credited_paid") == [
        ("credit_note", "10.00", "issued"),
        ("credit_note", "20.00", "issued"),
        ("refund", "20.00", "succeeded"),
    ]
    assert (after.state, after.order is not None and after.order.amount_paid) == ("paid", "135.00")
    (at_stripe,) = world.stripe_invoices("credited_paid")
    assert world.stripe.charges()[at_stripe["id"]]["refunded"] == 2000
    world.use("credited_paid", "150000", at=APRIL)
    assert world.close(MAY).ok
    april = world.invoices("credited_paid")[1]
    assert (april.state, april.document()["amount_paid"]) == ("paid", "125.00")  # 10.00 from the balance
    assert april.stripe is not None
    assert (april.stripe.subtotal_minor, april.stripe.applied_balance_minor) == (13500, 1000)
    with pytest.raises(NotPossible, match="positive"):
        void_credit.credit(billing, april, 0, refund=False, reason="x")
    with pytest.raises(StripeFailure, match="greater than what is left"):
        void_credit.credit(billing, april, 13501, refund=False, reason="x")


@pytest.mark.parametrize("kind", ["429", "409", "reset_before", "reset_after", "500_before", "500_after"])
def test_one_credit_note_whatever_stripe_answers(world: BillingWorld, kind: str) -> None:
    invoice = billed(world, f"credit_{kind}")
    world.stripe.fault(kind, "POST", "/v1/credit_notes")
    void_credit.credit(world.context.billing(), invoice, 500, refund=True, reason="outage")
    assert world.stripe.charges()[invoice.stripe_invoice_id or ""]["refunded"] == 500
    assert [each[0] for each in shown(world, invoice.customer_id)] == ["credit_note", "refund"]


@pytest.mark.parametrize("finisher", ["command", "sweep"])
def test_a_credit_note_whose_issuer_was_killed_is_issued_once(world: BillingWorld, finisher: str) -> None:
    invoice = billed(world, f"credit_killed_{finisher}")
    world.stripe.fault("500_after", "POST", "/v1/credit_notes")
    world.stripe.fault("500_before", "GET", "/v1/credit_notes", times=0)
    billing = world.context.billing()
    with pytest.raises(StripeFailure):
        void_credit.credit(billing, invoice, 500, refund=True, reason="outage")
    world.stripe.control("DELETE", "faults")
    invoice = only(world, invoice.customer_id)
    with pytest.raises(NotPossible, match=r"over 5\.00 was begun"):
        void_credit.credit(billing, invoice, 600, refund=True, reason="outage")
    if finisher == "command":
        void_credit.credit(billing, invoice, 500, refund=True, reason="outage")
    else:
        sweep(world)
    assert world.stripe.charges()[invoice.stripe_invoice_id or ""]["refunded"] == 500
    assert [each[0] for each in shown(world, invoice.customer_id)] == ["credit_note", "refund"]


KILLED = {
    "void": ("POST", "/v1/invoices/*/void", "void_credit.void(billing, invoice, 'wrong')"),
    "credit": ("POST", "/v1/credit_notes", "void_credit.credit(billing, invoice, 500, refund=True, reason='outage')"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", KILLED)
def test_killed_while_it_corrects_and_run_again(world: BillingWorld, step: str, when: str) -> None:
    """Killed while it waits for an answer: the call was carried out (after), or not (before)."""
    card = FAILING if step == "void" else "pm_card_visa"
    invoice = billed(world, f"killed_{step}_{when}", payment_method=card)
    method, path, call = KILLED[step]
    world.stripe.fault(f"timeout_{when}", method, path, seconds=1)
    code = f"""
from billing_job.collect import void_credit
from billing_job.service import open_service
from schemas.settings import Settings
with open_service(Settings()) as service:
    billing = service.context.billing()
    invoice = billing.invoice({invoice.id!r})
    {call}
"""
    with (world.directory / "killed.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | world.env, stdout=log, stderr=log)
    try:
        world.until(lambda: world.stripe.control("GET", "faults")["data"][0]["hits"] or process.poll() is not None)
        assert process.poll() is None, "it ended before it was killed"
    finally:
        process.kill()
        process.wait(30)
    world.stripe.control("DELETE", "faults")
    assert world.close().ok
    billing, invoice = world.context.billing(), only(world, invoice.customer_id)
    if step == "void":
        assert void_credit.void(billing, invoice, "wrong").state == "void"
        assert [each["status"] for each in world.stripe_invoices(invoice.customer_id)] == ["void"]
    else:
        void_credit.credit(billing, invoice, 500, refund=True, reason="outage")
        assert world.stripe.charges()[invoice.stripe_invoice_id or ""]["refunded"] == 500
        assert [each[0] for each in shown(world, invoice.customer_id)] == ["credit_note", "refund"]


def test_the_sweep_hears_of_refunds_and_disputes_made_at_stripe(world: BillingWorld) -> None:
    invoice = billed(world, "elsewhere")
    payments = world.at_stripe("GET", "/v1/invoice_payments", invoice=invoice.stripe_invoice_id or "")["data"]
    intent = payments[0]["payment"]["payment_intent"]
    charge = world.at_stripe("GET", f"/v1/payment_intents/{intent}")["latest_charge"]
    world.at_stripe("POST", "/v1/refunds", payment_intent=intent, amount="300")
    world.stripe.control("POST", "disputes", {"charge": charge})
    world.at_stripe(
        "POST", "/v1/credit_notes", invoice=invoice.stripe_invoice_id or "", amount="100", credit_amount="100"
    )
    following = Poller(world.context.billing(), 0.0)
    following.run()
    assert sorted(shown(world, "elsewhere")) == [
        ("credit_note", "1.00", "issued"),
        ("dispute", "135.00", "needs_response"),
        ("refund", "3.00", "succeeded"),
    ]
    size, calls = world.ledger_size(), len(world.stripe.requests())
    following.run()
    assert world.ledger_size() == size, "the same news was written again"
    asked = [(each["method"], each["path"]) for each in world.stripe.requests()[calls:]]
    assert not [path for _, path in asked if "refunds" in path or "credit_notes" in path]


# --- Taxes, balances, accounts ----------------------------------------------------------------------------------------


def organization(world: BillingWorld, **changes: Any) -> None:
    """Change the organization's settings."""
    known = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert known is not None
    version = world.catalog.view.version(Organization, DEFAULT_ORGANIZATION, DEFAULT_ORGANIZATION)
    world.catalog.write(known.model_copy(update=changes), version)


@pytest.fixture
def untaxed(world: BillingWorld) -> Iterator[None]:
    """The organization's settings come back."""
    yield
    organization(world, tax_mode="none", tax_rates=(), stripe_account_id=None)


@pytest.mark.usefixtures("untaxed")
def test_tax_by_rates_is_added_to_our_prices(world: BillingWorld) -> None:
    rate = world.at_stripe("POST", "/v1/tax_rates", display_name="VAT", percentage="19", inclusive="false")["id"]
    organization(world, tax_mode="rates", tax_rates=(rate,))
    invoice = billed(world, "rated")
    document = invoice.document()
    assert (document["total"], document["tax"], document["amount_paid"]) == ("135.00", "25.65", "160.65")
    assert invoice.order is not None
    assert invoice.order.amount_paid == "160.65"
    after = void_credit.credit(world.context.billing(), invoice, 16065, refund=True, reason="all")
    assert world.stripe.charges()[after.stripe_invoice_id or ""]["refunded"] == 16065


@pytest.mark.usefixtures("untaxed")
def test_automatic_tax_needs_to_know_where_and_goes_on_once_it_does(world: BillingWorld) -> None:
    world.stripe.settings(automatic_tax_percent="20")
    organization(world, tax_mode="stripe_automatic")
    world.subscribe("nowhere")
    world.use("nowhere", "150000")
    report = world.close()
    assert not report.ok
    invoice = only(world, "nowhere")
    assert invoice.state == "draft"
    assert invoice.reason is not None
    assert "location" in invoice.reason
    (at_stripe,) = world.stripe_invoices("nowhere")
    country = {"address[country]": "DE"}
    world.at_stripe("POST", f"/v1/customers/{at_stripe['customer']}", **country)
    assert world.close().ok
    invoice = only(world, "nowhere")
    document = invoice.document()
    assert (invoice.state, document["tax"], document["amount_paid"], invoice.reason) == (
        "paid",
        "27.00",
        "162.00",
        None,
    )


@pytest.mark.usefixtures("untaxed")
def test_an_organization_sells_in_its_own_account(world: BillingWorld) -> None:
    organization(world, stripe_account_id="acct_of1tenant")
    invoice = billed(world, "tenant")
    assert invoice.state == "paid"
    calls = [each for each in world.stripe.requests() if each["account"] == "acct_of1tenant"]
    assert {each["path"] for each in calls} >= {"/v1/customers", "/v1/invoices", "/v1/invoiceitems"}
    assert world.stripe.charges("acct_of1tenant")[invoice.stripe_invoice_id or ""]["succeeded"] == 1
    assert invoice.stripe_invoice_id not in world.stripe.charges()


def test_a_credit_balance_pays_what_it_can(world: BillingWorld) -> None:
    for name, balance, paid in (("some_credit", "-3500", "100.00"), ("all_credit", "-20000", "0.00")):
        given = world.at_stripe("POST", "/v1/customers", name=name)["id"]
        world.at_stripe("POST", f"/v1/customers/{given}/balance_transactions", amount=balance, currency="eur")
        invoice = billed(world, name, stripe_customer_id=given)
        assert (invoice.state, invoice.document()["amount_paid"]) == ("paid", paid)
        assert invoice.stripe is not None
        assert invoice.stripe.subtotal_minor == 13500
        assert invoice.order is not None
        assert invoice.order.amount_paid == paid


def test_a_negative_total_becomes_credit_for_the_next_invoice(world: BillingWorld) -> None:
    """What is taken back of March is more than what was used in April."""
    world.subscribe("negative")
    world.use("negative", "150000")
    assert world.close().ok
    world.use("negative", "-150000")
    world.use("negative", "10000", at=APRIL)
    assert world.close(MAY).ok
    april = world.invoices("negative")[1]
    assert april.stripe is not None
    taken = (april.state, april.stripe.subtotal_minor, april.stripe.applied_balance_minor)
    assert taken == ("paid", -11500, -11500)
    assert april.order is not None
    assert april.order.amount_paid == "0.00"
    world.use("negative", "150000", at=MAY)
    assert world.close(JUNE).ok
    may = world.invoices("negative")[2]
    assert (may.state, may.document()["amount_paid"]) == ("paid", "20.00")


def test_what_changes_of_a_customer_is_told_before_the_next_invoice(world: BillingWorld) -> None:
    name = "moves"
    old = {"type": "eu_vat", "value": "DE123456789"}
    billed(world, name, email="old@example.com", address={"city": "Bonn", "country": "DE"}, tax_ids=[old])
    (first,) = world.stripe_invoices(name)
    assert (first["customer_email"], first["customer_address"]["city"]) == ("old@example.com", "Bonn")
    known = world.catalog.view.get(Customer, DEFAULT_ORGANIZATION, name)
    assert known is not None
    changes = {"address": {"city": "Paris", "country": "FR"}, "tax_ids": [{"type": "eu_vat", "value": "FR12345678901"}]}
    world.catalog.write(Customer.model_validate({**known.model_dump(), **changes, "email": None}), 1)
    world.use(name, "150000", at=APRIL)
    assert world.close(MAY).ok
    second = next(each for each in world.stripe_invoices(name) if each["id"] != first["id"])
    assert (second["customer_email"], second["customer_address"]["city"]) == (None, "Paris")
    assert [(each["type"], each["value"]) for each in second["customer_tax_ids"]] == [("eu_vat", "FR12345678901")]
    calls = world.changes()
    assert world.close(MAY).ok
    assert world.changes() == calls


def test_a_discount_of_the_customer_is_not_inherited(world: BillingWorld) -> None:
    """What the merchant's coupons take off elsewhere is not ours to take off: prices are what the product says."""
    given = world.at_stripe("POST", "/v1/customers", name="discounted")["id"]
    method = world.at_stripe("POST", "/v1/payment_methods/pm_card_visa/attach", customer=given)["id"]
    world.stripe.control("POST", f"customers/{given}/discount", {"percent_off": "50"})
    other = world.at_stripe("POST", "/v1/invoices", customer=given, currency="eur")
    assert len(other["discounts"]) == 1, "who does not say otherwise inherits it"
    invoice = billed(world, "discounted", stripe_customer_id=given, payment_method=method)
    assert (invoice.state, invoice.document()["amount_paid"]) == ("paid", "135.00")
    assert invoice.stripe is not None
    assert (invoice.stripe.subtotal_minor, invoice.stripe.total_minor) == (13500, 13500)
    (made,) = world.stripe_invoices("discounted")
    assert (made["discounts"], made["total_discount_amounts"]) == ([], [])
    assert world.stripe.charges()[made["id"]]["amount"] == 13500


def test_a_card_that_is_attached_already_is_taken(world: BillingWorld) -> None:
    """By an earlier run whose answer was lost, and whose key Stripe has forgotten."""
    given = world.at_stripe("POST", "/v1/customers", name="attached")["id"]
    method = world.at_stripe("POST", "/v1/payment_methods/pm_card_visa/attach", customer=given)["id"]
    world.stripe.fault("error", "POST", f"/v1/payment_methods/{method}/attach", message="already attached", status=400)
    assert billed(world, "attached", stripe_customer_id=given, payment_method=method).state == "paid"


def test_what_others_left_pending_for_a_customer_is_not_drawn_in(world: BillingWorld) -> None:
    """Items without an invoice, and discounts, of a customer that was given: our invoice says only what we say."""
    given = world.at_stripe("POST", "/v1/customers", name="pending")["id"]
    world.at_stripe("POST", "/v1/invoiceitems", customer=given, amount="999", currency="eur")
    billed(world, "pending", stripe_customer_id=given)
    (made,) = [each for each in world.stripe.requests("POST", "/v1/invoices") if each["params"]["customer"] == given]
    assert (made["params"]["discounts"], made["params"]["pending_invoice_items_behavior"]) == ("", "exclude")
    assert world.stripe_invoices("pending")[0]["subtotal"] == 13500


def test_every_call_of_these_flows_is_what_stripes_openapi_takes(world: BillingWorld, tmp_path: Path) -> None:
    with stripe_mock.serving(tmp_path / "mock.log") as address:
        assert stripe_mock.refused(world.stripe.requests(), address) == []
