"""Invoices and customers ⇄ Stripe's parameters and objects. Pure.

Parameters follow only from what the ledger says, so that every run sends the same ones under the same idempotency key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from billing_job.stripe.line_groups import description_of, item_lines, period_of
from ledger.invoice import Attempt
from ledger.records import AdjustmentKind, InvoiceAdjusted, StripeInvoice
from ledger.snapshot import InvoiceFixed, Line
from schemas.customer import Customer
from schemas.period import SECOND_US, format_rfc3339

API_VERSION = "2026-10-28.endive"
"""The one version of calls and webhooks: the one that the installed SDK was made for."""

PAYMENTS = "payments.data.payment.payment_intent"
"""What to expand of an invoice to see how its payment stands: the invoice itself has no word for one under way."""

INVOICE_ID = "usage_invoice_id"
CUSTOMER_ID = "usage_customer_id"
ORGANIZATION_ID = "usage_organization_id"
LINE = "usage_line"
LINES = "usage_lines"
CREDIT = "usage_credit"
CREDIT_FOR = "usage_credit_for"


def invoice_key(invoice_id: str, step: str, index: int, attempt: int) -> str:
    """Idempotency key of a call for an invoice: the same for every run that makes this attempt."""
    return f"{invoice_id}:{step}:{index}:{attempt}"


def customer_call_key(organization_id: str, customer_id: str, *call: object) -> str:
    """Idempotency key of a call for a customer. The ids are hashed: Stripe takes keys of up to 255 characters."""
    parts = (organization_id, customer_id, *call)
    return "customer:" + hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


# --- Ours → Stripe's --------------------------------------------------------------------------------------------------


def invoice_params(fixed: InvoiceFixed, stripe_customer_id: str) -> dict[str, Any]:
    """A draft that Stripe neither advances automatically nor fills with other pending items of the customer.

    Source: Stripe, "Create an invoice". Our prices exclude tax, so tax is said explicitly.
    """
    params: dict[str, Any] = {
        "customer": stripe_customer_id,
        "currency": fixed.currency,
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "discounts": "",
        "collection_method": fixed.seller.collection_method,
        "automatic_tax": {"enabled": fixed.seller.tax_mode == "stripe_automatic"},
        "metadata": invoice_metadata(fixed),
    }
    if fixed.seller.days_until_due is not None:
        params["days_until_due"] = fixed.seller.days_until_due
    if fixed.seller.tax_mode == "rates":
        params["default_tax_rates"] = list(fixed.seller.tax_rates)
    return params


def invoice_metadata(fixed: InvoiceFixed) -> dict[str, str]:
    """Ids, cycle and hash, no more: Stripe keeps 50 keys of 500 characters."""
    return {
        INVOICE_ID: fixed.invoice_id,
        ORGANIZATION_ID: fixed.organization_id,
        CUSTOMER_ID: fixed.customer_id,
        "usage_subscription_id": fixed.subscription_id,
        "usage_cycle_start": format_rfc3339(fixed.cycle_start),
        "usage_cycle_end": format_rfc3339(fixed.cycle_end),
        "usage_hash": fixed.hash,
    }


def item_params(fixed: InvoiceFixed, index: int, stripe_invoice_id: str, stripe_customer_id: str) -> dict[str, Any]:
    """Item `index` of the invoice, named after the first line that it bills: an integer over the time of its lines."""
    lines = item_lines(fixed)[index]
    start, end = period_of(fixed, lines)
    params: dict[str, Any] = {
        "customer": stripe_customer_id,
        "invoice": stripe_invoice_id,
        "currency": fixed.currency,
        "amount": sum(line.amount_minor for line in lines),
        "description": description_of(fixed, lines),
        "period": {"start": start // SECOND_US, "end": end // SECOND_US},
        "metadata": {INVOICE_ID: fixed.invoice_id, **item_metadata(index, lines)},
    }
    if fixed.seller.tax_mode == "stripe_automatic":
        params["tax_behavior"] = "exclusive"
    return params


def item_metadata(index: int, lines: Sequence[Line]) -> dict[str, str]:
    """Which lines an item bills: its first one, and how many where it is not that one alone."""
    return {LINE: str(index), **({LINES: str(len(lines))} if len(lines) > 1 else {})}


def customer_changes(customer: Customer) -> dict[str, Any]:
    """`customer_params` without the tax ids, as an update: absent fields are cleared."""
    address = {name: value or "" for name, value in customer.address.model_dump().items()} if customer.address else ""
    return {"name": customer.name, "email": customer.email or "", "address": address}


def details_digest(customer: Customer) -> str:
    """A digest of the customer's fields that are sent to Stripe."""
    told = {**customer_params(customer), **customer_changes(customer)}
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:16]


def credit_note_params(stripe_invoice_id: str, index: int, begun: Attempt) -> dict[str, Any]:
    """A credit note over an amount with tax. Of an invoice that is paid, it says where the money goes.

    Source: Stripe, "Create a credit note".
    """
    params: dict[str, Any] = {
        "invoice": stripe_invoice_id,
        "amount": begun.amount_minor,
        "metadata": {CREDIT: str(index), **({CREDIT_FOR: "usage"} if begun.credit_for == "usage" else {})},
    }
    if begun.memo:
        params["memo"] = begun.memo
    if begun.target is not None:
        params["credit_amount" if begun.target == "balance" else "refund_amount"] = begun.amount_minor
    return params


