"""The content of an invoice, which never changes once it is fixed: lines, prices, watermark, and their hash. Pure.

Instants are µs since 1970, UTC. Amounts in major units and quantities are decimal strings; `…_minor` are Stripe's
integers.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Literal

import msgspec

from schemas.customer import CollectionMethod
from schemas.meter import Meter
from schemas.period import Cycle
from schemas.product import Product
from schemas.watermark import Watermark
from schemas.watermark import from_json as watermark_from_json

FIRST_REVISION = 1

# Defaults are left out of the JSON, so that a field added later changes neither old records nor their hashes.


class TierPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """The share of one tier in a line.

    from_exclusive, up_to_inclusive: its units, (from, up_to]; up_to_inclusive None: without an end.
    quantity: units of the line that fall into it.
    unit_amount: major units each.
    amount: major units, unrounded.
    """

    from_exclusive: str
    up_to_inclusive: str | None
    quantity: str
    unit_amount: str
    amount: str


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One price on an invoice, or the amount of a `Correction`. Before tax.

    meter_id: None for a flat fee, minimum or correction.
    price_index: of the product's prices; -1 for a correction.
    amount: major units, rounded.
    tiers: the amount by tier; empty for a price without tiers.
    corrects: id of the invoice that a correction belongs to; None for every other line.
    period_start, period_end: µs, half-open; None when the line is about the invoice's own cycle.
    late_meter_id, late_meter: id and name of the meter with late or voided usage; None: several meters, or no meter.
    late_quantity: change of the cycle's total of that meter; None without one.
    """

    meter_id: str | None
    price_index: int
    model: str
    description: str
    quantity: str
    included: str
    priced_quantity: str
    amount: str
    amount_minor: int
    tiers: tuple[TierPart, ...] = ()
    corrects: str | None = None
    period_start: int | None = None
    period_end: int | None = None
    late_meter_id: str | None = None
    late_meter: str | None = None
    late_quantity: str | None = None


class Correction(msgspec.Struct, frozen=True, omit_defaults=True):
    """The change of an earlier cycle of the subscription through late and voided events below the invoice's watermark.

    The difference is a line of the invoice, unless it is 0.

    corrects: id of the invoice whose product, meters and cycle price the usage.
    counted: ids of the invoices that billed the cycle so far, in log order; the record is valid only if the log
        has the same.
    quantities: meter id → the whole cycle's total now; empty for a waived cycle.
    before_minor: amount that `counted` billed for the cycle, less credited_minor.
    total_minor: cost of the cycle now, with minimum and flat fees; 0 for a waived cycle.
    credited_minor, credit_notes: sum and ids of credit notes for usage, before tax.
    """

    corrects: str
    cycle_start: int
    cycle_end: int
    counted: tuple[str, ...]
    quantities: dict[str, str]
    before_minor: int
    total_minor: int
    credited_minor: int = 0
    credit_notes: tuple[str, ...] = ()

    @property
    def difference_minor(self) -> int:
        return self.total_minor - self.before_minor


