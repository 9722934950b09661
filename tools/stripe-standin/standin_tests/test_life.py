"""The Stripe stand-in, driven through the official SDK: an invoice's whole life, and what goes wrong on the way."""

import secrets
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe
from stripe import StripeClient
from stripe_standin.child import StartFailed
from stripe_standin.process import StripeStandin
from stripe_standin.state import API_VERSION, Settings
from stripe_standin.webhooks import signature

from standin_tests.waiting import until

DAY = 86_400
DEFAULTS = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandin]:
    with StripeStandin(tmp_path_factory.mktemp("stripe")) as standin:
        yield standin


@pytest.fixture
def standin(running: StripeStandin) -> StripeStandin:
    """The module's stand-in, without faults and with default settings."""
    running.control("DELETE", "faults")
    running.control("DELETE", "requests")
    running.settings(**DEFAULTS)
    return running


def connect(standin: StripeStandin, account: str | None = None) -> StripeClient:
    return StripeClient(
        standin.api_key, base_addresses={"api": standin.address}, max_network_retries=0, stripe_account=account
    )


@pytest.fixture
def account() -> str:
    """An account of this test alone."""
    return f"acct_{secrets.token_hex(8)}"


@pytest.fixture
def client(standin: StripeStandin, account: str) -> Iterator[StripeClient]:
    client = connect(standin, account)
    yield client
    client._requestor._client.close()  # pyright: ignore


def customer(client: StripeClient, method: str | None = "pm_card_visa", **more: Any) -> stripe.Customer:
    """A customer with a default payment method."""
    made = client.v1.customers.create({"email": "a@example.com", **more})  # pyright: ignore
    if method is None:
        return made
    attached = client.v1.payment_methods.attach(method, {"customer": made.id})
    return client.v1.customers.update(made.id, {"invoice_settings": {"default_payment_method": attached.id}})


def draft(client: StripeClient, owner: stripe.Customer, *amounts: int, **more: Any) -> stripe.Invoice:
    """A draft with a line for every amount."""
    params: Any = {"customer": owner.id, "currency": "eur", "auto_advance": False, "discounts": "", **more}
    invoice = client.v1.invoices.create(params)
    for amount in amounts:
        client.v1.invoice_items.create({"customer": owner.id, "invoice": invoice.id, "amount": amount})
    return client.v1.invoices.retrieve(invoice.id)


def finalized(client: StripeClient, owner: stripe.Customer, *amounts: int, **more: Any) -> stripe.Invoice:
    return client.v1.invoices.finalize_invoice(draft(client, owner, *amounts, **more).id, {"auto_advance": True})


def event_types(client: StripeClient, object_id: str) -> list[str]:
    """Types of the events of one object, oldest first."""
    events = client.v1.events.list({"limit": 100}).data
    return [e.type for e in reversed(events) if e.data.object["id"] == object_id]


def words(metadata: Any) -> dict[str, str]:
    return metadata.to_dict()


def test_speaks_the_api_version_that_the_sdk_pins(standin: StripeStandin) -> None:
    assert stripe.api_version == API_VERSION
    assert httpx.get(f"{standin.address}/healthz").json()["api_version"] == API_VERSION


# A paid invoice


def test_draft_to_paid(client: StripeClient, standin: StripeStandin, account: str) -> None:
    owner = customer(client, name="Ada")
    invoice = draft(client, owner, 1000, 234, metadata={"invoice": "inv_1"})
    assert (invoice.status, invoice.subtotal, invoice.total, invoice.number) == ("draft", 1234, 1234, None)
    assert words(invoice.metadata) == {"invoice": "inv_1"}

    opened = client.v1.invoices.finalize_invoice(invoice.id, {"auto_advance": True})
    assert (opened.status, opened.amount_due, opened.amount_remaining) == ("open", 1234, 1234)
    assert opened.number == f"{owner.invoice_prefix}-0001"
    assert opened.hosted_invoice_url is not None
    assert opened.invoice_pdf is not None
    assert opened.attempted is False
    assert opened.status_transitions.finalized_at is not None

    paid = client.v1.invoices.pay(invoice.id, {"expand": ["payments"]})
    assert (paid.status, paid.amount_paid, paid.amount_remaining) == ("paid", 1234, 0)
    assert (paid.attempted, paid.attempt_count, paid.next_payment_attempt) == (True, 1, None)
    assert paid.payments is not None
    payment = paid.payments.data[0]
    assert (payment.status, payment.amount_paid) == ("paid", 1234)
    intent = client.v1.payment_intents.retrieve(str(payment.payment.payment_intent), {"expand": ["latest_charge"]})
    assert intent.status == "succeeded"
    assert isinstance(intent.latest_charge, stripe.Charge)
    assert intent.latest_charge.amount == 1234
    assert standin.charges(account)[invoice.id] == {"succeeded": 1, "failed": 0, "amount": 1234, "refunded": 0}
    assert event_types(client, invoice.id) == [
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]

    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        client.v1.invoices.pay(invoice.id)
    with pytest.raises(stripe.InvalidRequestError, match="already finalized"):
        client.v1.invoices.finalize_invoice(invoice.id)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be voided"):
        client.v1.invoices.void_invoice(invoice.id)
    assert standin.charges(account)[invoice.id]["succeeded"] == 1


def test_a_draft_that_is_paid_is_finalized_within_the_call(client: StripeClient) -> None:
    paid = client.v1.invoices.pay(draft(client, customer(client), 700).id)
    assert (paid.status, paid.amount_paid) == ("paid", 700)
    assert paid.status_transitions.finalized_at is not None


