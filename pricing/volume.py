"""All units cost what the tier says that their number falls in."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from pricing.quantity import require_priceable
from pricing.tier_charge import TierCharge, with_lower_bounds
from schemas.decimals import exact
from schemas.product import Tier


@exact
def volume(quantity: Decimal, tiers: Sequence[Tier]) -> Decimal:
    """Charge all units at the amount of the tier that the whole quantity falls in.

    quantity: units, >= 0. tiers: ascending, up_to inclusive, the last one None.
    Returns an amount in major units, unrounded; one unit more may cost less. Raises NegativeQuantity.
    Source: Stripe, tiered pricing, "volume".
    """
    return sum((charge.amount for charge in volume_charges(quantity, tiers)), Decimal(0))


@exact
def volume_charges(quantity: Decimal, tiers: Sequence[Tier]) -> tuple[TierCharge, ...]:
    """The one tier that the quantity falls in, with all units; none for 0. Raises NegativeQuantity."""
    require_priceable(quantity)
    if quantity == 0:
        return ()
    for lower, tier in with_lower_bounds(tiers):
        if tier.up_to is None or quantity <= tier.up_to:
            return (TierCharge(lower, tier.up_to, quantity, tier.unit_amount, quantity * tier.unit_amount),)
    raise AssertionError("the last tier has no end")  # schemas.product holds this
