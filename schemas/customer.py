"""Customers: metered and billed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from schemas.organization import Identifier, Name
from schemas.stripe_ids import PaymentMethodId, StripeCustomerId
from schemas.tax_ids import check_tax_id

Text = Annotated[str, StringConstraints(max_length=500)]
_LABELS = r"[^@\s.]+(\.[^@\s.]+)*"
Email = Annotated[str, StringConstraints(max_length=512, pattern=rf"^{_LABELS}@{_LABELS}$")]
"""An address that can be somebody's: no part between dots is empty."""
TAX_IDS_MAX = 5
"""Source: Stripe, "Customer tax IDs"."""


class Address(BaseModel):
    """A postal address with Stripe's field names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    line1: Text | None = None
    line2: Text | None = None
    city: Text | None = None
    postal_code: Text | None = None
    state: Text | None = None
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = None


class TaxId(BaseModel):
    """A tax id with Stripe's type names, such as eu_vat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Text
    value: Text


def _checked(tax_id: TaxId) -> TaxId:
    check_tax_id(tax_id.type, tax_id.value)
    return tax_id


class CustomerFields(BaseModel):
    """`id` is the customer_id that events name.

    stripe_customer_id: an existing customer at Stripe; without one it is made at the first invoice.
    payment_method: a Stripe payment method or test token. What Stripe takes is checked where it is entered; here it is
    as it was stored, perhaps before there was a check.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Identifier | None = None
    name: Name
    email: str | None = None
    address: Address | None = None
    tax_ids: tuple[TaxId, ...] = ()
    stripe_customer_id: str | None = None
    payment_method: str | None = None


class CustomerSpec(CustomerFields):
    """The fields that a merchant posts."""

    email: Email | None = None
    tax_ids: Annotated[tuple[Annotated[TaxId, AfterValidator(_checked)], ...], Field(max_length=TAX_IDS_MAX)] = ()
    stripe_customer_id: StripeCustomerId | None = None
    payment_method: PaymentMethodId | None = None


class Customer(CustomerFields):
    """A customer as the catalog keeps it."""

    id: Identifier  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    organization_id: Identifier
    created_at: int  # µs
    archived: bool = False


CollectionMethod = Literal["charge_automatically", "send_invoice"]