def test_numbers_count_per_customer(client: StripeClient) -> None:
    one, other = customer(client), customer(client)
    numbers = [finalized(client, owner, 500).number for owner in (one, one, other)]
    expected = [f"{one.invoice_prefix}-0001", f"{one.invoice_prefix}-0002", f"{other.invoice_prefix}-0001"]
    assert numbers == expected


def test_lines_are_paged_newest_first_and_the_invoice_embeds_ten(client: StripeClient) -> None:
    invoice = draft(client, customer(client), *range(1, 24))
    assert [line.amount for line in invoice.lines.data] == list(range(23, 13, -1))
    assert invoice.lines.has_more is True
    lines = [line.amount for line in client.v1.invoices.line_items.list(invoice.id, {"limit": 4}).auto_paging_iter()]
    assert lines == list(range(23, 0, -1))
    assert invoice.total == sum(range(1, 24))


def test_items_by_unit_amount_are_rounded_half_up_and_keep_period_and_metadata(client: StripeClient) -> None:
    owner = customer(client)
    invoice = draft(client, owner)
    item = client.v1.invoice_items.create(
        {
            "invoice": invoice.id,
            "unit_amount_decimal": Decimal("0.5"),
            "quantity": 3,
            "period": {"start": 1_700_000_000, "end": 1_702_592_000},
            "metadata": {"meter": "mtr_1"},
            "description": "calls",
        }
    )
    assert (item.amount, item.quantity, item.currency) == (2, 3, "eur")
    line = client.v1.invoices.retrieve(invoice.id).lines.data[0]
    assert (line.period.start, line.period.end) == (1_700_000_000, 1_702_592_000)
    assert (line.description, words(line.metadata)) == ("calls", {"meter": "mtr_1"})
    assert line.parent is not None
    assert line.parent.invoice_item_details is not None
    assert line.parent.invoice_item_details.invoice_item == item.id


def test_items_are_listed_changed_and_deleted_while_the_invoice_is_a_draft(client: StripeClient) -> None:
    owner = customer(client)
    invoice = draft(client, owner, 100, 200)
    items = client.v1.invoice_items.list({"invoice": invoice.id}).data
    assert [i.amount for i in items] == [200, 100]
    client.v1.invoice_items.update(items[0].id, {"amount": 250})
    client.v1.invoice_items.delete(items[1].id)
    assert client.v1.invoices.retrieve(invoice.id).total == 250
    client.v1.invoices.finalize_invoice(invoice.id)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.invoice_items.delete(items[0].id)
    assert refused.value.code == "invoice_not_editable"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.invoice_items.create({"customer": owner.id, "invoice": invoice.id, "amount": 1})
    assert refused.value.code == "invoice_not_editable"


def test_pending_items_join_an_invoice_only_when_asked(client: StripeClient) -> None:
    owner = customer(client)
    client.v1.invoice_items.create({"customer": owner.id, "amount": 900, "currency": "eur"})
    assert draft(client, owner, pending_invoice_items_behavior="exclude").total == 0
    assert draft(client, owner, pending_invoice_items_behavior="include").total == 900
    assert draft(client, owner, pending_invoice_items_behavior="include").total == 0


def test_currency_of_an_item_must_match(client: StripeClient) -> None:
    owner = customer(client)
    invoice = draft(client, owner)
    with pytest.raises(stripe.InvalidRequestError, match="currency"):
        client.v1.invoice_items.create({"customer": owner.id, "invoice": invoice.id, "amount": 1, "currency": "usd"})


def test_what_may_change_on_a_finalized_invoice(client: StripeClient) -> None:
    invoice = finalized(client, customer(client), 1000)
    assert words(client.v1.invoices.update(invoice.id, {"metadata": {"a": "1"}}).metadata) == {"a": "1"}
    with pytest.raises(stripe.InvalidRequestError, match="can't be updated") as refused:
        client.v1.invoices.update(invoice.id, {"description": "x"})
    assert refused.value.param == "description"
    with pytest.raises(stripe.InvalidRequestError, match="only delete draft"):
        client.v1.invoices.delete(invoice.id)


def test_a_refused_update_leaves_the_draft_as_it_was(client: StripeClient) -> None:
    invoice = draft(client, customer(client), 1000)
    with pytest.raises(stripe.InvalidRequestError, match="due_date"):
        client.v1.invoices.update(invoice.id, {"description": "changed", "days_until_due": 3})
    assert client.v1.invoices.retrieve(invoice.id).description is None
    assert event_types(client, invoice.id) == ["invoice.created"]


def test_a_deleted_draft_is_gone(client: StripeClient) -> None:
    invoice = draft(client, customer(client), 1000)
    assert client.v1.invoices.delete(invoice.id).deleted is True
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.invoices.retrieve(invoice.id)
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")


# Nothing, little, negative; the customer's balance


@pytest.mark.parametrize(
    #  balance, amounts,        status, amount_due, ending balance
    ("balance", "amounts", "status", "due", "ending"),
    [
        (0, [], "paid", 0, 0),
        (0, [0], "paid", 0, 0),
        (0, [49], "paid", 0, 49),
        (0, [50], "open", 50, 0),
        (49, [1], "open", 50, 0),
        (10, [30], "paid", 0, 40),
        (-300, [1000], "open", 700, 0),
        (-1000, [1000], "paid", 0, 0),
        (-5000, [1000], "paid", 0, -4000),
        (-980, [1000], "paid", 0, 20),
        (0, [1000, -1500], "paid", 0, -500),
    ],
)
def test_settlement(client: StripeClient, balance: int, amounts: list[int], status: str, due: int, ending: int) -> None:
    owner = customer(client)
    if balance:
        client.v1.customers.balance_transactions.create(owner.id, {"amount": balance, "currency": "eur"})
    invoice = finalized(client, owner, *amounts)
    assert (invoice.status, invoice.amount_due, invoice.amount_paid) == (status, due, 0)
    assert (invoice.starting_balance, invoice.ending_balance) == (balance, ending)
    assert client.v1.customers.retrieve(owner.id).balance == ending
    if status == "paid":
        assert (invoice.attempted, invoice.attempt_count) == (True, 0)


