"""Each unit costs what the tier says that it falls in."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from pricing.quantity import require_priceable
from pricing.tier_charge import TierCharge, with_lower_bounds
from schemas.decimals import exact
from schemas.product import Tier


@exact
def graduated(quantity: Decimal, tiers: Sequence[Tier]) -> Decimal:
    """Charge each unit at the amount of the tier it falls in.

    quantity: units, >= 0. tiers: ascending, up_to inclusive, the last one None.
    Returns an amount in major units, unrounded. Raises NegativeQuantity.
    Source: Stripe, tiered pricing, "graduated".
    """
    return sum((charge.amount for charge in graduated_charges(quantity, tiers)), Decimal(0))


@exact
def graduated_charges(quantity: Decimal, tiers: Sequence[Tier]) -> tuple[TierCharge, ...]:
    """The tiers that the quantity reaches, each with the units that fall in it; none for 0. Raises NegativeQuantity."""
    require_priceable(quantity)
    charges: list[TierCharge] = []
    for lower, tier in with_lower_bounds(tiers):
        upper = quantity if tier.up_to is None else min(quantity, tier.up_to)
        if upper <= lower:
            break
        units = upper - lower
        charges.append(TierCharge(lower, tier.up_to, units, tier.unit_amount, units * tier.unit_amount))
    return tuple(charges)
