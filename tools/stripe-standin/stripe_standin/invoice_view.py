"""An invoice and its lines as the API shows them, and its totals while it can still change.

Source: Stripe API reference, "The Invoice object", "The Invoice Line Item object". The invoice embeds its first ten
lines, the newest item first; all of them are at /v1/invoices/:id/lines.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from stripe_standin.money import minimum_charge
from stripe_standin.paging import listed
from stripe_standin.records import Customer, Invoice, InvoiceItem, Tax, TaxId, TaxRate
from stripe_standin.state import Json, Scope
from stripe_standin.tax_rates import render as render_rate
from stripe_standin.totals import Rate, settle, sum_up, whole

LINES_EMBEDDED = 10
AUTOMATIC = "txr_standin_automatic"
"""The rate that the stand-in's automatic tax reports."""
_EXEMPT = {"exempt": "customer_exempt", "reverse": "reverse_charge"}


def items(scope: Scope, invoice: Invoice) -> list[InvoiceItem]:
    """Newest first, as Stripe lists lines; to read only."""
    return [scope.shown(InvoiceItem, id_) for id_ in reversed(invoice.items)]


def rates(scope: Scope, invoice: Invoice, item: InvoiceItem) -> list[Rate]:
    """The tax rates of a line: its own, else the invoice's, or the automatic one."""
    customer = scope.shown(Customer, invoice.customer)
    exempt = _EXEMPT.get(customer.tax_exempt)
    if invoice.automatic_tax:
        percentage = Decimal(scope.settings.automatic_tax_percent)
        reason = "standard_rated" if percentage else "not_collecting"
        inclusive = item.tax_behavior == "inclusive"
        return [Rate(AUTOMATIC, Decimal(0) if exempt else percentage, inclusive, exempt or reason)]
    found = (scope.shown(TaxRate, id_) for id_ in item.tax_rates or invoice.default_tax_rates)
    return [Rate(r.id, Decimal(0) if exempt else r.percentage, r.inclusive, exempt or "standard_rated") for r in found]


def recompute(scope: Scope, invoice: Invoice) -> None:
    """Bring a draft's amounts up to date with its lines and the customer's balance; stores it and its lines."""
    listing = items(scope, invoice)
    off = [_discounted(invoice, item) for item in listing]
    summed = sum_up(
        [(item.amount - less, rates(scope, invoice, item)) for item, less in zip(listing, off, strict=True)]
    )
    for item, taxes, less in zip(listing, summed.line_taxes, off, strict=True):
        if (item.taxes, item.discount_amount) != (taxes, less):
            scope.world.remember(scope.account, item)
            item.taxes, item.discount_amount = taxes, less
            scope.put(item)
    customer = scope.shown(Customer, invoice.customer)
    invoice.subtotal = sum(item.amount for item in listing)  # before the discount
    invoice.taxes = summed.taxes
    invoice.total = summed.total
    invoice.total_excluding_tax = summed.total_excluding_tax
    invoice.starting_balance = customer.balance_in(invoice.currency)
    invoice.amount_due = settle(invoice.total, invoice.starting_balance, minimum_charge(invoice.currency)).amount_due
    if invoice.automatic_tax:
        located = customer.address is not None and customer.address.get("country") is not None
        invoice.automatic_tax_status = "complete" if located else "requires_location_inputs"
    scope.put(invoice)


def _discounted(invoice: Invoice, item: InvoiceItem) -> int:
    """Not verified: how Stripe rounds a discount over lines; here each line's part is rounded, half up."""
    if invoice.discount is None or not item.discountable:
        return 0
    return whole(item.amount * invoice.discount.percent_off / 100)


def _discount_amounts(invoice: Invoice, amount: int) -> list[Json]:
    return [] if invoice.discount is None else [{"amount": amount, "discount": invoice.discount.id}]


def _tax(tax: Tax) -> Json:
    return {
        "amount": tax.amount,
        "tax_behavior": "inclusive" if tax.inclusive else "exclusive",
        "tax_rate_details": {"tax_rate": tax.tax_rate},
        "taxability_reason": tax.reason,
        "taxable_amount": tax.taxable_amount,
        "type": "tax_rate_details",
    }


def pricing(item: InvoiceItem) -> Json:
    return {
        "price_details": {"price": item.price, "product": item.product},
        "type": "price_details",
        "unit_amount_decimal": plain(item.unit_amount),
    }


