"""Products: a currency, prices of usage and fixed prices, benefits.

Usage price: `per_unit`, `graduated`, `volume` or `package` of one meter; priced quantity = max(0, quantity −
included_units), and tiers run over the priced quantity from 0. Fixed price: `flat_fee` (in arrears) and `minimum` (of
the sum of a product's usage lines).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from schemas.currency import Currency
from schemas.decimals import Amount, Quantity
from schemas.organization import Identifier, Name

PRICES_MAX = 100
TIERS_MAX = 100
BENEFITS_MAX = 50


# frozen as a class argument, at each class: so do type checkers see that it is immutable and can be hashed.
class _Closed(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid")


class Tier(_Closed, frozen=True):
    """up_to: last unit of the tier, inclusive; None: no end. unit_amount: major units a unit."""

    up_to: Quantity | None
    unit_amount: Amount


def _contiguous(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    """Tiers ascend from above 0, and only the last one has no end: every quantity falls in exactly one."""
    lower = Decimal(0)
    for position, tier in enumerate(tiers[:-1], start=1):
        if tier.up_to is None:
            raise PydanticCustomError(
                "tiers_open", "tier {position}: only the last tier has up_to null", {"position": position}
            )
        if tier.up_to <= lower:
            raise PydanticCustomError(
                "tiers_order", "tier {position}: up_to must be above {lower}", {"position": position, "lower": lower}
            )
        lower = tier.up_to
    if tiers[-1].up_to is not None:
        raise PydanticCustomError("tiers_closed", "the last tier must have up_to null")
    return tiers


Tiers = Annotated[tuple[Tier, ...], Field(min_length=1, max_length=TIERS_MAX), AfterValidator(_contiguous)]


class _UsagePrice(_Closed, frozen=True):
    """included_units: units of each cycle that cost nothing."""

    meter_id: Identifier
    included_units: Quantity = Decimal(0)


class PerUnitPrice(_UsagePrice, frozen=True):
    """Every unit costs the same."""

    model: Literal["per_unit"] = "per_unit"
    unit_amount: Amount


class GraduatedPrice(_UsagePrice, frozen=True):
    """Each unit costs what the tier says that it falls in."""

    model: Literal["graduated"] = "graduated"
    tiers: Tiers


class VolumePrice(_UsagePrice, frozen=True):
    """All units cost what the tier says that their number falls in."""

    model: Literal["volume"] = "volume"
    tiers: Tiers


class PackagePrice(_UsagePrice, frozen=True):
    """Units are sold in packages of package_size; a begun one counts in full. unit_amount: of a package."""

    model: Literal["package"] = "package"
    unit_amount: Amount
    package_size: Annotated[Quantity, Field(gt=0)]


class FlatFeePrice(_Closed, frozen=True):
    """A fixed amount a cycle, in arrears."""

    model: Literal["flat_fee"] = "flat_fee"
    amount: Amount


class MinimumPrice(_Closed, frozen=True):
    """The least amount of a cycle's usage lines; the rest is topped up."""

    model: Literal["minimum"] = "minimum"
    amount: Amount


UsagePrice = PerUnitPrice | GraduatedPrice | VolumePrice | PackagePrice
Price = UsagePrice | FlatFeePrice | MinimumPrice


class ProductSpec(_Closed, frozen=True):
    """The fields that a merchant posts."""

    name: Name
    currency: Currency
    prices: Annotated[tuple[Annotated[Price, Field(discriminator="model")], ...], Field(max_length=PRICES_MAX)]
    benefits: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...], Field(max_length=BENEFITS_MAX)
    ] = ()

    @model_validator(mode="after")
    def _unambiguous(self) -> ProductSpec:
        meters = self.meter_ids
        for meter_id in meters:
            if meters.count(meter_id) > 1:
                raise PydanticCustomError(
                    "meter_twice", "meter {meter_id} has more than one price", {"meter_id": meter_id}
                )
        if sum(isinstance(price, MinimumPrice) for price in self.prices) > 1:
            raise PydanticCustomError("minimum_twice", "a product has at most one minimum")
        if len(set(self.benefits)) < len(self.benefits):
            raise PydanticCustomError("benefit_twice", "a benefit is named twice")
        return self

    @property
    def meter_ids(self) -> tuple[str, ...]:
        """Meters whose usage is priced, in the order of the prices."""
        return tuple(price.meter_id for price in self.prices if isinstance(price, UsagePrice))


class Product(ProductSpec, frozen=True):
    """A product as the catalog keeps it. created_at: µs since 1970, UTC."""

    id: Identifier
    organization_id: Identifier
    created_at: int
    archived: bool = False
