"""due cycle, quantities, product → what the invoice says. Pure; the same for invoices, previews and verification."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import msgspec

from billing_job.due import DueCycle
from pricing.invoice_lines import InvoiceComputation, InvoiceLine, price_lines
from pricing.proration import prorated_share
from pricing.tier_charge import TierCharge
from schemas.decimals import plain
from schemas.ledger import InvoiceFixed, Line, Seller, TierPart, with_hash
from schemas.meter import Meter
from schemas.organization import Organization
from schemas.period import Cycle
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.watermark import Watermark

DAYS_UNTIL_DUE = 30
"""Of invoices that are sent (collection_method send_invoice)."""


def decimal_text(number: Decimal) -> str:
    """Digits and a point, without trailing zeros: the same text however many decimals a store keeps."""
    text = plain(number)
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def seller_of(organization: Organization, subscription: Subscription) -> Seller:
    """How an invoice of the subscription is made at Stripe, by the settings of now."""
    sends = subscription.collection_method == "send_invoice"
    return Seller(
        collection_method=subscription.collection_method,
        days_until_due=DAYS_UNTIL_DUE if sends else None,
        stripe_account_id=organization.stripe_account_id,
        tax_mode=organization.tax_mode,
        tax_rates=organization.tax_rates,
    )


def fixed_invoice(
    due: DueCycle,
    *,
    product: Product,
    meters: Mapping[str, Meter],
    quantities: Mapping[str, Decimal],
    watermark: Watermark,
    seller: Seller,
    time_zone: str,
    now_us: int,
    writer: str,
) -> InvoiceFixed:
    """The record that fixes an invoice.

    meters, quantities: by meter id, for every meter that the product prices; quantities count what lies below the
    watermark. Raises MissingMeter.
    """
    computed = _price(product, quantities, meters, due.cycle, due.active_until)
    return with_hash(
        InvoiceFixed(
            invoice_id=due.invoice_id,
            organization_id=due.organization_id,
            customer_id=due.customer_id,
            subscription_id=due.subscription_id,
            revision=due.revision,
            cycle_start=due.cycle.start_us,
            cycle_end=due.cycle.end_us,
            active_until=due.active_until,
            time_zone=time_zone,
            currency=computed.currency,
            lines=tuple(map(_line, computed.lines)),
            total=plain(computed.total),
            total_minor=computed.total_minor,
            watermark=watermark.as_json(),
            product=product.model_dump(mode="json"),
            meters=tuple(meters[meter_id].model_dump(mode="json") for meter_id in product.meter_ids),
            seller=seller,
            hash="",
            fixed_at=now_us,
            writer=writer,
        )
    )


def recomputed(fixed: InvoiceFixed, quantities: Mapping[str, Decimal]) -> InvoiceFixed:
    """The invoice again, from its own snapshot and these quantities: equal hashes mean that nothing differs."""
    computed = _price(fixed.priced_product, quantities, fixed.priced_meters, fixed.cycle, fixed.active_until)
    return with_hash(
        msgspec.structs.replace(
            fixed,
            currency=computed.currency,
            lines=tuple(map(_line, computed.lines)),
            total=plain(computed.total),
            total_minor=computed.total_minor,
        )
    )


def _price(
    product: Product, quantities: Mapping[str, Decimal], meters: Mapping[str, Meter], cycle: Cycle, active_until: int
) -> InvoiceComputation:
    share = prorated_share(cycle, cycle.start_us, active_until)
    return price_lines(product, quantities, meters=meters, proration=share)


def _line(line: InvoiceLine) -> Line:
    return Line(
        meter_id=line.meter_id,
        price_index=line.price_index,
        model=line.model,
        description=line.description,
        quantity=decimal_text(line.quantity),
        included=decimal_text(line.included),
        priced_quantity=decimal_text(line.priced_quantity),
        amount=plain(line.amount),
        amount_minor=line.amount_minor,
        tiers=tuple(map(_tier, line.tiers)),
    )


def _tier(tier: TierCharge) -> TierPart:
    return TierPart(
        from_exclusive=decimal_text(tier.from_exclusive),
        up_to_inclusive=None if tier.up_to_inclusive is None else decimal_text(tier.up_to_inclusive),
        quantity=decimal_text(tier.quantity),
        unit_amount=decimal_text(tier.unit_amount),
        amount=decimal_text(tier.amount),
    )