def test_void_returns_the_credit(client: StripeClient) -> None:
    owner = customer(client)
    client.v1.customers.balance_transactions.create(owner.id, {"amount": -300, "currency": "eur"})
    invoice = finalized(client, owner, 1000)
    voided = client.v1.invoices.void_invoice(invoice.id)
    assert (voided.status, voided.auto_advance) == ("void", False)
    assert client.v1.customers.retrieve(owner.id).balance == -300
    kinds = [t.type for t in client.v1.customers.balance_transactions.list(owner.id).data]
    assert kinds == ["unapplied_from_invoice", "applied_to_invoice", "adjustment"]
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.invoices.pay(invoice.id)


# Discount


def test_an_invoice_inherits_the_customers_discount_unless_it_is_told_not_to(
    client: StripeClient, standin: StripeStandin, account: str
) -> None:
    vat = client.v1.tax_rates.create({"display_name": "VAT", "percentage": 19, "inclusive": False})
    owner = customer(client)
    given = standin.control(
        "POST", f"customers/{owner.id}/discount", {"percent_off": "50", "coupon": "half", "account": account}
    )
    discount = client.v1.customers.retrieve(owner.id).discount
    assert discount is not None
    assert (discount.id, discount.source.coupon) == (given["id"], "half")

    params: Any = {"customer": owner.id, "currency": "eur", "default_tax_rates": [vat.id]}
    inheriting = client.v1.invoices.create(params)
    client.v1.invoice_items.create({"invoice": inheriting.id, "amount": 1001})
    client.v1.invoice_items.create({"invoice": inheriting.id, "amount": -100})  # not discountable
    seen = client.v1.invoices.retrieve(inheriting.id)
    amounts = [each.amount for each in seen.total_discount_amounts or ()]
    assert (seen.subtotal, amounts, seen.discounts) == (901, [501], [discount.id])
    assert seen.total == 400 + 76  # 95 - 19 of tax on 500 and -100
    assert [[each.amount for each in line.discount_amounts or ()] for line in seen.lines.data] == [[], [501]]

    plain = draft(client, owner, 1000, default_tax_rates=[vat.id])  # with discounts=""
    assert (plain.subtotal, plain.total, plain.discounts, plain.total_discount_amounts) == (1000, 1190, [], [])
    cleared: Any = client.v1.invoices.update(inheriting.id, {"discounts": ""})
    assert (cleared.total, cleared.discounts) == (901 + 171, [])

    client.v1.customers.delete_discount(owner.id)
    assert client.v1.customers.retrieve(owner.id).discount is None
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.delete_discount(owner.id)
    assert draft(client, owner, 1000).total == 1000


# Tax


def test_tax_rates(client: StripeClient) -> None:
    vat = client.v1.tax_rates.create({"display_name": "VAT", "percentage": 19, "inclusive": False})
    included = client.v1.tax_rates.create({"display_name": "MwSt", "percentage": 7, "inclusive": True})
    owner = customer(client)
    invoice = draft(client, owner, 1000, default_tax_rates=[vat.id])
    client.v1.invoice_items.create({"invoice": invoice.id, "amount": 1070, "tax_rates": [included.id]})
    invoice = client.v1.invoices.retrieve(invoice.id)
    assert (invoice.subtotal, invoice.total, invoice.total_excluding_tax) == (2070, 2260, 2000)
    assert invoice.subtotal_excluding_tax == 2000
    assert invoice.total_taxes is not None
    taxes = {t.tax_rate_details.tax_rate: (t.amount, t.taxable_amount, t.tax_behavior)  # pyright: ignore
             for t in invoice.total_taxes}  # fmt: skip
    assert taxes == {vat.id: (190, 1000, "exclusive"), included.id: (70, 1000, "inclusive")}


def test_automatic_tax(client: StripeClient, standin: StripeStandin) -> None:
    standin.settings(automatic_tax_percent="20")
    located = customer(client, address={"country": "DE"})
    invoice = finalized(client, located, 1000, automatic_tax={"enabled": True})
    assert (invoice.automatic_tax.status, invoice.subtotal, invoice.total) == ("complete", 1000, 1200)
    mixed = draft(client, located, automatic_tax={"enabled": True})
    for behavior in ("exclusive", "inclusive"):
        client.v1.invoice_items.create({"invoice": mixed.id, "amount": 600, "tax_behavior": behavior})
    mixed = client.v1.invoices.retrieve(mixed.id)
    assert (mixed.subtotal, mixed.total, mixed.total_excluding_tax) == (1200, 1320, 1100)


def test_automatic_tax_without_a_location_fails_to_finalize(client: StripeClient) -> None:
    invoice = draft(client, customer(client), 1000, automatic_tax={"enabled": True})
    assert invoice.automatic_tax.status == "requires_location_inputs"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.invoices.finalize_invoice(invoice.id)
    assert refused.value.code == "customer_tax_location_invalid"
    still = client.v1.invoices.retrieve(invoice.id)
    assert still.status == "draft"
    assert still.last_finalization_error is not None
    assert still.last_finalization_error.code == "customer_tax_location_invalid"
    assert "invoice.finalization_failed" in event_types(client, invoice.id)


