"""Every unit costs the same."""

from __future__ import annotations

from decimal import Decimal

from pricing.quantity import require_priceable
from schemas.decimals import exact


@exact
def per_unit(quantity: Decimal, unit_amount: Decimal) -> Decimal:
    """Charge each unit at the same amount.

    quantity: units, >= 0. unit_amount: major units, >= 0.
    Returns an amount in major units, unrounded. Raises NegativeQuantity.
    Source: Stripe, "per unit" pricing.
    """
    require_priceable(quantity)
    return quantity * unit_amount