def customer_params(customer: Customer) -> dict[str, Any]:
    """The billed customer: name, email, address and tax ids, found again by the ids in the metadata."""
    params: dict[str, Any] = {
        "name": customer.name,
        "metadata": {ORGANIZATION_ID: customer.organization_id, CUSTOMER_ID: customer.id},
    }
    if customer.email is not None:
        params["email"] = customer.email
    if customer.address is not None:
        params["address"] = customer.address.model_dump(exclude_none=True)
    if customer.tax_ids:
        params["tax_id_data"] = [{"type": tax.type, "value": tax.value} for tax in customer.tax_ids]
    return params


# --- Stripe's → ours --------------------------------------------------------------------------------------------------


def metadata_of(thing: Mapping[str, Any]) -> Mapping[str, str]:
    return cast("Mapping[str, str]", thing.get("metadata") or {})


def of_invoice(things: Iterable[Mapping[str, Any]], invoice_id: str) -> list[Mapping[str, Any]]:
    """Those (invoices, items) that were made for the invoice; the order is kept."""
    return [thing for thing in things if metadata_of(thing).get(INVOICE_ID) == invoice_id]


def seen_invoice(thing: Mapping[str, Any], now_us: int) -> StripeInvoice:
    """What we keep of Stripe's invoice object."""
    transitions: Mapping[str, Any] = thing.get("status_transitions") or {}
    failure: Mapping[str, Any] | None = thing.get("last_finalization_error")
    finalized = thing["status"] != "draft"
    ending = thing.get("ending_balance")
    processing, payment_error = _payment(thing)
    return StripeInvoice(
        id=thing["id"],
        status=thing["status"],
        subtotal_minor=thing["subtotal"],
        total_minor=thing["total"],
        amount_due_minor=thing["amount_due"],
        amount_paid_minor=thing["amount_paid"],
        seen_at=now_us,
        tax_minor=_tax(thing),
        applied_balance_minor=(ending - thing["starting_balance"]) if finalized and ending is not None else 0,
        amount_remaining_minor=thing.get("amount_remaining"),
        credited_minor=sum(
            thing.get(name) or 0 for name in ("pre_payment_credit_notes_amount", "post_payment_credit_notes_amount")
        ),
        number=thing.get("number"),
        hosted_invoice_url=thing.get("hosted_invoice_url"),
        invoice_pdf=thing.get("invoice_pdf"),
        attempted=bool(thing.get("attempted")),
        attempt_count=thing.get("attempt_count") or 0,
        next_payment_attempt=_us(thing.get("next_payment_attempt")),
        finalized_at=_us(transitions.get("finalized_at")),
        due_date=_us(thing.get("due_date")),
        paid_at=_us(transitions.get("paid_at")),
        finalization_error=failure.get("message") if failure else None,
        processing=processing,
        payment_error=payment_error,
    )


def _payment(thing: Mapping[str, Any]) -> tuple[bool, str | None]:
    """(whether a payment is under way, why the last one failed) of an invoice read with PAYMENTS expanded."""
    payments: Mapping[str, Any] = thing.get("payments") or {}
    error: str | None = None
    for payment in payments.get("data") or ():  # newest first
        intent: object = (payment.get("payment") or {}).get("payment_intent")
        if not isinstance(intent, dict):
            continue
        known = cast("Mapping[str, Any]", intent)
        if known.get("status") == "processing":
            return True, None
        failure: Mapping[str, Any] | None = known.get("last_payment_error")
        if failure and error is None:
            error = f"{failure.get('decline_code') or failure.get('code')}: {failure.get('message')}"
    return False, error


def seen_adjustment(thing: Mapping[str, Any], fixed: InvoiceFixed, now_us: int, writer: str) -> InvoiceAdjusted:
    """What we keep of Stripe's credit note, refund or dispute of an invoice."""
    kind: AdjustmentKind = thing["object"]
    return InvoiceAdjusted(
        invoice_id=fixed.invoice_id,
        organization_id=fixed.organization_id,
        customer_id=fixed.customer_id,
        adjustment=kind,
        object_id=thing["id"],
        amount_minor=thing["amount"],
        currency=thing["currency"],
        status=thing["status"] or "pending",
        created_at=thing["created"] * SECOND_US,
        seen_at=now_us,
        net_minor=thing.get("total_excluding_tax") if kind == "credit_note" else None,
        number=thing.get("number"),
        reason=thing.get("failure_reason") or thing.get("reason"),
        writer=writer,
        credit_for="usage" if metadata_of(thing).get(CREDIT_FOR) == "usage" else "goodwill",
    )


def _tax(thing: Mapping[str, Any]) -> int | None:
    """Sum of all taxes; None where Stripe has computed none."""
    taxes: list[Mapping[str, Any]] | None = thing.get("total_taxes")
    return sum(tax["amount"] for tax in taxes) if taxes is not None else None


def _us(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * SECOND_US
