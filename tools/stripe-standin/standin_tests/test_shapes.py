"""Every object of the stand-in has the keys and types that Stripe's own stripe-mock gives it for the same call."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from stripe_standin import stripe_mock
from stripe_standin.process import StripeStandin

Json = dict[str, Any]

OURS_ONLY = {
    # Optional in Stripe's schema, left out of stripe-mock's example:
    "pricing.price_details": "the price and product of a line",
    "payment.payment_intent": "an invoice payment by payment intent",
    "webhook_endpoint.secret": "shown at creation only",
    "search_result.next_page": "shown while there are more pages",
}
MOCK_ONLY = {
    "charge.refunds": "shown on demand since 2022-11-15, but still in the example",
    "search_result.total_count": "shown on demand",
}
UNSPECIFIED = ("metadata", "shipping", "customer_shipping", "fraud_details", "evidence", "use_stripe_sdk")
"""Objects that stripe-mock shows empty, or whose names are the user's own."""

READ = {
    # What the product reads must be there, whatever the example leaves out.
    "invoice": "id status number currency customer metadata subtotal total total_excluding_tax total_taxes amount_due"
    " amount_paid amount_remaining starting_balance ending_balance hosted_invoice_url invoice_pdf auto_advance"
    " attempted attempt_count next_payment_attempt due_date status_transitions lines last_finalization_error created",
    "customer": "id email name metadata balance currency invoice_settings address created",
    "payment_method": "id type customer card",
    "invoiceitem": "id amount currency customer invoice period description metadata",
    "line_item": "id amount currency description period metadata taxes",
    "event": "id type created data pending_webhooks request api_version livemode",
    "charge": "id amount status payment_intent failure_code",
    "credit_note": "id amount invoice number status",
}


class Both:
    """Makes a call of the stand-in and of stripe-mock, and keeps both answers."""

    def __init__(self, standin: StripeStandin, mock: str) -> None:
        self.standin = standin
        self._clients = [
            httpx.Client(base_url=base, auth=(standin.api_key, ""), trust_env=False) for base in (standin.address, mock)
        ]
        self.answers: dict[str, tuple[Json, Json]] = {}

    def call(self, name: str, method: str, path: str, form: dict[str, str] | None = None) -> Json:
        ours, mocks = (
            client.request(method, path, data=form or None, headers=_form(method)) for client in self._clients
        )
        assert ours.status_code == 200, (name, ours.text)
        assert mocks.status_code == 200, (name, mocks.text)  # it refuses what Stripe's OpenAPI does not know
        assert name not in self.answers
        self.answers[name] = ours.json(), mocks.json()
        return ours.json()

    def close(self) -> None:
        for client in self._clients:
            client.close()


def _form(method: str) -> dict[str, str]:
    return {"Content-Type": "application/x-www-form-urlencoded"} if method == "POST" else {}


