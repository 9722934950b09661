"""Parameters for Stripe and what is kept of its objects; its errors told certain from unknown."""

from __future__ import annotations

from typing import Any

import pytest
import stripe
from pydantic import SecretStr

from billing_job.stripe.errors import (
    IdempotencyMisuse,
    StripeDeclined,
    StripeFailure,
    StripeRefused,
    StripeReplayed,
    StripeUnknown,
    classify,
)
from billing_job.stripe.objects import (
    API_VERSION,
    credit_note_params,
    customer_call_key,
    customer_changes,
    customer_params,
    details_digest,
    invoice_params,
    item_params,
    of_invoice,
    seen_adjustment,
    seen_invoice,
)
from billing_job.stripe.rate import calls_per_second
from ledger.invoice import Attempt
from ledger.snapshot import InvoiceFixed, Line, Seller
from schemas.customer import Customer, TaxId
from schemas.period import parse_rfc3339
from schemas.settings import Settings

us = parse_rfc3339


def fixed(**seller: Any) -> InvoiceFixed:
    seller.setdefault("collection_method", "charge_automatically")
    line = Line("mtr_1", 0, "per_unit", "Calls: 10 calls", "10", "0", "10", "1.00", 100)
    return InvoiceFixed(
        invoice_id="inv_1",
        organization_id="default",
        customer_id="c",
        subscription_id="sub_1",
        revision=1,
        cycle_start=us("2026-03-01T00:00:00Z"),
        cycle_end=us("2026-04-01T00:00:00Z"),
        active_until=us("2026-03-20T00:00:00Z"),
        time_zone="UTC",
        currency="eur",
        lines=(line,),
        total="1.00",
        total_minor=100,
        watermark={"epoch": 1, "offsets": {}},
        product={},
        meters=(),
        seller=Seller(**seller),
        hash="h" * 64,
        fixed_at=0,
    )


def test_one_version_is_pinned() -> None:
    from stripe._api_version import _ApiVersion  # pyright: ignore[reportPrivateUsage]

    assert _ApiVersion.CURRENT == API_VERSION


def test_a_draft_neither_advances_nor_takes_in_what_is_pending() -> None:
    params = invoice_params(fixed(), "cus_1")
    assert params["auto_advance"] is False
    assert params["pending_invoice_items_behavior"] == "exclude"
    assert params["discounts"] == ""
    assert params["automatic_tax"] == {"enabled": False}
    assert params["metadata"]["usage_invoice_id"] == "inv_1"
    assert params["metadata"]["usage_hash"] == "h" * 64
    assert params["metadata"]["usage_cycle_start"] == "2026-03-01T00:00:00Z"
    assert len(params["metadata"]) <= 50
    assert all(len(value) <= 500 for value in params["metadata"].values())
    assert "days_until_due" not in params


