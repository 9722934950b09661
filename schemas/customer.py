"""Who is metered and billed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from schemas.organization import Identifier, Name
from schemas.stripe_ids import PaymentMethodId, StripeCustomerId

Text = Annotated[str, StringConstraints(max_length=500)]


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


class CustomerFields(BaseModel):
    """`id` is the customer_id that events name.

    stripe_customer_id: an existing customer at Stripe; without one it is made at the first invoice.
    payment_method: a Stripe payment method or test token. What Stripe takes is checked where it is entered; here it is
    as it was stored, perhaps before there was a check.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Identifier | None = None
    name: Name
    email: Annotated[str, StringConstraints(max_length=512, pattern=r"^[^@\s]+@[^@\s]+$")] | None = None
    address: Address | None = None
    tax_ids: tuple[TaxId, ...] = ()
    stripe_customer_id: str | None = None
    payment_method: str | None = None


class CustomerSpec(CustomerFields):
    """What a merchant posts."""

    stripe_customer_id: StripeCustomerId | None = None
    payment_method: PaymentMethodId | None = None


class Customer(CustomerFields):
    """A customer as the catalog keeps it."""

    id: Identifier  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    organization_id: Identifier
    created_at: int  # µs
    archived: bool = False


CollectionMethod = Literal["charge_automatically", "send_invoice"]
