"""due cycle, quantities, product → what the invoice says. Pure; the same for invoices, previews and verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import msgspec

from billing_job.invoice.due import DueCycle
from ledger.cycle_bills import CycleBill
from ledger.snapshot import (
    Correction,
    InvoiceFixed,
    Line,
    Reissue,
    Seller,
    TierPart,
    with_hash,
)
from pricing.invoice_lines import InvoiceComputation, InvoiceLine, price_lines
from pricing.proration import prorated_share
from pricing.tier_charge import TierCharge
from schemas.currency import from_minor
from schemas.decimals import decimal_text, exact, plain
from schemas.meter import Meter
from schemas.organization import Organization
from schemas.period import Cycle, format_local_date
from schemas.product import Product
from schemas.subscription import Subscription

DAYS_UNTIL_DUE = 30
"""Of invoices that are sent (collection_method send_invoice)."""


@dataclass(frozen=True, slots=True)
class LateCorrection:
    """corrected: the cycle's own invoice. before: meter id → the cycle's total as it was billed before."""

    corrected: InvoiceFixed
    correction: Correction
    before: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrueUp:
    """complete: every earlier cycle was looked at. follows: hash of the invoice before. reissue: of a revision."""

    corrections: tuple[LateCorrection, ...] = ()
    complete: bool = False
    follows: str | None = None
    reissue: Reissue | None = None


NO_TRUE_UP = TrueUp()


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


@dataclass(frozen=True)
class PricedBy:
    """A product, and by id every meter that it prices; their snapshots are made once for all invoices."""

    product: Product
    meters: Mapping[str, Meter]

    @cached_property
    def product_json(self) -> dict[str, Any]:
        return self.product.model_dump(mode="json")

    @cached_property
    def meters_json(self) -> tuple[dict[str, Any], ...]:
        return tuple(self.meters[meter_id].model_dump(mode="json") for meter_id in self.product.meter_ids)


def fixed_invoice(
    due: DueCycle,
    *,
    priced_by: PricedBy,
    quantities: Mapping[str, Decimal],
    watermark: dict[str, Any],
    seller: Seller,
    time_zone: str,
    now_us: int,
    writer: str,
    true_up: TrueUp = NO_TRUE_UP,
) -> InvoiceFixed:
    """The record that fixes an invoice.

    quantities: by meter id, for every meter that the product prices; they count what lies below the watermark, which is
    in the form of JSON. true_up: of earlier cycles; a final invoice is of nothing else. Raises MissingMeter.
    """
    corrections = tuple(each.correction for each in true_up.corrections)
    own = (
        () if due.final else _price(priced_by.product, quantities, priced_by.meters, due.cycle, due.active_until).lines
    )
    lines = _lines(
        own,
        true_up.corrections,
        _offsets(true_up.reissue, due.cycle, due.active_until, time_zone, priced_by.product.currency),
    )
    total_minor, currency = sum(line.amount_minor for line in lines), priced_by.product.currency
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
            currency=currency,
            lines=lines,
            total=plain(from_minor(total_minor, currency)),
            total_minor=total_minor,
            watermark=watermark,
            product=priced_by.product_json,
            meters=priced_by.meters_json,
            seller=seller,
            hash="",
            fixed_at=now_us,
            corrections=corrections,
            trued_up=true_up.complete,
            follows=true_up.follows,
            final=due.final,
            writer=writer,
            reissue=true_up.reissue,
        )
    )


def priced_again(fixed: InvoiceFixed, quantities: Mapping[str, Decimal]) -> InvoiceComputation:
    """Its own cycle, from its snapshot and these quantities."""
    return _price(fixed.priced_product, quantities, fixed.priced_meters, fixed.cycle, fixed.active_until)


def recompute(
    fixed: InvoiceFixed, quantities: Mapping[str, Decimal], corrections: Sequence[LateCorrection] = ()
) -> InvoiceFixed:
    """The invoice again, from its own snapshot and these quantities: equal hashes mean that nothing differs.

    corrections: those of the invoice, recomputed.
    """
    currency = fixed.priced_product.currency
    own = () if fixed.final else priced_again(fixed, quantities).lines
    offsets = _offsets(fixed.reissue, fixed.cycle, fixed.active_until, fixed.time_zone, currency)
    lines = _lines(own, corrections, offsets)
    total_minor = sum(line.amount_minor for line in lines)
    return with_hash(
        msgspec.structs.replace(
            fixed,
            currency=currency,
            lines=lines,
            total=plain(from_minor(total_minor, currency)),
            total_minor=total_minor,
            corrections=tuple(each.correction for each in corrections),
        )
    )


# --- Corrections of earlier cycles ------------------------------------------------------------------------------------


def correction_of(bill: CycleBill, quantities: Mapping[str, Decimal]) -> LateCorrection:
    """What the cycle costs with these quantities, by its own snapshot, against what was billed for it."""
    corrected = bill.fixed
    return LateCorrection(
        corrected,
        Correction(
            corrects=corrected.invoice_id,
            cycle_start=corrected.cycle_start,
            cycle_end=corrected.cycle_end,
            counted=bill.counted,
            quantities={} if bill.waived else _as_text(quantities),
            before_minor=bill.billed_minor,
            total_minor=cost_minor(bill, quantities),
            credited_minor=bill.credited_minor,
            credit_notes=bill.credit_notes,
        ),
        bill.quantities,
    )


def cost_minor(bill: CycleBill, quantities: Mapping[str, Decimal]) -> int:
    """The cost of a cycle with these quantities, minimum and flat fees included; a waived cycle costs nothing."""
    return 0 if bill.waived else priced_again(bill.fixed, quantities).total_minor


def _as_text(quantities: Mapping[str, Decimal]) -> dict[str, str]:
    return {meter_id: decimal_text(number) for meter_id, number in sorted(quantities.items())}


def correction_lines(late: LateCorrection) -> list[Line]:
    """`Late usage, 2026-03-01 to 2026-04-01`: dates in the zone of the cycle, the second one exclusive.

    One line, of the meter whose quantity changed; where several did, one of each, and one of what is of no meter.
    """
    changed = _changed_meters(late)
    whole_minor = late.correction.difference_minor
    if len(changed) <= 1:
        parts = {changed[0] if changed else None: whole_minor}
    else:
        parts = _by_meter(late, changed)
        parts[None] = whole_minor - sum(parts.values())
    return [_correction_line(late, meter_id, minor) for meter_id, minor in parts.items() if minor]


def _changed_meters(late: LateCorrection) -> list[str]:
    """In the order of the product's prices. None of a waived cycle: it is taken back as a whole."""
    now = late.correction.quantities
    return [
        each for each in late.corrected.priced_product.meter_ids if each in now and now[each] != late.before.get(each)
    ]


