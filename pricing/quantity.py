"""quantity, included units → the quantity that costs something."""

from __future__ import annotations

from decimal import Decimal

from schemas.decimals import exact


class NegativeQuantity(ValueError):
    """A price was asked for a quantity below 0, NaN or infinite: `priced_quantity` gives none of them."""


@exact
def priced_quantity(quantity: Decimal, included: Decimal) -> Decimal:
    """Units to be priced: max(0, quantity − included); a negative total prices as 0.

    quantity: the cycle's total. included: units that cost nothing, >= 0. Raises NegativeQuantity for NaN and infinity.
    """
    if not quantity.is_finite():
        raise NegativeQuantity(f"quantity must be finite, is {quantity}")
    return max(Decimal(0), quantity - included)


def require_priceable(quantity: Decimal) -> None:
    """Raises NegativeQuantity unless quantity is finite and >= 0."""
    if not quantity.is_finite() or quantity < 0:
        raise NegativeQuantity(f"quantity must be finite and not negative, is {quantity}")
