"""Units are sold in packages; a begun one counts in full."""

from __future__ import annotations

from decimal import Decimal

from pricing.quantity import require_priceable
from schemas.decimals import exact


@exact
def package(quantity: Decimal, unit_amount: Decimal, package_size: Decimal) -> Decimal:
    """Charge for as many packages as hold the quantity.

    quantity: units, >= 0. unit_amount: major units a package. package_size: units a package, > 0.
    Returns an amount in major units, unrounded. Raises NegativeQuantity.
    Source: Stripe, package pricing ("transform quantity", rounded up).
    """
    return packages(quantity, package_size) * unit_amount


@exact
def packages(quantity: Decimal, package_size: Decimal) -> Decimal:
    """Number of packages that hold the quantity, the last one perhaps in part. Raises NegativeQuantity."""
    require_priceable(quantity)
    full, rest = divmod(quantity, package_size)
    return full + 1 if rest else full