# Cards


@pytest.mark.parametrize(
    ("method", "code", "decline_code"),
    [
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", None),
    ],
)
def test_a_declined_card_cannot_be_attached(
    client: StripeClient, method: str, code: str, decline_code: str | None
) -> None:
    owner = customer(client, None)
    with pytest.raises(stripe.CardError) as declined:
        client.v1.payment_methods.attach(method, {"customer": owner.id})
    assert (declined.value.http_status, declined.value.code) == (402, code)
    assert declined.value.error is not None
    assert getattr(declined.value.error, "decline_code", None) == decline_code
    assert client.v1.payment_methods.list({"customer": owner.id}).data == []


def test_tokens_make_payment_methods(client: StripeClient) -> None:
    made = client.v1.payment_methods.create({"type": "card", "card": {"token": "tok_mastercard"}})
    assert (made.customer, made.card and made.card.brand) == (None, "mastercard")
    owner = customer(client, None)
    attached = client.v1.payment_methods.attach(made.id, {"customer": owner.id})
    assert (attached.id, attached.customer) == (made.id, owner.id)
    other = customer(client, None)
    with pytest.raises(stripe.InvalidRequestError, match="already been attached"):
        client.v1.payment_methods.attach(made.id, {"customer": other.id})
    declined = client.v1.payment_methods.create({"type": "card", "card": {"token": "tok_chargeDeclined"}})
    with pytest.raises(stripe.CardError):
        client.v1.payment_methods.attach(declined.id, {"customer": owner.id})
    with pytest.raises(stripe.InvalidRequestError, match="No such token"):
        client.v1.payment_methods.create({"type": "card", "card": {"token": "tok_nonsense"}})
    assert [m.id for m in client.v1.customers.payment_methods.list(owner.id).data] == [made.id]


def test_without_a_payment_method_pay_is_refused_and_nothing_changes(client: StripeClient) -> None:
    invoice = finalized(client, customer(client, None), 1000)
    with pytest.raises(stripe.InvalidRequestError, match="default_payment_method") as refused:
        client.v1.invoices.pay(invoice.id)
    assert refused.value.http_status == 400
    assert client.v1.invoices.retrieve(invoice.id).attempted is False


def test_declined_then_retried_then_exhausted(client: StripeClient, standin: StripeStandin, account: str) -> None:
    standin.settings(retry_seconds=[3 * DAY, 5 * DAY])
    invoice = finalized(client, customer(client, "pm_card_chargeCustomerFail"), 1000)
    with pytest.raises(stripe.CardError) as declined:
        client.v1.invoices.pay(invoice.id)
    assert (declined.value.code, declined.value.http_status) == ("card_declined", 402)
    now = standin.control("GET", "clock")["now"]
    invoice = client.v1.invoices.retrieve(invoice.id)
    assert (invoice.status, invoice.attempted, invoice.attempt_count) == ("open", True, 1)
    assert invoice.next_payment_attempt == pytest.approx(now + 3 * DAY, abs=5)

    standin.advance(DAY)
    with pytest.raises(stripe.CardError):  # another try by hand, at another time, does not move the schedule
        client.v1.invoices.pay(invoice.id)
    again = client.v1.invoices.retrieve(invoice.id)
    assert (again.attempt_count, again.next_payment_attempt) == (1, invoice.next_payment_attempt)

    standin.advance(2 * DAY + 5)
    assert client.v1.invoices.retrieve(invoice.id).attempt_count == 2
    standin.advance(5 * DAY + 5)
    exhausted = client.v1.invoices.retrieve(invoice.id)
    assert (exhausted.status, exhausted.attempt_count) == ("open", 3)
    assert exhausted.next_payment_attempt is None
    assert standin.charges(account)[invoice.id] == {"succeeded": 0, "failed": 4, "amount": 0, "refunded": 0}
    assert event_types(client, invoice.id).count("invoice.payment_failed") == 4
    assert client.v1.customers.retrieve(str(invoice.customer)).delinquent is True


def test_a_retry_takes_the_new_default_card(client: StripeClient, standin: StripeStandin) -> None:
    owner = customer(client, "pm_card_chargeCustomerFail")
    invoice = finalized(client, owner, 1000)
    with pytest.raises(stripe.CardError):
        client.v1.invoices.pay(invoice.id)
    good = client.v1.payment_methods.attach("pm_card_visa", {"customer": owner.id})
    client.v1.customers.update(owner.id, {"invoice_settings": {"default_payment_method": good.id}})
    standin.advance(3 * DAY + 5)
    paid = client.v1.invoices.retrieve(invoice.id)
    assert (paid.status, paid.attempt_count, paid.amount_paid) == ("paid", 2, 1000)


def test_without_auto_advance_stripe_never_retries(client: StripeClient, standin: StripeStandin) -> None:
    owner = customer(client, "pm_card_chargeCustomerFail")
    invoice = client.v1.invoices.finalize_invoice(draft(client, owner, 1000).id, {"auto_advance": False})
    with pytest.raises(stripe.CardError):
        client.v1.invoices.pay(invoice.id)
    standin.advance(30 * DAY)
    same = client.v1.invoices.retrieve(invoice.id)
    assert (same.attempt_count, same.next_payment_attempt, same.status) == (1, None, "open")


