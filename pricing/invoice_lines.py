"""product, quantities → invoice lines and total. The one engine of previews, amount alerts and invoices.

Lines come in this order: usage in the order of the product's prices, the top-up to the minimum, flat fees. Each amount
is computed exactly and rounded once, half up, to the step that Stripe can charge; the total is the sum of the lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Protocol

import msgspec

from pricing.graduated import graduated_charges
from pricing.package import package
from pricing.per_unit import per_unit
from pricing.proration import WHOLE
from pricing.quantity import priced_quantity
from pricing.tier_charge import TierCharge
from pricing.volume import volume_charges
from schemas.currency import from_minor, round_to_minor
from schemas.decimals import exact
from schemas.product import (
    FlatFeePrice,
    GraduatedPrice,
    MinimumPrice,
    PackagePrice,
    PerUnitPrice,
    ProductSpec,
    UsagePrice,
    VolumePrice,
)


class NamedMeter(Protocol):
    """The fields of a meter that a line's description shows."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...


class MissingMeter(LookupError):
    """A priced meter has no quantity or no name. Silence would price it as 0; a caller that means 0 says so."""


class InvoiceLine(msgspec.Struct, frozen=True):
    """What one price adds to an invoice.

    meter_id: None for flat fee and minimum. price_index: position in the product's prices. model: of the price.
    quantity: the cycle's total as metered, perhaps negative; 1 for a fixed price. included: units that cost nothing.
    priced_quantity: max(0, quantity − included). amount: major units, rounded; amount_minor: the same as Stripe's
    integer. tiers: unrounded parts of a tiered price, else empty.
    """

    meter_id: str | None
    price_index: int
    model: str
    description: str
    quantity: Decimal
    included: Decimal
    priced_quantity: Decimal
    amount: Decimal
    amount_minor: int
    currency: str
    tiers: tuple[TierCharge, ...] = ()


class InvoiceComputation(msgspec.Struct, frozen=True):
    """Lines and their sum, before tax; total in major units, total_minor as Stripe's integer."""

    currency: str
    lines: tuple[InvoiceLine, ...]
    total: Decimal
    total_minor: int


@exact
def price_lines(
    product: ProductSpec,
    quantities: Mapping[str, Decimal],
    *,
    meters: Mapping[str, NamedMeter],
    proration: Fraction | Decimal | None = None,
) -> InvoiceComputation:
    """Price one cycle of one subscription.

    quantities: meter id → the cycle's total, for every priced meter; others are not looked at. meters: meter id → its
    name and unit. proration: share of the cycle, 0 to 1, for flat fees and minimum; None is a whole one. Included units
    and tiers count in full.
    Raises MissingMeter; NegativeQuantity for a NaN or infinite quantity; ValueError for a share outside of 0 to 1.
    """
    share = _share(proration)
    usage: list[InvoiceLine] = []
    top_ups: list[InvoiceLine] = []
    fees: list[InvoiceLine] = []
    for index, price in enumerate(product.prices):
        if isinstance(price, UsagePrice):
            usage.append(_usage_line(product.currency, index, price, quantities, meters))
        elif isinstance(price, FlatFeePrice):
            fees.append(
                _fixed_line(
                    product.currency,
                    index,
                    price.model,
                    "Flat fee",
                    _prorated(price.amount, product.currency, share),
                    share,
                )
            )
    for index, price in enumerate(product.prices):
        if isinstance(price, MinimumPrice):
            missing_minor = _prorated(price.amount, product.currency, share) - sum(line.amount_minor for line in usage)
            if missing_minor > 0:
                top_ups.append(
                    _fixed_line(product.currency, index, price.model, "Top-up to the minimum", missing_minor, share)
                )
    lines = (*usage, *top_ups, *fees)
    total_minor = sum(line.amount_minor for line in lines)
    return InvoiceComputation(product.currency, lines, from_minor(total_minor, product.currency), total_minor)


def _share(proration: Fraction | Decimal | None) -> Fraction:
    """WHOLE itself where it is all of the cycle, as nearly always: fractions are slow to make and to compare."""
    if proration is None or proration is WHOLE:
        return WHOLE
    share = Fraction(proration)
    if not 0 <= share <= 1:
        raise ValueError(f"proration must be from 0 to 1, is {proration}")
    return WHOLE if share == WHOLE else share


@exact
def usage_amount(price: UsagePrice, quantity: Decimal) -> tuple[Decimal, tuple[TierCharge, ...]]:
    """Unrounded amount in major units of `quantity` priced units, and its tiers. Raises NegativeQuantity."""
    match price:
        case PerUnitPrice():
            return per_unit(quantity, price.unit_amount), ()
        case PackagePrice():
            return package(quantity, price.unit_amount, price.package_size), ()
        case GraduatedPrice():
            tiers = graduated_charges(quantity, price.tiers)
        case VolumePrice():
            tiers = volume_charges(quantity, price.tiers)
    return sum((tier.amount for tier in tiers), Decimal(0)), tiers


def _usage_line(
    currency: str,
    index: int,
    price: UsagePrice,
    quantities: Mapping[str, Decimal],
    meters: Mapping[str, NamedMeter],
) -> InvoiceLine:
    try:
        quantity, meter = quantities[price.meter_id], meters[price.meter_id]
    except KeyError as error:
        raise MissingMeter(f"meter {price.meter_id} of price {index} has no quantity or no name") from error
    priced = priced_quantity(quantity, price.included_units)
    amount, tiers = usage_amount(price, priced)
    amount_minor = round_to_minor(amount, currency)
    return InvoiceLine(
        meter_id=price.meter_id,
        price_index=index,
        model=price.model,
        description=_usage_description(meter, quantity, price.included_units),
        quantity=quantity,
        included=price.included_units,
        priced_quantity=priced,
        amount=from_minor(amount_minor, currency),
        amount_minor=amount_minor,
        currency=currency,
        tiers=tiers,
    )


def _usage_description(meter: NamedMeter, quantity: Decimal, included: Decimal) -> str:
    """`API requests: 12,000 requests, 1,000 included`."""
    text = f"{meter.name}: {_readable(quantity)} {meter.unit}"
    return f"{text}, {_readable(included)} included" if included else text


def _readable(number: Decimal) -> str:
    """Thousands grouped, no trailing zeros: 12000.500 → 12,000.5."""
    text = format(number, ",f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _prorated(amount: Decimal, currency: str, share: Fraction) -> int:
    """Minor units of a fixed amount for a share of the cycle, rounded once."""
    return round_to_minor(amount if share is WHOLE else Fraction(amount) * share, currency)


def _fixed_line(currency: str, index: int, model: str, name: str, amount_minor: int, share: Fraction) -> InvoiceLine:
    return InvoiceLine(
        meter_id=None,
        price_index=index,
        model=model,
        description=name if share is WHOLE else f"{name}, prorated",
        quantity=Decimal(1),
        included=Decimal(0),
        priced_quantity=Decimal(1),
        amount=from_minor(amount_minor, currency),
        amount_minor=amount_minor,
        currency=currency,
    )
