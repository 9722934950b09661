"""Every call that billing can make, on Stripe's own stripe-mock: taken as it is, and its answer understood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stripe_standin import stripe_mock

from billing_job.invoice.due import DueCycle
from billing_job.invoice.pricing import PricedBy, fixed_invoice
from billing_job.stripe.api import Json, StripeApi
from billing_job.stripe.objects import (
    credit_note_params,
    customer_params,
    invoice_params,
    item_params,
    seen_adjustment,
    seen_invoice,
)
from ledger.invoice import Attempt
from ledger.snapshot import InvoiceFixed, Seller
from schemas.customer import Customer
from schemas.period import Cycle
from schemas.product import Product
from schemas.settings import Settings
from schemas.watermark import Watermark

MONTH = Cycle(1_772_323_200_000_000, 1_775_001_600_000_000)
CUSTOMER = Customer.model_validate(
    {
        "id": "c",
        "organization_id": "default",
        "created_at": 0,
        "name": "C",
        "email": "c@example.com",
        "address": {"line1": "1", "city": "B", "postal_code": "1", "country": "DE"},
        "tax_ids": [{"type": "eu_vat", "value": "DE123456789"}],
    }
)


def fixed(**seller: Any) -> InvoiceFixed:
    due = DueCycle("inv_1", "default", "c", "sub_1", "prod_1", MONTH, MONTH.end_us, MONTH.end_us)
    product = Product.model_validate(
        {
            "id": "prod_1",
            "organization_id": "default",
            "created_at": 0,
            "name": "P",
            "currency": "eur",
            "prices": [{"model": "flat_fee", "amount": "49.00"}],
        }
    )
    return fixed_invoice(
        due,
        priced_by=PricedBy(product, {}),
        quantities={},
        watermark=Watermark(1, {0: 1}).as_json(),
        seller=Seller(seller.pop("collection_method", "charge_automatically"), **seller),
        time_zone="UTC",
        now_us=MONTH.end_us,
        writer="w",
    )


SENT: dict[str, Any] = {"collection_method": "send_invoice", "days_until_due": 30}
RATED: dict[str, Any] = {"tax_mode": "rates", "tax_rates": ("txr_1",)}
SELLERS: tuple[dict[str, Any], ...] = ({}, SENT, RATED, {"tax_mode": "stripe_automatic"})
ONCE: dict[str, Any] = {"may_have_run": False}

CALLS: dict[str, Callable[[StripeApi], object]] = {
    "invoice": lambda api: api.invoice("in_1", None),
    "invoices_of": lambda api: api.invoices_of("cus_1", "acct_1"),
    "items_of": lambda api: api.items_of("in_1", None),
    "customer": lambda api: api.customer("cus_1", None),
    "owner": lambda api: api.owner,
    "account": lambda api: api.account("acct_1"),
    "tax_rate": lambda api: api.tax_rate("txr_1", None),
    "customers_since": lambda api: api.customers_since(1, None),
    "credit_note": lambda api: api.credit_note("cn_1", None),
    "credit_notes_of": lambda api: api.credit_notes_of("in_1", None),
    "refund": lambda api: api.refund("re_1", None),
    "charge": lambda api: api.charge("ch_1", None),
    "dispute": lambda api: api.dispute("dp_1", None),
    "payments_of": lambda api: api.payments_of("pi_1", None),
    "events_since": lambda api: api.events_since(1, ("refund.created", "credit_note.created"), None),
    "payment_method": lambda api: api.payment_method("pm_1", None),
    "tax_ids_of": lambda api: api.tax_ids_of("cus_1", None),
    "create_customer": lambda api: api.create_customer(customer_params(CUSTOMER), None, "k", **ONCE),
    "update_customer": lambda api: api.update_customer(
        "cus_1", {"invoice_settings": {"default_payment_method": "pm_1"}}, None, "k"
    ),
    "create_tax_id": lambda api: api.create_tax_id("cus_1", {"type": "eu_vat", "value": "DE123456789"}, None, "k"),
    "delete_tax_id": lambda api: api.delete_tax_id("cus_1", "txi_1", None),
    "create_payment_method": lambda api: api.create_payment_method(
        {"type": "card", "card": {"token": "tok_visa"}}, None, "k"
    ),
    "attach_payment_method": lambda api: api.attach_payment_method("pm_1", "cus_1", None, "k"),
    "detach_payment_method": lambda api: api.detach_payment_method("pm_1", None, "k"),
    "create_invoice": lambda api: [
        api.create_invoice(invoice_params(fixed(**seller), "cus_1"), None, "k", **ONCE) for seller in SELLERS
    ],
    "create_item": lambda api: [
        api.create_item(item_params(fixed(tax_mode=mode), 0, "in_1", "cus_1"), None, "k", **ONCE)
        for mode in ("none", "stripe_automatic")
    ],
    "finalize": lambda api: api.finalize("in_1", None, "k", **ONCE),
    "pay": lambda api: api.pay("in_1", None, "k", **ONCE),
    "void": lambda api: api.void("in_1", None, "k", **ONCE),
    "create_credit_note": lambda api: [
        api.create_credit_note(credit_note_params("in_1", 1, begun), None, "k", **ONCE)
        for begun in (
            Attempt(1, "intent", 0, amount_minor=1, memo="m"),
            Attempt(1, "intent", 0, amount_minor=1, target="balance"),
            Attempt(1, "intent", 0, amount_minor=1, target="refund"),
        )
    ],
    "delete_invoice": lambda api: api.delete_invoice("in_1", None),
    "delete_item": lambda api: api.delete_item("ii_1", None),
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeApi]:
    with stripe_mock.serving(tmp_path_factory.mktemp("mock") / "mock.log") as address:
        settings = Settings(stripe_api_base=address, stripe_retry_seconds=0.5)  # pyright: ignore[reportCallIssue]
        with StripeApi(settings) as opened:
            yield opened


def test_all_calls_are_here() -> None:
    public = {name for name in vars(StripeApi) if not name.startswith("_") and name != "close"}
    assert CALLS.keys() == public


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_what_stripes_openapi_takes(api: StripeApi, name: str) -> None:
    CALLS[name](api)


def test_what_stripe_answers_is_understood(api: StripeApi) -> None:
    invoice = seen_invoice(api.invoice("in_1", None), 5)
    assert (invoice.status, invoice.seen_at) == ("draft", 5)
    things: list[Json] = [api.credit_note("cn_1", None), api.refund("re_1", None), api.dispute("dp_1", None)]
    seen = [seen_adjustment(thing, fixed(), 5, "w") for thing in things]
    assert [each.adjustment for each in seen] == ["credit_note", "refund", "dispute"]
    assert all(each.amount_minor > 0 and each.currency for each in seen)