def test_exhausted_retries_may_mark_uncollectible(client: StripeClient, standin: StripeStandin) -> None:
    standin.settings(retry_seconds=[], after_retries="uncollectible")
    invoice = finalized(client, customer(client, "pm_card_chargeCustomerFail"), 1000)
    standin.advance(3600 + 5)
    marked = client.v1.invoices.retrieve(invoice.id)
    assert marked.status == "uncollectible"
    assert event_types(client, invoice.id)[-1] == "invoice.marked_uncollectible"


def test_an_automatic_draft_is_finalized_and_charged_after_an_hour(
    client: StripeClient, standin: StripeStandin
) -> None:
    invoice = draft(client, customer(client), 1000, auto_advance=True)
    assert invoice.automatically_finalizes_at == invoice.created + 3601
    standin.advance(3500)
    assert client.v1.invoices.retrieve(invoice.id).status == "draft"
    standin.advance(110)
    paid = client.v1.invoices.retrieve(invoice.id)
    assert (paid.status, paid.status_transitions.finalized_at) == ("paid", invoice.created + 3601)


@pytest.mark.parametrize(("wait", "status"), [(0, "paid"), (3600, "open")])
def test_when_a_finalized_invoice_is_charged(
    client: StripeClient, standin: StripeStandin, wait: int, status: str
) -> None:
    standin.settings(first_attempt_seconds=wait)
    invoice = finalized(client, customer(client), 1000)
    assert invoice.status == status
    standin.advance(wait)
    assert client.v1.invoices.retrieve(invoice.id).status == "paid"


def test_send_invoice_becomes_overdue(client: StripeClient, standin: StripeStandin) -> None:
    owner = customer(client, None)
    invoice = finalized(client, owner, 1000, collection_method="send_invoice", days_until_due=7)
    assert invoice.due_date == invoice.created + 7 * DAY
    assert invoice.next_payment_attempt is None
    standin.advance(7 * DAY + 5)
    assert event_types(client, invoice.id)[-1] == "invoice.overdue"
    paid = client.v1.invoices.pay(invoice.id, {"paid_out_of_band": True})
    assert (paid.status, paid.attempted, paid.amount_paid) == ("paid", False, 1000)


@pytest.mark.parametrize(("outcome", "status"), [("succeeded", "paid"), ("failed", "open")])
def test_3d_secure(client: StripeClient, standin: StripeStandin, account: str, outcome: str, status: str) -> None:
    invoice = finalized(client, customer(client, "pm_card_authenticationRequired"), 1000)
    with pytest.raises(stripe.CardError) as required:
        client.v1.invoices.pay(invoice.id)
    assert required.value.code == "invoice_payment_intent_requires_action"
    assert "invoice.payment_action_required" in event_types(client, invoice.id)
    payment = client.v1.invoice_payments.list({"invoice": invoice.id}).data[0]
    intent = client.v1.payment_intents.retrieve(str(payment.payment.payment_intent))
    assert intent.status == "requires_action"
    standin.control("POST", f"payment_intents/{intent.id}/authenticate", {"outcome": outcome, "account": account})
    assert client.v1.invoices.retrieve(invoice.id).status == status


# After payment


def test_refund_and_dispute(client: StripeClient, standin: StripeStandin, account: str) -> None:
    invoice = client.v1.invoices.pay(finalized(client, customer(client), 1000).id, {"expand": ["payments"]})
    assert invoice.payments is not None
    intent = str(invoice.payments.data[0].payment.payment_intent)
    refund = client.v1.refunds.create({"payment_intent": intent, "amount": 400})
    assert (refund.status, refund.amount) == ("succeeded", 400)
    with pytest.raises(stripe.InvalidRequestError, match="greater than unrefunded"):
        client.v1.refunds.create({"payment_intent": intent, "amount": 601})
    standin.control("POST", "disputes", {"charge": refund.charge, "account": account})
    types = [e.type for e in client.v1.events.list({"types": ["refund.created", "charge.dispute.created"]}).data]
    assert types == ["charge.dispute.created", "refund.created"]
    assert standin.charges(account)[invoice.id]["refunded"] == 400


def test_credit_notes(client: StripeClient) -> None:
    owner = customer(client)
    opened = finalized(client, owner, 1000)
    note = client.v1.credit_notes.create({"invoice": opened.id, "amount": 300})
    assert (note.type, note.pre_payment_amount) == ("pre_payment", 300)
    assert client.v1.invoices.retrieve(opened.id).amount_remaining == 700
    paid = client.v1.invoices.pay(opened.id)
    assert (paid.amount_paid, paid.amount_remaining) == (700, 0)
    note = client.v1.credit_notes.create({"invoice": opened.id, "amount": 500, "credit_amount": 500})
    assert (note.type, note.post_payment_amount) == ("post_payment", 500)
    assert client.v1.customers.retrieve(owner.id).balance == -500
    with pytest.raises(stripe.InvalidRequestError, match="greater than what is left"):
        client.v1.credit_notes.create({"invoice": opened.id, "amount": 300, "credit_amount": 300})
    whole = finalized(client, customer(client), 1000)
    client.v1.credit_notes.create({"invoice": whole.id, "amount": 1000})
    assert client.v1.invoices.retrieve(whole.id).status == "paid"


# Finding things


