"""What one tier adds to an amount: shared by the tiered price models and shown on the invoice line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

import msgspec

from schemas.product import Tier


class TierCharge(msgspec.Struct, frozen=True):  # cheap to make: a close makes hundreds of thousands
    """quantity units at unit_amount each, from the tier (from_exclusive, up_to_inclusive]; None: without end.

    quantity: priced units, > 0. amount: quantity × unit_amount in major units, unrounded.
    """

    from_exclusive: Decimal
    up_to_inclusive: Decimal | None
    quantity: Decimal
    unit_amount: Decimal
    amount: Decimal


def with_lower_bounds(tiers: Sequence[Tier]) -> Iterator[tuple[Decimal, Tier]]:
    """Each tier with the bound that it starts above: 0, then the up_to of the one before."""
    lower = Decimal(0)
    for tier in tiers:
        yield lower, tier
        if tier.up_to is None:
            return
        lower = tier.up_to
