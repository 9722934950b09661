"""What the stand-in does of bank debits, the greatest amounts, balances by currency and addresses, as Stripe documents it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from stripe_standin.process import StripeStandin

DAY = 86_400
PAYMENTS = "payments.data.payment.payment_intent"


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandin]:
    with StripeStandin(tmp_path_factory.mktemp("stripe")) as running:
        yield running


def call(standin: StripeStandin, method: str, path: str, **fields: str) -> tuple[int, dict[str, Any]]:
    given: dict[str, Any] = {"params": fields} if method == "GET" else {"data": fields}
    headers = {"Authorization": f"Bearer {standin.api_key}"}
    answer = httpx.request(method, standin.address + path, headers=headers, trust_env=False, timeout=30, **given)
    return answer.status_code, answer.json()


def made(standin: StripeStandin, path: str, **fields: str) -> dict[str, Any]:
    status, answer = call(standin, "POST", path, **fields)
    assert status == 200, answer
    return answer


def owner_with(standin: StripeStandin, method: str) -> str:
    customer = made(standin, "/v1/customers", name=method, email="a@example.com")["id"]
    attached = made(standin, f"/v1/payment_methods/{method}/attach", customer=customer)["id"]
    made(standin, f"/v1/customers/{customer}", **{"invoice_settings[default_payment_method]": attached})
    return customer


def opened(standin: StripeStandin, customer: str, amount: int, currency: str = "eur") -> str:
    invoice = made(standin, "/v1/invoices", customer=customer, currency=currency)["id"]
    made(standin, "/v1/invoiceitems", customer=customer, invoice=invoice, amount=str(amount), currency=currency)
    return made(standin, f"/v1/invoices/{invoice}/finalize")["id"]


def shown(standin: StripeStandin, invoice: str) -> tuple[str, bool, str]:
    """Status of the invoice, whether a payment was attempted, status of the payment intent."""
    _, seen = call(standin, "GET", f"/v1/invoices/{invoice}", **{"expand[]": PAYMENTS})
    return seen["status"], seen["attempted"], seen["payments"]["data"][0]["payment"]["payment_intent"]["status"]


# fmt: off
DEBITS = [
    # payment method                        currency  after days      intent then
    ("pm_sepaDebit_success_de",             "eur",    "paid",         "succeeded"),
    ("pm_sepaDebit_failedDelayed_at",       "eur",    "open",         "requires_payment_method"),
    ("pm_usBankAccount_success",            "usd",    "paid",         "succeeded"),
    ("pm_usBankAccount_insufficientFunds",  "usd",    "open",         "requires_payment_method"),
    ("pm_usBankAccount_processing",         "usd",    "open",         "processing"),
    ("pm_bacsDebit_success",                "gbp",    "paid",         "succeeded"),
    ("pm_auBecsDebit_debitNotAuthorized",   "aud",    "open",         "requires_payment_method"),
]
# fmt: on


@pytest.mark.parametrize(("method", "currency", "status", "intent"), DEBITS)
def test_a_debit_is_answered_days_later(
    standin: StripeStandin, method: str, currency: str, status: str, intent: str
) -> None:
    invoice = opened(standin, owner_with(standin, method), 13_500, currency)
    answer = made(standin, f"/v1/invoices/{invoice}/pay")
    assert (answer["status"], answer["attempted"], answer["next_payment_attempt"]) == ("open", True, None)
    assert shown(standin, invoice) == ("open", True, "processing")
    refused = [call(standin, "POST", f"/v1/invoices/{invoice}/{what}")[0] for what in ("pay", "void")]
    assert refused == [400, 400]
    standin.advance(4 * DAY)
    assert shown(standin, invoice) == (status, True, intent)


def test_a_debit_takes_one_currency(standin: StripeStandin) -> None:
    invoice = opened(standin, owner_with(standin, "pm_sepaDebit_success_de"), 1000, "usd")
    status, answer = call(standin, "POST", f"/v1/invoices/{invoice}/pay")
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert shown(standin, invoice) == ("open", False, "requires_payment_method")


# fmt: off
AMOUNTS = [
    # payment method              currency  amount          taken
    ("pm_sepaDebit_success_de",   "eur",    99_999_999,     True),
    ("pm_sepaDebit_success_de",   "eur",    100_000_000,    False),
    ("pm_card_amex",              "eur",    999_999_999,    True),
    ("pm_card_amex",              "eur",    1_000_000_000,  False),
    ("pm_card_visa",              "eur",    1_000_000_000,  True),
]
# fmt: on


@pytest.mark.parametrize(("method", "currency", "amount", "taken"), AMOUNTS)
def test_the_greatest_amount(standin: StripeStandin, method: str, currency: str, amount: int, taken: bool) -> None:
    invoice = opened(standin, owner_with(standin, method), amount, currency)
    status, answer = call(standin, "POST", f"/v1/invoices/{invoice}/pay")
    assert (status, answer.get("error", {}).get("code")) == ((200, None) if taken else (400, "amount_too_large"))


def test_a_credit_in_one_currency_pays_no_invoice_in_another(standin: StripeStandin) -> None:
    customer = owner_with(standin, "pm_card_visa")
    for currency, amount in (("usd", "-2000"), ("eur", "-700")):
        made(standin, f"/v1/customers/{customer}/balance_transactions", amount=amount, currency=currency)
    assert made(standin, f"/v1/invoices/{opened(standin, customer, 1000)}/pay")["amount_paid"] == 300
    assert made(standin, f"/v1/invoices/{opened(standin, customer, 1000)}/pay")["amount_paid"] == 1000
    # What is too small to be charged is carried on in its own currency.
    assert call(standin, "GET", f"/v1/invoices/{opened(standin, customer, 30)}")[1]["status"] == "paid"
    _, seen = call(standin, "GET", f"/v1/customers/{customer}", **{"expand[]": "invoice_credit_balance"})
    assert (seen["balance"], seen["invoice_credit_balance"]) == (-2000, {"eur": 30, "usd": -2000})


def test_an_unknown_parameter_is_refused_wherever_it_stands(standin: StripeStandin) -> None:
    for path, fields in (
        ("/v1/customers?nothing=1", {}),
        ("/v1/customers", {"invoice_settings[nothing]": "1"}),
        ("/v1/customers", {"tax_id_data[0][type]": "eu_vat", "tax_id_data[0][value]": "DE1", "tax_id_data[0][x]": "1"}),
    ):
        status, answer = call(standin, "POST", path, **fields)
        assert (status, answer["error"]["code"]) == (400, "parameter_unknown"), answer


@pytest.mark.parametrize("email", ["a@b..c", "@b.example", "a b@c.example", ".a@b.example"])
def test_an_address_that_can_be_nobodys_is_refused(standin: StripeStandin, email: str) -> None:
    status, answer = call(standin, "POST", "/v1/customers", email=email)
    assert (status, answer["error"]["code"]) == (400, "email_invalid")


def test_a_sent_invoice_needs_an_address(standin: StripeStandin) -> None:
    customer = made(standin, "/v1/customers", name="unreachable")["id"]
    sent = {"collection_method": "send_invoice", "days_until_due": "30", "currency": "eur"}
    status, answer = call(standin, "POST", "/v1/invoices", customer=customer, **sent)
    assert (status, answer["error"]["message"].split(".")[0]) == (400, "Missing email")


def test_the_account_is_another_one_with_another_state(
    standin: StripeStandin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = call(standin, "GET", "/v1/account")[1]["id"]
    assert call(standin, "GET", "/v1/account")[1]["id"] == own
    with StripeStandin(tmp_path_factory.mktemp("other")) as other:
        assert call(other, "GET", "/v1/account")[1]["id"] != own