def test_lists_are_filtered_and_paged_newest_first(client: StripeClient) -> None:
    owner, other = customer(client), customer(client, email="b@example.com")
    made = [draft(client, owner, 600).id for _ in range(5)]
    client.v1.invoices.finalize_invoice(made[0])
    assert draft(client, other).id not in made
    listed = client.v1.invoices.list({"customer": owner.id, "limit": 2})
    assert [i.id for i in listed.data] == [made[4], made[3]]
    assert listed.has_more is True
    assert [i.id for i in listed.auto_paging_iter()] == made[::-1]
    before = client.v1.invoices.list({"customer": owner.id, "ending_before": made[1], "limit": 2})
    assert [i.id for i in before.data] == [made[3], made[2]]
    assert [i.id for i in client.v1.invoices.list({"customer": owner.id, "status": "open"}).data] == [made[0]]
    future = {"customer": owner.id, "created": {"gt": 2**40}}
    assert client.v1.invoices.list(future).data == []  # pyright: ignore
    assert [c.id for c in client.v1.customers.list({"email": "b@example.com"}).data] == [other.id]
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.invoices.list({"limit": 101})
    assert refused.value.param == "limit"


def test_search_lags_by_a_minute(client: StripeClient, standin: StripeStandin) -> None:
    owner = customer(client)
    invoice = draft(client, owner, 600, metadata={"invoice": "inv_7"})
    query = f'metadata["invoice"]:"inv_7" AND customer:"{owner.id}"'
    assert client.v1.invoices.search({"query": query}).data == []
    standin.advance(61)
    assert [i.id for i in client.v1.invoices.search({"query": query}).data] == [invoice.id]
    assert client.v1.invoices.search({"query": 'metadata["invoice"]:"inv_8"'}).data == []


def test_accounts_are_apart(client: StripeClient, standin: StripeStandin) -> None:
    owner = customer(client)
    elsewhere = connect(standin, "acct_elsewhere")
    with pytest.raises(stripe.InvalidRequestError) as missing:
        elsewhere.v1.customers.retrieve(owner.id)
    assert missing.value.http_status == 404
    assert elsewhere.v1.customers.list().data == []
    with pytest.raises(stripe.PermissionError):
        connect(standin, "someone").v1.customers.list()


def test_expand(client: StripeClient) -> None:
    owner = customer(client)
    invoice = draft(client, owner)
    full = client.v1.invoices.retrieve(invoice.id, {"expand": ["customer.invoice_settings.default_payment_method"]})
    assert isinstance(full.customer, stripe.Customer)
    assert full.customer.invoice_settings is not None
    assert isinstance(full.customer.invoice_settings.default_payment_method, stripe.PaymentMethod)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        client.v1.invoices.retrieve(invoice.id, {"expand": ["nothing"]})


def test_tax_ids_of_a_customer(client: StripeClient) -> None:
    owner = customer(client)
    made = client.v1.customers.tax_ids.create(owner.id, {"type": "eu_vat", "value": "DE123456789"})
    assert (made.country, made.value) == ("DE", "DE123456789")
    assert [t.id for t in client.v1.customers.tax_ids.list(owner.id).data] == [made.id]
    invoice = finalized(client, owner, 1000)
    assert [(t.type, t.value) for t in invoice.customer_tax_ids or []] == [("eu_vat", "DE123456789")]
    client.v1.customers.tax_ids.delete(owner.id, made.id)
    assert len(client.v1.invoices.retrieve(invoice.id).customer_tax_ids or []) == 1  # as it was when it was issued


# What is refused