@pytest.mark.parametrize(
    ("seller", "expected"),
    [
        ({"tax_mode": "stripe_automatic"}, {"automatic_tax": {"enabled": True}}),
        ({"tax_mode": "rates", "tax_rates": ("txr_1",)}, {"default_tax_rates": ["txr_1"]}),
        (
            {"collection_method": "send_invoice", "days_until_due": 30},
            {"collection_method": "send_invoice", "days_until_due": 30},
        ),
    ],
)
def test_tax_and_collection_are_said_explicitly(seller: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected.items() <= invoice_params(fixed(**seller), "cus_1").items()


def test_an_item_is_an_integer_over_the_time_billed() -> None:
    params = item_params(fixed(), 0, "in_1", "cus_1")
    assert (params["amount"], params["currency"], params["invoice"]) == (100, "eur", "in_1")
    assert params["period"] == {"start": 1772323200, "end": 1773964800}
    assert params["metadata"] == {"usage_invoice_id": "inv_1", "usage_line": "0"}
    assert "tax_behavior" not in params
    assert item_params(fixed(tax_mode="stripe_automatic"), 0, "in_1", "cus_1")["tax_behavior"] == "exclusive"


def test_a_customer_is_passed_on_whole() -> None:
    customer = Customer.model_validate(
        {
            "id": "c",
            "organization_id": "default",
            "created_at": 0,
            "name": "C",
            "email": "c@example.com",
            "address": {"country": "DE", "city": "Berlin"},
            "tax_ids": [{"type": "eu_vat", "value": "DE123456789"}],
        }
    )
    assert customer_params(customer) == {
        "name": "C",
        "email": "c@example.com",
        "address": {"country": "DE", "city": "Berlin"},
        "tax_id_data": [{"type": "eu_vat", "value": "DE123456789"}],
        "metadata": {"usage_organization_id": "default", "usage_customer_id": "c"},
    }


def test_what_is_gone_of_a_customer_is_cleared() -> None:
    base = {"id": "c", "organization_id": "default", "created_at": 0, "name": "C"}
    here = Customer.model_validate({**base, "address": {"city": "Berlin"}, "email": "c@example.com"})
    gone = Customer.model_validate(base)
    assert customer_changes(gone) == {"name": "C", "email": "", "address": ""}
    assert customer_changes(here)["address"]["city"] == "Berlin"
    assert customer_changes(here)["address"]["line1"] == ""
    taxed = here.model_copy(update={"tax_ids": (TaxId(type="eu_vat", value="DE123456789"),)})
    assert len({details_digest(each) for each in (here, gone, taxed)}) == 3
    assert details_digest(here) == details_digest(here.model_copy(update={"payment_method": "pm_card_visa"}))


@pytest.mark.parametrize(
    ("target", "more"), [(None, {}), ("balance", {"credit_amount": 5}), ("refund", {"refund_amount": 5})]
)
def test_a_credit_note_says_where_the_money_goes(target: Any, more: dict[str, int]) -> None:
    begun = Attempt(1, "intent", 0, amount_minor=5, target=target, memo="outage")
    params = {"invoice": "in_1", "amount": 5, "metadata": {"usage_credit": "2"}, "memo": "outage"}
    assert credit_note_params("in_1", 2, begun) == {**params, **more}


def test_what_is_kept_of_an_adjustment() -> None:
    refund = {"id": "re_1", "object": "refund", "amount": 5, "currency": "eur", "created": 1, "status": "failed"}
    failed = seen_adjustment({**refund, "reason": None, "failure_reason": "lost_or_stolen_card"}, fixed(), 9, "w")
    assert (failed.adjustment, failed.status, failed.reason) == ("refund", "failed", "lost_or_stolen_card")
    assert (failed.created_at, failed.seen_at, failed.net_minor, failed.settled) == (1_000_000, 9, None, True)
    note = {"id": "cn_1", "object": "credit_note", "amount": 119, "total_excluding_tax": 100, "number": "N-CN-1"}
    seen = seen_adjustment({**refund, **note, "status": "issued"}, fixed(), 9, "w")
    assert (seen.net_minor, seen.number, seen.settled) == (100, "N-CN-1", True)
    pending = seen_adjustment({**refund, "status": None}, fixed(), 9, "w")
    assert (pending.status, pending.settled) == ("pending", False)


def test_keys_of_customers_are_short_and_apart() -> None:
    long = "x" * 256
    keys = {customer_call_key("default", long, call, attempt) for call in ("create", "attach") for attempt in (1, 2)}
    assert len(keys) == 4
    assert all(len(key) <= 255 for key in keys)
    assert customer_call_key("a", "bc", 1) != customer_call_key("ab", "c", 1)


def test_objects_are_found_by_their_metadata() -> None:
    things: list[dict[str, Any]] = [
        {"id": "in_1", "metadata": {"usage_invoice_id": "inv_1"}},
        {"id": "in_2", "metadata": {}},
        {"id": "in_3", "metadata": None},
        {"id": "in_4", "metadata": {"usage_invoice_id": "inv_2"}},
    ]
    assert [thing["id"] for thing in of_invoice(things, "inv_1")] == ["in_1"]


def test_what_is_kept_of_an_invoice() -> None:
    seen = seen_invoice(
        {
            "id": "in_1",
            "status": "open",
            "subtotal": 1000,
            "total": 1190,
            "amount_due": 690,
            "amount_paid": 0,
            "starting_balance": -500,
            "ending_balance": 0,
            "total_taxes": [{"amount": 190}],
            "attempted": True,
            "attempt_count": 1,
            "next_payment_attempt": 1772323200,
            "number": "A-1",
            "status_transitions": {"paid_at": None},
        },
        7,
    )
    assert (seen.subtotal_minor, seen.tax_minor, seen.amount_due_minor) == (1000, 190, 690)
    assert (seen.applied_balance_minor, seen.next_payment_attempt) == (500, us("2026-03-01T00:00:00Z"))
    assert (seen.number, seen.paid_at, seen.seen_at) == ("A-1", None, 7)


def error(
    kind: type[stripe.StripeError], status: int | None, body: dict[str, Any] | None = None, **headers: str
) -> stripe.StripeError:
    json_body = None if body is None else {"error": body}
    common: dict[str, Any] = {"http_status": status, "json_body": json_body, "headers": headers}
    if kind in (stripe.CardError, stripe.InvalidRequestError):
        return kind("m", None, (body or {}).get("code"), **common)  # pyright: ignore[reportArgumentType]
    return kind("m", **common)


REPLAYED = {"Idempotent-Replayed": "true"}
# fmt: off
FAILURES = [
    (error(stripe.APIConnectionError, None),                                                            StripeUnknown,     None),
    (error(stripe.InvalidRequestError, 400, {"code": "parameter_missing"}),                             StripeRefused,     "parameter_missing"),
    (error(stripe.AuthenticationError, 401),                                                            StripeRefused,     None),
    (error(stripe.CardError, 402, {"code": "card_declined", "decline_code": "insufficient_funds"}),     StripeDeclined,    "insufficient_funds"),
    (error(stripe.CardError, 402, {"code": "expired_card"}),                                            StripeDeclined,    "expired_card"),
    (error(stripe.PermissionError, 403),                                                                StripeRefused,     None),
    (error(stripe.InvalidRequestError, 404, {"code": "resource_missing"}),                              StripeRefused,     "resource_missing"),
    (error(stripe.IdempotencyError, 400, {"type": "idempotency_error"}),                                IdempotencyMisuse, "idempotency_error"),
    (error(stripe.APIError, 409, {"code": "idempotency_key_in_use"}),                                   StripeUnknown,     None),
    (error(stripe.RateLimitError, 429),                                                                 StripeRefused,     "rate_limit"),
    (error(stripe.APIError, 500),                                                                       StripeUnknown,     None),
    (error(stripe.APIError, 500, None, **REPLAYED),                                                     StripeReplayed,    None),
    (error(stripe.APIError, 503),                                                                       StripeUnknown,     None),
    (error(stripe.APIError, 200),                                                                       StripeUnknown,     None),
]
# fmt: on


@pytest.mark.parametrize(("raised", "kind", "code"), FAILURES)
def test_what_is_known_after_an_error(raised: stripe.StripeError, kind: type[StripeFailure], code: str | None) -> None:
    failure = classify(raised)
    assert (type(failure), failure.code) == (kind, code)


@pytest.mark.parametrize(
    ("base", "key", "asked", "limit"),
    [
        ("http://127.0.0.1:12111", "sk_test_x", None, None),
        ("http://127.0.0.1:12111", "sk_test_x", 9, 9),
        ("https://api.stripe.com", "sk_test_x", None, 25),
        ("https://api.stripe.com", "rk_live_x", None, 75),
        ("https://api.stripe.com", "sk_live_x", 5, 5),
    ],
)
def test_the_rate_limit_is_stripes_own(base: str, key: str, asked: int | None, limit: int | None) -> None:
    settings = Settings(  # pyright: ignore[reportCallIssue]
        stripe_api_base=base,
        stripe_api_key=SecretStr(key),
        stripe_calls_per_second=asked,
        stripe_webhook_secret=SecretStr("whsec_x"),
    )
    assert calls_per_second(settings) == limit
