"""When a scheduled run tries again what failed, and which invoices are left to a close at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from billing_job.collect.steps import invoice_rests_until, rests_until
from billing_job.invoice.to_do import is_ours_to_do
from ledger.invoice import Attempt, Invoice
from ledger.records import OrderRecorded, StripeInvoice
from ledger.snapshot import InvoiceFixed, Seller

MINUTE, HOUR = 60_000_000, 3_600_000_000


def fixed(**seller: Any) -> InvoiceFixed:
    seller.setdefault("collection_method", "charge_automatically")
    return InvoiceFixed(
        invoice_id="inv_1",
        organization_id="default",
        customer_id="c",
        subscription_id="sub_1",
        revision=1,
        cycle_start=0,
        cycle_end=1,
        active_until=1,
        time_zone="UTC",
        currency="eur",
        lines=(),
        total="1.00",
        total_minor=100,
        watermark={"epoch": 1, "offsets": {}},
        product={},
        meters=(),
        seller=Seller(**seller),
        hash="",
        fixed_at=0,
    )


def invoice(state: Any, status: Any = None, **more: Any) -> Invoice:
    seen = None if status is None else StripeInvoice("in_1", status, 100, 100, 100, 0, 0)
    return Invoice(
        "inv_1", "default", "c", "sub_1", 0, 1, state, 0, fixed=more.pop("fixed", fixed()), stripe=seen, **more
    )


ORDER = OrderRecorded("ord_1", "inv_1", "default", "c", "sub_1", "eur", "1.00", 100, 0, 0)
PAID_ATTEMPT = {("pay", 0): Attempt(1, "done", 0)}
UNSURE_ATTEMPT = {("pay", 0): Attempt(1, "unknown", 0)}


@pytest.mark.parametrize(
    ("attempt", "rest"), [(1, 2 * MINUTE), (2, 4 * MINUTE), (3, 8 * MINUTE), (9, 6 * HOUR), (1000, 6 * HOUR)]
)
def test_the_rest_grows_up_to_hours(attempt: int, rest: int) -> None:
    assert rests_until(5, attempt) == 5 + rest


@pytest.mark.parametrize(
    ("found", "until"),
    [
        (invoice("computed"), 0),
        (invoice("draft", "draft", steps={("finalize", 0): Attempt(1, "failed", HOUR)}), HOUR + 2 * MINUTE),
        (invoice("draft", "draft", steps={("finalize", 0): Attempt(1, "unknown", HOUR)}), 0),
        (replace(invoice("mismatch"), updated_at=HOUR), HOUR + 8 * MINUTE),
        (replace(invoice("mismatch"), updated_at=HOUR, retry_asked_at=HOUR), 0),
        (invoice("draft", "draft", steps={("finalize", 0): Attempt(1, "failed", HOUR)}, retry_asked_at=HOUR), 0),
        (invoice("open", "open", steps={("credit", 1): Attempt(1, "failed", HOUR)}), 0),  # a command's to try again
    ],
)
def test_what_failed_for_certain_rests(found: Invoice, until: int) -> None:
    assert invoice_rests_until(found) == until


@pytest.mark.parametrize(
    ("found", "ours"),
    [
        (invoice("computed"), True),
        (invoice("draft", "draft"), True),
        (invoice("mismatch"), True),
        (invoice("mismatch", "open", steps=PAID_ATTEMPT), True),  # to be voided before Stripe charges it
        (invoice("mismatch", "void"), False),
        (invoice("open", "open"), True),
        (invoice("open", "open", steps=UNSURE_ATTEMPT), True),
        (invoice("open", "open", steps=PAID_ATTEMPT), False),
        (invoice("payment_failed", "open", steps=PAID_ATTEMPT), False),
        (invoice("open", "open", fixed=fixed(collection_method="send_invoice")), False),
        (invoice("paid", "paid"), True),  # its order is missing
        (invoice("paid", "paid", order=ORDER), False),
        (invoice("uncollectible", "uncollectible"), False),
        (invoice("void", "void"), False),
        # A void that was begun is finished; one that failed leaves the rest as it was.
        (invoice("payment_failed", "open", steps={("void", 0): Attempt(1, "intent", 0)}), True),
        (invoice("computed", steps={("void", 0): Attempt(1, "unknown", 0)}), True),
        (invoice("payment_failed", "open", steps={**PAID_ATTEMPT, ("void", 0): Attempt(1, "failed", 0)}), False),
    ],
)
def test_what_is_left_to_a_close(found: Invoice, ours: bool) -> None:
    assert is_ours_to_do(found) is ours