def _by_meter(late: LateCorrection, changed: Sequence[str]) -> dict[str | None, int]:
    """Meter id → what its lines cost more than before."""
    costs: list[dict[str | None, int]] = []
    for quantities in (late.correction.quantities, {**late.correction.quantities, **late.before}):
        lines = priced_again(late.corrected, {meter_id: Decimal(text) for meter_id, text in quantities.items()}).lines
        costs.append({each: sum(line.amount_minor for line in lines if line.meter_id == each) for each in changed})
    now, before = costs
    return {each: now[each] - before[each] for each in changed}


def _correction_line(late: LateCorrection, meter_id: str | None, amount_minor: int) -> Line:
    corrected = late.corrected
    name = None if meter_id is None else corrected.priced_meters[meter_id].name
    begins, ends = _dates(corrected.cycle_start, corrected.active_until, corrected.time_zone)
    return Line(
        meter_id=None,
        price_index=-1,
        model="late_usage",
        description=f"{'Late usage' if amount_minor > 0 else 'Credit for usage'}, {begins} to {ends}",
        quantity="1",
        included="0",
        priced_quantity="1",
        amount=plain(from_minor(amount_minor, corrected.currency)),
        amount_minor=amount_minor,
        corrects=corrected.invoice_id,
        period_start=corrected.cycle_start,
        period_end=corrected.active_until,
        late_meter_id=meter_id,
        late_meter=name,
        late_quantity=None if meter_id is None else _moved(late, meter_id),
    )


@exact
def _moved(late: LateCorrection, meter_id: str) -> str:
    return decimal_text(Decimal(late.correction.quantities[meter_id]) - Decimal(late.before.get(meter_id, "0")))


def _dates(start_us: int, end_us: int, time_zone: str) -> tuple[str, str]:
    return format_local_date(start_us, time_zone), format_local_date(end_us, time_zone)


# --- What a revision takes off ----------------------------------------------------------------------------------------


def _offsets(reissue: Reissue | None, cycle: Cycle, active_until: int, time_zone: str, currency: str) -> list[Line]:
    """Lines for what others billed for the cycle, and for goodwill that was given on the revisions before."""
    if reissue is None:
        return []
    begins, ends = _dates(cycle.start_us, active_until, time_zone)
    credits_minor = sum(each.amount_minor for each in reissue.credits)
    told = [
        (f"Billed on other invoices, {begins} to {ends}", "billed_elsewhere", -reissue.billed_minor),
        ("Credit notes of the void invoice", "carried_credit", -credits_minor),
    ]
    return [
        Line(
            meter_id=None,
            price_index=-1,
            model=model,
            description=description,
            quantity="1",
            included="0",
            priced_quantity="1",
            amount=plain(from_minor(amount_minor, currency)),
            amount_minor=amount_minor,
        )
        for description, model, amount_minor in told
        if amount_minor
    ]


def _price(
    product: Product, quantities: Mapping[str, Decimal], meters: Mapping[str, Meter], cycle: Cycle, active_until: int
) -> InvoiceComputation:
    share = prorated_share(cycle, cycle.start_us, active_until)
    return price_lines(product, quantities, meters=meters, proration=share)


def _lines(
    own: Sequence[InvoiceLine], corrections: Sequence[LateCorrection], offsets: Sequence[Line]
) -> tuple[Line, ...]:
    """Of its own cycle, what is taken off it, then of those corrections that change an amount."""
    late = [line for each in corrections for line in correction_lines(each)]
    return (*map(line_of, own), *offsets, *late)


def line_of(line: InvoiceLine) -> Line:
    """A priced line as the ledger has it."""
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