def scenario(both: Both) -> None:
    """Meets every kind of object in most of its states."""
    made = both.call("customer", "POST", "/v1/customers", {"email": "a@b.c", "address[country]": "DE", "shipping[name]": "A",
                     "shipping[address][city]": "B"})  # fmt: skip
    cus = f"/v1/customers/{made['id']}"
    both.call("tax_id", "POST", f"{cus}/tax_ids", {"type": "eu_vat", "value": "DE123456789"})
    both.call("tax_ids", "GET", f"{cus}/tax_ids")
    both.call("balance", "POST", f"{cus}/balance_transactions", {"amount": "-10", "currency": "eur"})
    both.call("balances", "GET", f"{cus}/balance_transactions")
    method = both.call("attached", "POST", "/v1/payment_methods/pm_card_visa/attach", {"customer": made["id"]})
    both.call("token", "POST", "/v1/payment_methods", {"type": "card", "card[token]": "tok_visa"})
    both.call("methods", "GET", f"/v1/payment_methods?customer={made['id']}&type=card")
    both.call("default", "POST", cus, {"invoice_settings[default_payment_method]": method["id"]})
    both.call("customers", "GET", "/v1/customers?email=a@b.c")
    rate = both.call("rate", "POST", "/v1/tax_rates", {"display_name": "VAT", "percentage": "19", "inclusive": "false"})
    both.call("rates", "GET", "/v1/tax_rates")

    form = {
        "customer": made["id"],
        "currency": "eur",
        "auto_advance": "false",
        "pending_invoice_items_behavior": "exclude",
        "discounts": "",
        "metadata[invoice]": "inv_1",
        "default_tax_rates[0]": rate["id"],
    }
    draft = both.call("draft", "POST", "/v1/invoices", form)
    inv = f"/v1/invoices/{draft['id']}"
    line = {"customer": made["id"], "invoice": draft["id"], "amount": "10000", "currency": "eur", "period[start]": "1",
            "period[end]": "2"}  # fmt: skip
    item = both.call("item", "POST", "/v1/invoiceitems", line)
    both.call("items", "GET", f"/v1/invoiceitems?invoice={draft['id']}")
    both.call("item again", "GET", f"/v1/invoiceitems/{item['id']}")
    both.call("lines", "GET", f"{inv}/lines?limit=100")
    both.call("draft updated", "POST", inv, {"metadata[a]": "b"})
    both.call("open", "POST", f"{inv}/finalize", {"auto_advance": "true"})
    both.call("paid", "POST", f"{inv}/pay", {})
    both.call("with payments", "GET", f"{inv}?expand[]=payments")
    both.call("invoices", "GET", f"/v1/invoices?customer={made['id']}&limit=100")
    payment = both.call("payments", "GET", f"/v1/invoice_payments?invoice={draft['id']}")["data"][0]
    intent = both.call("intent", "GET", f"/v1/payment_intents/{payment['payment']['payment_intent']}")
    charge = both.call("charge", "GET", f"/v1/charges/{intent['latest_charge']}")
    dispute = both.standin.control("POST", "disputes", {"charge": charge["id"]})
    both.call("dispute", "GET", f"/v1/disputes/{dispute['id']}")
    both.call("refund", "POST", "/v1/refunds", {"charge": charge["id"], "amount": "100"})
    both.call(
        "credit note", "POST", "/v1/credit_notes", {"invoice": draft["id"], "amount": "50", "refund_amount": "50"}
    )
    both.call("credit notes", "GET", f"/v1/credit_notes?invoice={draft['id']}")
    both.call("found", "GET", "/v1/invoices/search?query=metadata['invoice']:'inv_1'")
    both.call("events", "GET", "/v1/events?type=customer.created")
    hook = {"url": "https://example.com/hook", "enabled_events[0]": "invoice.paid"}
    both.call("endpoint", "POST", "/v1/webhook_endpoints", hook)
    both.call("endpoints", "GET", "/v1/webhook_endpoints")

    other = both.call("failing", "POST", "/v1/customers", {"payment_method": "pm_card_chargeCustomerFail",
                      "invoice_settings[default_payment_method]": "pm_card_chargeCustomerFail",
                      "email": "other@example.com"})  # fmt: skip
    for name, ending in (("void", "void"), ("uncollectible", "mark_uncollectible")):
        draft = both.call(f"{name} draft", "POST", "/v1/invoices", {"customer": other["id"], "currency": "eur"})
        unpaid = {"customer": other["id"], "invoice": draft["id"], "amount": "500"}
        both.call(f"{name} item", "POST", "/v1/invoiceitems", unpaid)
        both.call(f"{name} open", "POST", f"/v1/invoices/{draft['id']}/finalize", {})
        both.call(name, "POST", f"/v1/invoices/{draft['id']}/{ending}", {})
    both.call("sent", "POST", "/v1/invoices", {"customer": other["id"], "collection_method": "send_invoice",
              "days_until_due": "30", "automatic_tax[enabled]": "true"})  # fmt: skip
    gone = both.call("deleting", "POST", "/v1/invoices", {"customer": other["id"]})
    both.call("deleted", "DELETE", f"/v1/invoices/{gone['id']}")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    directory = tmp_path_factory.mktemp("shapes")
    with StripeStandin(directory / "standin") as standin, stripe_mock.serving(directory / "mock.log") as mock:
        both = Both(standin, mock)
        scenario(both)
        yield both
        both.close()


def kind(value: object) -> str:
    """The JSON type; whole and broken numbers are one."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def differences(ours: Any, mocks: Any, path: str) -> list[str]:
    """What is of another type, or of one side only. null fits everything: it says that a value may be absent."""
    if ours is None or mocks is None:
        return []
    if kind(ours) != kind(mocks):
        return [f"{path}: {kind(ours)}, stripe-mock has {kind(mocks)}"]
    if isinstance(ours, list):
        return differences(ours[0], mocks[0], path) if ours and mocks else []
    if not isinstance(ours, dict) or path.rpartition(".")[2] in UNSPECIFIED:
        return []
    here = f"{path}.{ours['object']}" if "object" in ours else path
    found = [f"{here}.{key}: ours only" for key in ours.keys() - mocks.keys() if not _allowed(here, key, OURS_ONLY)]
    found += [f"{here}.{key}: missing" for key in mocks.keys() - ours.keys() if not _allowed(here, key, MOCK_ONLY)]
    if ours.get("object") == "event":
        return found  # an example of another type of event: its object can't be compared
    return found + [
        d for key in ours.keys() & mocks.keys() for d in differences(ours[key], mocks[key], f"{here}.{key}")
    ]


def _allowed(path: str, key: str, names: dict[str, str]) -> bool:
    return any(f"{path}.{key}".endswith(f".{name}") for name in names)


def test_shapes(both: Both) -> None:
    found = [d for name, (ours, mocks) in both.answers.items() for d in differences(ours, mocks, name)]
    assert found == []
    kinds = {o["object"] for ours, _ in both.answers.values() for o in [ours, *ours.get("data", [])]}
    assert kinds >= READ.keys() | {"tax_id", "tax_rate", "refund", "payment_intent", "invoice_payment", "search_result"}


@pytest.mark.parametrize("name", READ)
def test_what_the_product_reads_is_there(both: Both, name: str) -> None:
    objects = [o for ours, _ in both.answers.values() for o in [ours, *ours.get("data", [])]]
    shown = [o for o in objects if o["object"] == name and not o.get("deleted")]
    assert shown
    for each in shown:
        assert set(READ[name].split()) <= each.keys()


def test_the_comparison_sees_a_difference() -> None:
    ours = {"object": "x", "a": 1, "b": {"c": "text"}, "only": 1}
    mocks = {"object": "x", "a": "1", "b": {"c": "text", "d": None}}
    assert sorted(differences(ours, mocks, "n")) == [
        "n.x.a: number, stripe-mock has str",
        "n.x.b.d: missing",
        "n.x.only: ours only",
    ]