class CarriedCredit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A goodwill credit note of a void invoice, as a line of the revision that replaces it. Before tax."""

    invoice_id: str
    credit_note_id: str
    amount_minor: int


class Reissue(msgspec.Struct, frozen=True, omit_defaults=True):
    """Amounts that a revision subtracts from the cost of its cycle. Each is a line, unless it is 0.

    billed_by: ids of other invoices that bill the cycle by corrections, in log order.
    billed_minor: their sum for the cycle, less credited_minor.
    credited_minor, credit_notes: sum and ids of credit notes for usage, before tax.
    credits: goodwill that was given on earlier revisions.
    """

    billed_by: tuple[str, ...] = ()
    billed_minor: int = 0
    credited_minor: int = 0
    credit_notes: tuple[str, ...] = ()
    credits: tuple[CarriedCredit, ...] = ()


class Seller(msgspec.Struct, frozen=True, omit_defaults=True):
    """Settings of the invoice at Stripe.

    days_until_due: of send_invoice; None for charge_automatically.
    stripe_account_id: connected account that sells; None: the operator is the seller.
    tax_rates: Stripe's ids, of tax_mode `rates`.
    """

    collection_method: CollectionMethod
    days_until_due: int | None = None
    stripe_account_id: str | None = None
    tax_mode: Literal["none", "stripe_automatic", "rates"] = "none"
    tax_rates: tuple[str, ...] = ()


# Many invoices have the same product and meters.
@lru_cache(maxsize=1024)
def _product(document: bytes) -> Product:
    return Product.model_validate(msgspec.json.decode(document))


@lru_cache(maxsize=1024)
def _meter(document: bytes) -> Meter:
    return Meter.model_validate(msgspec.json.decode(document))


class InvoiceFixed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="invoice_fixed"):
    """The content of an invoice. The first record of an invoice id is valid, later ones change nothing.

    cycle_start, cycle_end: µs, the billing cycle, half-open.
    active_until: µs, end of the billed time: the cycle's end, or the end of a subscription that ended within it.
    total, total_minor: sum of the lines, before tax.
    watermark: the events that were counted, {"epoch": 1, "offsets": {"0": 1871}}.
    product, meters: the catalog's objects as they were when the invoice was priced.
    hash: `canonical_hash` of this record.
    fixed_at: µs.
    corrections: changes of earlier cycles.
    trued_up: every earlier cycle was compared below this watermark, and cycles without a correction had not changed.
        The record is valid only if `follows` names the subscription's invoice before it in the log.
    follows: hash of that invoice, set with trued_up and with reissue; None: it is the subscription's first invoice,
        or the record is older than the field.
    final: an invoice of corrections only, after the subscription's end.
    writer: the run that wrote the record, for people.
    reissue: set for a revision that replaces a void invoice; None: not a revision, or older than the field.
    """

    invoice_id: str
    organization_id: str
    customer_id: str
    subscription_id: str
    revision: int
    cycle_start: int
    cycle_end: int
    active_until: int
    time_zone: str
    currency: str
    lines: tuple[Line, ...]
    total: str
    total_minor: int
    watermark: dict[str, Any]
    product: dict[str, Any]
    meters: tuple[dict[str, Any], ...]
    seller: Seller
    hash: str
    fixed_at: int
    corrections: tuple[Correction, ...] = ()
    trued_up: bool = False
    follows: str | None = None
    final: bool = False
    writer: str = ""
    reissue: Reissue | None = None

    @property
    def cycle(self) -> Cycle:
        return Cycle(self.cycle_start, self.cycle_end)

    @property
    def quantities(self) -> dict[str, str]:
        """Meter id → total of the invoice's own cycle."""
        return {line.meter_id: line.quantity for line in self.lines if line.meter_id is not None}

    @property
    def own_minor(self) -> int:
        """Amount billed for its own cycle, less what other invoices billed for it. Goodwill is not subtracted."""
        carried = sum(credit.amount_minor for credit in self.reissue.credits) if self.reissue else 0
        return self.total_minor - sum(correction.difference_minor for correction in self.corrections) + carried

    @property
    def counted_to(self) -> Watermark:
        """The watermark as a value."""
        return watermark_from_json(self.watermark)

    @property
    def priced_product(self) -> Product:
        return _product(msgspec.json.encode(self.product))

    @property
    def priced_meters(self) -> dict[str, Meter]:
        """Meter id → the meter as it was when the invoice was priced."""
        return {meter["id"]: _meter(msgspec.json.encode(meter)) for meter in self.meters}


# --- Identity ---------------------------------------------------------------------------------------------------------


def _digest(prefix: str, *parts: object) -> str:
    return f"{prefix}_" + hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def invoice_id(organization_id: str, subscription_id: str, cycle_start: int, revision: int = FIRST_REVISION) -> str:
    """The same id for every run that closes the cycle."""
    return _digest("inv", organization_id, subscription_id, cycle_start, revision)


def order_id(invoice: str) -> str:
    return _digest("ord", invoice)


# Time and writer of the record, and the hash itself, are not part of the invoice's content. Defaults are left out, as
# in the record.
_CANONICAL = tuple(
    (field.name, field.default)
    for field in msgspec.structs.fields(InvoiceFixed)
    if field.name not in ("hash", "fixed_at", "writer")
)


def canonical_form(fixed: InvoiceFixed) -> bytes:
    """JSON with sorted keys of the invoice's whole content."""
    content = {name: value for name, default in _CANONICAL if (value := getattr(fixed, name)) != default}
    return msgspec.json.encode(content, order="sorted")


def canonical_hash(fixed: InvoiceFixed) -> str:
    """SHA-256, in hex, of the canonical form."""
    return hashlib.sha256(canonical_form(fixed)).hexdigest()


def with_hash(fixed: InvoiceFixed) -> InvoiceFixed:
    return msgspec.structs.replace(fixed, hash=canonical_hash(fixed))
