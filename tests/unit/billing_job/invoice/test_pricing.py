"""What an invoice says: lines, total, hash; and where a count differs from it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from billing_job.invoice.checks import explain_differences, quantity_differences, subtotal_differences
from billing_job.invoice.due import DueCycle
from billing_job.invoice.late import counted_for
from billing_job.invoice.pricing import PricedBy, fixed_invoice, recompute, seller_of
from ledger.snapshot import InvoiceFixed, canonical_hash
from ledger.view import InvoiceLedger
from schemas.decimals import decimal_text
from schemas.meter import Aggregation, Meter
from schemas.organization import Organization
from schemas.period import Cycle, parse_rfc3339
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.watermark import Watermark

us = parse_rfc3339
MARCH = Cycle(us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"))
METER = Meter(
    id="mtr_1",
    organization_id="default",
    created_at=0,
    name="API requests",
    event_name="api_request",
    unit="requests",
    aggregation=Aggregation.SUM,
)
TIERS = {
    "model": "graduated",
    "meter_id": "mtr_1",
    "tiers": [
        {"up_to": "10000", "unit_amount": "0.002"},
        {"up_to": "100000", "unit_amount": "0.001"},
        {"up_to": None, "unit_amount": "0.0005"},
    ],
}
ORGANIZATION = Organization(id="default", organization_id="default", created_at=0)
SUBSCRIPTION = Subscription(
    id="sub_1",
    organization_id="default",
    customer_id="c",
    product_id="prod_1",
    started_at=MARCH.start_us,
    billing_interval="month",
    collection_method="charge_automatically",
    time_zone="UTC",
    created_at=0,
)


def product(*prices: dict[str, Any]) -> Product:
    return Product.model_validate(
        {
            "id": "prod_1",
            "organization_id": "default",
            "created_at": 0,
            "name": "P",
            "currency": "eur",
            "prices": list(prices),
        }
    )


def invoice(quantity: str, *prices: dict[str, Any], active_until: int = MARCH.end_us, **more: Any) -> InvoiceFixed:
    due = DueCycle("inv_1", "default", "c", "sub_1", "prod_1", MARCH, active_until, active_until)
    values: dict[str, Any] = {
        "priced_by": PricedBy(product(*(prices or (TIERS,))), {METER.id: METER}),
        "quantities": {METER.id: Decimal(quantity)},
        "watermark": Watermark(1, {0: 3}).as_json(),
        "seller": seller_of(ORGANIZATION, SUBSCRIPTION),
        "time_zone": "UTC",
        "now_us": 1,
        "writer": "w",
    }
    return fixed_invoice(due, **{**values, **more})


@pytest.mark.parametrize(
    ("quantity", "prices", "total", "total_minor"),
    [
        ("150000", (TIERS,), "135.00", 13500),
        ("150000.000000000", (TIERS,), "135.00", 13500),
        ("12000", ({**TIERS, "included_units": "1000"},), "21.00", 2100),
        ("0", (TIERS,), "0.00", 0),
        ("-5", (TIERS,), "0.00", 0),
        ("0", (TIERS, {"model": "minimum", "amount": "9.99"}, {"model": "flat_fee", "amount": "49"}), "58.99", 5899),
    ],
)
def test_total(quantity: str, prices: tuple[dict[str, Any], ...], total: str, total_minor: int) -> None:
    fixed = invoice(quantity, *prices)
    assert (fixed.total, fixed.total_minor) == (total, total_minor)
    assert sum(line.amount_minor for line in fixed.lines) == total_minor
    assert sum(Decimal(line.amount) for line in fixed.lines) == Decimal(total)


def test_the_tiers_are_shown() -> None:
    (line,) = invoice("150000").lines
    assert (line.description, line.quantity) == ("API requests: 150,000 requests", "150000")
    assert [(tier.quantity, tier.unit_amount, tier.amount) for tier in line.tiers] == [
        ("10000", "0.002", "20"),
        ("90000", "0.001", "90"),
        ("50000", "0.0005", "25"),
    ]


def test_a_fixed_price_of_a_partial_cycle_is_prorated() -> None:
    half = (MARCH.start_us + MARCH.end_us) // 2
    fixed = invoice("150000", TIERS, {"model": "flat_fee", "amount": "10"}, active_until=half)
    assert [line.amount for line in fixed.lines] == ["135.00", "5.00"]


@pytest.mark.parametrize(
    ("quantities", "same"),
    [("150000", True), ("150000.0", True), ("1.5e5", True), ("150001", False), ("150000.000000001", False)],
)
def test_verification_finds_every_difference(quantities: str, same: bool) -> None:
    fixed = invoice("150000")
    again = recompute(fixed, {METER.id: Decimal(quantities)})
    assert (again.hash == fixed.hash) is same
    assert fixed.hash == canonical_hash(fixed)


def test_the_snapshot_prices_not_the_catalog_of_today() -> None:
    fixed = invoice("150000")
    assert fixed.priced_product == product(TIERS)
    assert fixed.priced_meters == {METER.id: METER}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("1E+3", "1000"),
        ("0E-9", "0"),
        ("-0.0", "0"),
        ("10.500000000", "10.5"),
        ("0.000000001", "0.000000001"),
        ("-3.10", "-3.1"),
        ("100", "100"),
    ],
)
def test_a_number_has_one_spelling(number: str, text: str) -> None:
    assert decimal_text(Decimal(number)) == text


@pytest.mark.parametrize(
    ("counted", "subtotal", "reason"),
    [
        ("150000", 13500, ""),
        ("150000.000000000", 13500, ""),
        ("149999", 13500, "mtr_1: 150000 invoiced, 149999 found (-1)"),
        ("150000.500000000", 13500, "mtr_1: 150000 invoiced, 150000.5 found (+0.5)"),
        ("150000", 13501, "Stripe's subtotal in minor units: 13500 invoiced, 13501 found (+1)"),
        ("150000", 0, "Stripe's subtotal in minor units: 13500 invoiced, 0 found (-13500)"),
    ],
)
def test_the_gate_names_the_difference(counted: str, subtotal: int, reason: str) -> None:
    fixed = invoice("150000")
    (check,) = counted_for(InvoiceLedger(), fixed)
    differences = quantity_differences(check, {METER.id: Decimal(counted)}) + subtotal_differences(fixed, subtotal)
    assert explain_differences(differences) == reason


def test_the_seller_is_fixed_with_the_invoice() -> None:
    sent = SUBSCRIPTION.model_copy(update={"collection_method": "send_invoice"})
    organization = ORGANIZATION.model_copy(
        update={"stripe_account_id": "acct_1", "tax_mode": "rates", "tax_rates": ("t",)}
    )
    seller = seller_of(organization, sent)
    assert (seller.days_until_due, seller.stripe_account_id, seller.tax_rates) == (30, "acct_1", ("t",))
    assert seller_of(ORGANIZATION, SUBSCRIPTION).days_until_due is None