def plain(number: Decimal) -> str:
    """A decimal without exponent or trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def render_line(invoice: Invoice, item: InvoiceItem) -> Json:
    return {
        "id": item.line_id,
        "object": "line_item",
        "amount": item.amount,
        "currency": item.currency,
        "description": item.description,
        "discount_amounts": _discount_amounts(invoice, item.discount_amount) if item.discountable else [],
        "discountable": item.discountable,
        "discounts": [],
        "invoice": invoice.id,
        "livemode": False,
        "metadata": item.metadata,
        "parent": {
            "invoice_item_details": {
                "invoice_item": item.id,
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": None,
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "period": {"end": item.period_end, "start": item.period_start},
        "pretax_credit_amounts": [],
        "pricing": pricing(item),
        "quantity": int(item.quantity),
        "quantity_decimal": plain(item.quantity),
        "subscription": None,
        "subtotal": item.amount,
        "taxes": [_tax(t) for t in item.taxes],
    }


def snapshot(scope: Scope, customer: Customer) -> Json:
    """The customer's fields that an invoice shows; kept as it was at finalization."""
    return {
        "customer_address": customer.address,
        "customer_email": customer.email,
        "customer_name": customer.name,
        "customer_phone": customer.phone,
        "customer_shipping": customer.shipping,
        "customer_tax_exempt": customer.tax_exempt,
        "customer_tax_ids": [{"type": t.type, "value": t.value} for t in scope.children(TaxId, customer.id)],
    }


def _hosted(scope: Scope, invoice: Invoice) -> Json:
    if invoice.finalized_at is None:
        return {"hosted_invoice_url": None, "invoice_pdf": None}
    where = f"{scope.account.public_id}/test_{invoice.id}"
    return {
        "hosted_invoice_url": f"https://invoice.stripe.com/i/{where}?s=ap",
        "invoice_pdf": f"https://pay.stripe.com/invoice/{where}/pdf?s=ap",
    }


def render(scope: Scope, invoice: Invoice) -> Json:
    customer = scope.shown(Customer, invoice.customer)
    listing = items(scope, invoice)
    inclusive = sum(t.amount for t in invoice.taxes if t.inclusive)
    shown: dict[str, Any] = {
        "id": invoice.id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Stand-in",
        "account_tax_ids": None,
        "amount_due": invoice.amount_due,
        "amount_overpaid": 0,
        "amount_paid": invoice.amount_paid,
        "amount_paid_off_stripe": invoice.amount_paid if invoice.paid_out_of_band else 0,
        "amount_remaining": invoice.amount_remaining,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": invoice.attempt_count,
        "attempted": invoice.attempted,
        "auto_advance": invoice.auto_advance,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": invoice.automatic_tax,
            "liability": {"type": "self"} if invoice.automatic_tax else None,
            "provider": "stripe" if invoice.automatic_tax else None,
            "status": invoice.automatic_tax_status,
        },
        "automatically_finalizes_at": invoice.automatically_finalizes_at,
        "billing_reason": "manual",
        "collection_method": invoice.collection_method,
        "created": invoice.created,
        "currency": invoice.currency,
        "custom_fields": invoice.custom_fields,
        "customer": invoice.customer,
        "customer_account": None,
        "default_payment_method": invoice.default_payment_method,
        "default_source": None,
        "default_tax_rates": [render_rate(scope, scope.shown(TaxRate, id_)) for id_ in invoice.default_tax_rates],
        "description": invoice.description,
        "discounts": [] if invoice.discount is None else [invoice.discount.id],
        "due_date": invoice.due_date,
        "effective_at": invoice.effective_at,
        "ending_balance": invoice.ending_balance,
        "footer": invoice.footer,
        "from_invoice": None,
        "issuer": {"type": "self"},
        "last_finalization_error": invoice.last_finalization_error,
        "latest_revision": None,
        "lines": listed(
            f"/v1/invoices/{invoice.id}/lines",
            [render_line(invoice, item) for item in listing[:LINES_EMBEDDED]],
            len(listing) > LINES_EMBEDDED,
        ),
        "livemode": False,
        "metadata": invoice.metadata,
        "next_payment_attempt": invoice.next_payment_attempt,
        "number": invoice.number,
        "on_behalf_of": None,
        "parent": None,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": invoice.period_end,
        "period_start": invoice.period_start,
        "post_payment_credit_notes_amount": invoice.post_payment_credit,
        "pre_payment_credit_notes_amount": invoice.pre_payment_credit,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": customer_balance(invoice, customer),
        "statement_descriptor": invoice.statement_descriptor,
        "status": invoice.status,
        "status_transitions": {
            "finalized_at": invoice.finalized_at,
            "marked_uncollectible_at": invoice.marked_uncollectible_at,
            "paid_at": invoice.paid_at,
            "voided_at": invoice.voided_at,
        },
        "subtotal": invoice.subtotal,
        "subtotal_excluding_tax": invoice.subtotal - inclusive,
        "test_clock": None,
        "total": invoice.total,
        "total_discount_amounts": _discount_amounts(invoice, sum(item.discount_amount for item in listing)),
        "total_excluding_tax": invoice.total_excluding_tax,
        "total_pretax_credit_amounts": [],
        "total_taxes": [_tax(t) for t in invoice.taxes],
        "webhooks_delivered_at": invoice.created,
    }
    shown |= invoice.customer_snapshot or snapshot(scope, customer)
    return shown | _hosted(scope, invoice)


def customer_balance(invoice: Invoice, customer: Customer) -> int:
    """A draft shows the customer's balance of now, an invoice that of its finalization."""
    if invoice.finalized_at is None:
        return customer.balance_in(invoice.currency)
    return invoice.starting_balance