@pytest.mark.parametrize(
    ("method", "path", "form", "status", "code", "param"),
    [
        ("POST", "/v1/invoices", {"custmer": "x"}, 400, "parameter_unknown", "custmer"),
        ("POST", "/v1/invoices", {"automatic_tax[enable]": "true"}, 400, "parameter_unknown", "automatic_tax[enable]"),
        ("POST", "/v1/invoices", {}, 400, "parameter_missing", "customer"),
        ("POST", "/v1/invoices", {"customer": "cus_none"}, 400, "resource_missing", "customer"),
        ("POST", "/v1/invoices", {"auto_advance": "yes"}, 400, None, "auto_advance"),
        ("POST", "/v1/invoices", {"days_until_due": "1.5"}, 400, "parameter_invalid_integer", "days_until_due"),
        ("POST", "/v1/invoices", {"collection_method": "cash"}, 400, None, "collection_method"),
        ("POST", "/v1/invoices", {"auto_advance": ""}, 400, "parameter_invalid_empty", "auto_advance"),
        ("POST", "/v1/invoices", {"on_behalf_of": "acct_1"}, 400, None, "on_behalf_of"),
        ("POST", "/v1/invoices", {"metadata[k]": "v" * 501}, 400, None, "metadata[k]"),
        ("POST", "/v1/invoices", {"a[b": "x"}, 400, None, "a[b"),
        ("POST", "/v1/tax_rates", {"display_name": "x"}, 400, "parameter_missing", "inclusive"),
        ("POST", "/v1/invoices/in_none/pay", {}, 404, "resource_missing", "id"),
        ("GET", "/v1/invoices/in_none", {}, 404, "resource_missing", "invoice"),
        ("GET", "/v1/customers/cus_none", {}, 404, "resource_missing", "id"),
        ("GET", "/v1/nonsense", {}, 404, None, None),
    ],
)
def test_refusals(
    standin: StripeStandin,
    method: str,
    path: str,
    form: dict[str, str],
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    answer = httpx.request(
        method, standin.address + path, data=form or None, headers={"Authorization": f"Bearer {standin.api_key}"}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error.get("code"), error.get("param")) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("key", ["", "sk_live_123456789", "pk_test_1234", "nonsense"])
def test_keys_are_checked(standin: StripeStandin, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.get(f"{standin.address}/v1/customers", headers=headers)
    assert answer.status_code == 401
    assert "sk_live_123456789" not in answer.text
    assert httpx.get(f"{standin.address}/v1/customers", auth=("sk_test_abc", "")).status_code == 200


def test_another_api_version_is_refused(standin: StripeStandin) -> None:
    client = StripeClient(standin.api_key, base_addresses={"api": standin.address}, stripe_version="2020-08-27")
    with pytest.raises(stripe.InvalidRequestError, match="Invalid Stripe API version"):
        client.v1.customers.list()


# Idempotency


def test_the_same_key_replays(client: StripeClient, standin: StripeStandin) -> None:
    once = client.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-replay"})
    again = client.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-replay"})
    assert again.id == once.id
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert once.last_response is not None
    assert "Idempotent-Replayed" not in once.last_response.headers
    assert len(client.v1.customers.list().data) == 1
    assert [r["replayed"] for r in standin.requests("POST", "/v1/customers")] == [False, True]


def test_a_key_is_for_one_request(client: StripeClient) -> None:
    client.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-one"})
    with pytest.raises(stripe.IdempotencyError) as refused:
        client.v1.customers.create({"email": "y@example.com"}, {"idempotency_key": "k-one"})
    assert refused.value.http_status == 400
    with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
        client.v1.tax_rates.create(
            {"display_name": "x", "percentage": 1, "inclusive": False}, {"idempotency_key": "k-one"}
        )


def test_errors_of_an_endpoint_replay_and_validation_errors_do_not(
    client: StripeClient, standin: StripeStandin
) -> None:
    owner = customer(client, "pm_card_chargeCustomerFail")
    invoice = finalized(client, owner, 1000)
    for _ in range(2):
        with pytest.raises(stripe.CardError):
            client.v1.invoices.pay(invoice.id, {}, {"idempotency_key": "k-pay"})
    assert [r["replayed"] for r in standin.requests("POST", "/v1/invoices/*/pay")] == [False, True]
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.invoices.create({"custmer": "x"}, {"idempotency_key": "k-bad"})  # pyright: ignore
    made = client.v1.invoices.create({"customer": owner.id}, {"idempotency_key": "k-bad"})
    assert made.status == "draft"


def test_keys_are_forgotten_after_a_day(client: StripeClient, standin: StripeStandin) -> None:
    once = client.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-day"})
    standin.advance(DAY + 1)
    assert client.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-day"}).id != once.id


def test_a_key_in_flight_is_refused(client: StripeClient, standin: StripeStandin, account: str) -> None:
    standin.fault("delay", "POST", "/v1/customers", seconds=2.0)
    results: list[str] = []

    def first() -> None:
        other = connect(standin, account)
        results.append(other.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-flight"}).id)

    thread = threading.Thread(target=first)
    thread.start()
    until(lambda: len(standin.requests("POST", "/v1/customers")) == 1)
    with pytest.raises(stripe.StripeError) as refused:
        client.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-flight"})
    assert refused.value.http_status == 409
    thread.join()
    assert client.v1.customers.create({"email": "x@example.com"}, {"idempotency_key": "k-flight"}).id == results[0]


# Faults


@pytest.mark.parametrize(
    #  kind,           kept,  status of the 1st and 2nd try with one key, customers afterwards
    ("kind", "kept", "first", "second", "made"),
    [
        ("429", None, 429, 200, 1),
        ("429", True, 429, 429, 0),
        ("409", None, 409, 200, 1),
        ("500_before", None, 500, 500, 0),
        ("500_before", False, 500, 200, 1),
        ("500_after", None, 500, 500, 1),
        ("500_after", False, 500, 200, 2),
        ("reset_before", None, None, 200, 1),
        ("reset_after", None, None, 200, 1),
        ("timeout_before", None, None, 200, 1),
        ("timeout_after", None, None, 200, 1),
    ],
)
def test_faults(
    standin: StripeStandin, account: str, kind: str, kept: bool | None, first: int | None, second: int, made: int
) -> None:
    standin.fault(kind, "POST", "/v1/cust*", kept=kept, seconds=0.1)
    headers = {"Stripe-Account": account, "Authorization": f"Bearer {standin.api_key}"}

    def post() -> int | None:
        with httpx.Client(base_url=standin.address, headers=headers) as fresh:
            try:
                answer = fresh.post("/v1/customers", data={"email": "x@example.com"}, headers={"Idempotency-Key": "k"})
            except httpx.TransportError:
                return None
            return answer.status_code

    assert (post(), post()) == (first, second)
    listed = httpx.get(f"{standin.address}/v1/customers", headers=headers).json()
    assert len(listed["data"]) == made
    assert standin.control("GET", "faults")["data"][0]["hits"] == 1
    assert standin.requests("POST", "/v1/customers")[0]["fault"] == kind


def test_the_sdk_sees_faults_as_its_own_errors(client: StripeClient, standin: StripeStandin) -> None:
    standin.fault("reset_after", "POST", "/v1/invoices/*/finalize")
    invoice = draft(client, customer(client), 1000)
    with pytest.raises(stripe.APIConnectionError):
        client.v1.invoices.finalize_invoice(invoice.id, {}, {"idempotency_key": f"f-{invoice.id}"})
    again = client.v1.invoices.finalize_invoice(invoice.id, {}, {"idempotency_key": f"f-{invoice.id}"})
    assert (again.status, again.last_response and again.last_response.headers["Idempotent-Replayed"]) == (
        "open",
        "true",
    )
    standin.fault("429", "GET", "/v1/customers")
    with pytest.raises(stripe.RateLimitError):
        client.v1.customers.list()


def test_faults_skip_repeat_and_are_cleared(client: StripeClient, standin: StripeStandin) -> None:
    standin.fault("error", "GET", "/v1/customers", skip=1, times=2, status=403, message="no")
    outcomes: list[int] = []
    for _ in range(4):
        try:
            client.v1.customers.list()
            outcomes.append(200)
        except stripe.PermissionError:
            outcomes.append(403)
    assert outcomes == [200, 403, 403, 200]
    with pytest.raises(httpx.HTTPStatusError, match="kind"):
        standin.fault("nonsense")


def test_rate_limit(client: StripeClient, standin: StripeStandin) -> None:
    standin.settings(rate_limit_per_second=3)
    answers: list[int] = []
    for _ in range(10):
        try:
            client.v1.customers.list()
            answers.append(200)
        except stripe.RateLimitError as limited:
            answers.append(limited.http_status or 0)
    assert set(answers) == {200, 429}
    with pytest.raises(httpx.HTTPStatusError):
        standin.settings(rate_limit="x")


# State


def test_state_survives_a_kill(tmp_path: Path) -> None:
    with StripeStandin(tmp_path) as standin:
        client = connect(standin)
        owner = customer(client)
        paid = client.v1.invoices.pay(finalized(client, owner, 1000).id)
        waiting = finalized(client, customer(client), 2000)
        once = client.v1.customers.create({"email": "k@example.com"}, {"idempotency_key": "k"})
        standin.settings(search_lag_seconds=5)
        now = standin.advance(100)
        events = [e.id for e in client.v1.events.list({"limit": 100}).data]
        standin.kill()
        standin.start()
        assert client.v1.invoices.retrieve(paid.id).to_dict() == paid.to_dict()
        assert client.v1.customers.create({"email": "k@example.com"}, {"idempotency_key": "k"}).id == once.id
        assert [e.id for e in client.v1.events.list({"limit": 100}).data] == events
        assert standin.control("GET", "settings")["search_lag_seconds"] == 5
        assert now <= standin.control("GET", "clock")["now"] <= now + 30
        assert standin.charges()[paid.id]["succeeded"] == 1
        assert [i.id for i in client.v1.invoices.list().data] == [waiting.id, paid.id]
        standin.advance(3600)
        assert client.v1.invoices.retrieve(waiting.id).status == "paid"


def test_one_process_holds_the_state(tmp_path: Path) -> None:
    with StripeStandin(tmp_path), pytest.raises(StartFailed, match="locked"):
        StripeStandin(tmp_path, log_path=tmp_path / "second.log").start()


# Webhooks


class Receiver:
    """An HTTP endpoint that keeps what it gets and answers with the statuses in `answers`, then 200."""

    def __init__(self, *answers: int) -> None:
        self.got: list[tuple[str, bytes]] = []
        self._answers = list(answers)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.headers["Stripe-Signature"], body))
                self.send_response(receiver._answers.pop(0) if receiver._answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def types(self, secret: str) -> list[str]:
        return [stripe.Webhook.construct_event(body, sent, secret).type for sent, body in self.got]  # pyright: ignore


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_webhooks_are_signed_filtered_and_sent(
    client: StripeClient, standin: StripeStandin, receiver: Receiver
) -> None:
    endpoint = client.v1.webhook_endpoints.create(
        {"url": receiver.url, "enabled_events": ["invoice.paid", "customer.created"], "api_version": API_VERSION}
    )
    assert endpoint.secret is not None
    owner = customer(client)
    client.v1.invoices.pay(draft(client, owner, 1000).id)
    until(lambda: len(receiver.got) == 2)
    assert sorted(receiver.types(endpoint.secret)) == ["customer.created", "invoice.paid"]
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.types("whsec_other")
    until(lambda: standin.control("GET", "webhooks")["pending"] == 0)
    client.v1.webhook_endpoints.delete(endpoint.id)
    customer(client)
    assert client.v1.webhook_endpoints.list().data == []
    assert len(receiver.got) == 2
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["*"], "api_version": "2020-08-27"})


def test_webhooks_are_repeated_until_accepted(client: StripeClient, standin: StripeStandin) -> None:
    standin.settings(webhook_retry_seconds=0.05)
    receiver = Receiver(500, 302)
    client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["customer.created"]})
    customer(client, None)
    until(lambda: standin.control("GET", "webhooks")["pending"] == 0)
    assert len({body for _, body in receiver.got}) == 1
    assert len(receiver.got) == 3
    event = client.v1.events.list({"type": "customer.created"}).data[0]
    assert event.pending_webhooks == 0
    receiver.close()


def test_the_endpoint_of_the_command_line_hears_all_accounts(tmp_path: Path, receiver: Receiver) -> None:
    secret = "whsec_of_the_command_line"
    with StripeStandin(tmp_path, webhook_url=receiver.url, webhook_secret=secret) as standin:
        customer(connect(standin), None)
        customer(connect(standin, "acct_other"), None)
        until(lambda: len(receiver.got) == 2)
        accounts = {stripe.Webhook.construct_event(b, s, secret).to_dict().get("account") for s, b in receiver.got}  # pyright: ignore
        assert accounts == {None, "acct_other"}


def test_signature_is_what_the_sdk_expects() -> None:
    body = b'{"object":"event","type":"x","data":{"object":{}}}'
    sent = signature("whsec_1", body, int(time.time()))
    assert stripe.Webhook.construct_event(body, sent, "whsec_1").type == "x"  # pyright: ignore
