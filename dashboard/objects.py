"""catalog's objects ⇄ the API's: instants as RFC 3339, decimals as strings, no tenant and no digest of a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from catalog.record import CatalogObject
from schemas.alert_rule import AlertRuleSpec
from schemas.currency import Currency
from schemas.customer import Address, CollectionMethod, CustomerFields, TaxId
from schemas.meter import Aggregation, MeterSpec
from schemas.organization import GraceSeconds, Identifier, Name, OrganizationFields, Scope, TimeZone
from schemas.period import BillingInterval, format_rfc3339
from schemas.product import Price
from schemas.webhook_delivery import DeliveryState
from schemas.webhook_endpoint import WebhookEndpointSpec, WebhookUrl

T = TypeVar("T")
AnyPrice = Annotated[Price, Field(discriminator="model")]

Instant = Annotated[
    int,
    PlainSerializer(format_rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-03-30T12:00:00Z"]}),
]
"""µs since 1970 inside, RFC 3339 in UTC outside."""


class Stored(BaseModel, extra="ignore"):
    """What every object has. version: grows with every change; the ETag. archived: no longer in force."""

    id: str
    created_at: Instant
    archived: bool
    version: int


class MeterOut(Stored, MeterSpec, extra="ignore"):
    """A meter."""


class ProductOut(Stored, extra="ignore"):
    """A product with its prices."""

    name: Name
    currency: Currency
    prices: tuple[AnyPrice, ...]
    benefits: tuple[str, ...]


class CustomerOut(Stored, CustomerFields, extra="ignore"):
    """A customer."""

    id: str  # pyright: ignore[reportIncompatibleVariableOverride]


class AlertRuleOut(Stored, AlertRuleSpec, extra="ignore"):
    """An alert rule."""


class NewAlertRuleOut(AlertRuleOut, extra="ignore"):
    """customers_reached: how many have reached the threshold in their current cycle already; null: not known now."""

    customers_reached: int | None


class OrganizationOut(Stored, OrganizationFields, extra="ignore"):
    """The organization and its settings."""


class ProductChangeOut(BaseModel, extra="ignore"):
    """Another product from an instant on, a cycle's start."""

    product_id: str
    from_: Annotated[Instant, Field(validation_alias="from_us", serialization_alias="from")]


class SubscriptionOut(Stored, extra="ignore"):
    """ends_at null: it goes on. billed_from null: it is billed from its start on. status: scheduled, active or ended,
    now. current_cycle null unless it is active.
    """

    customer_id: str
    product_id: str
    started_at: Instant
    ends_at: Instant | None
    billed_from: Instant | None
    billing_interval: BillingInterval
    collection_method: CollectionMethod
    time_zone: str
    changes: tuple[ProductChangeOut, ...]
    status: str
    current_cycle: CycleOut | None


class CycleOut(BaseModel):
    """Half-open: from start, before end."""

    start: Instant
    end: Instant


class ApiKeyOut(Stored, extra="ignore"):
    """A key without its secret. hint: the secret's last characters."""

    name: str
    scopes: tuple[Scope, ...]
    hint: str


class NewApiKeyOut(ApiKeyOut, extra="ignore"):
    """secret: shown now and never again."""

    secret: str


class WebhookEndpointOut(Stored, WebhookEndpointSpec, extra="ignore"):
    """Where alerts are sent to."""


class NewWebhookEndpointOut(WebhookEndpointOut, extra="ignore"):
    """secret: verifies what is sent (Standard Webhooks). Shown when the endpoint is made, and at no other time."""

    secret: str


class AttemptOut(BaseModel):
    """status: of the answer; null: there was none, error says why."""

    at: Instant
    status: int | None
    error: str | None
    milliseconds: int


class WebhookDeliveryOut(BaseModel):
    """An alert on its way to an endpoint. attempts: the last ones, of attempts_made. payload: the body that is sent."""

    id: str
    endpoint_id: str
    alert_id: str
    customer_id: str
    state: DeliveryState
    created_at: Instant
    next_attempt_at: Instant | None
    attempts_made: int
    attempts: tuple[AttemptOut, ...]
    payload: str


class Changes(BaseModel):
    """Fields to change; what is left out stays as it is (RFC 7396, at the first level)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MeterChanges(Changes):
    """event_name and aggregation are taken only as they are: a new meter is made for others."""

    name: Name | None = None
    unit: Name | None = None
    event_name: Identifier | None = None
    aggregation: Aggregation | None = None


class ProductChanges(Changes):
    """currency and prices are taken only as they are: a new product is made for others."""

    name: Name | None = None
    currency: Currency | None = None
    prices: tuple[AnyPrice, ...] | None = None
    benefits: tuple[str, ...] | None = None


class CustomerChanges(Changes):
    name: Name | None = None
    email: str | None = None
    address: Address | None = None
    tax_ids: tuple[TaxId, ...] | None = None
    stripe_customer_id: str | None = None
    payment_method: str | None = None


class WebhookEndpointChanges(Changes):
    url: WebhookUrl | None = None
    description: str | None = None


class SubscriptionChanges(Changes):
    collection_method: CollectionMethod | None = None


class OrganizationChanges(Changes):
    """A new time_zone holds for subscriptions that are made from then on."""

    name: Name | None = None
    time_zone: TimeZone | None = None
    late_policy: Literal["next_invoice", "ignore"] | None = None
    invoice_approval: Literal["automatic", "manual"] | None = None
    grace_seconds: GraceSeconds | None = None
    tax_mode: Literal["none", "stripe_automatic", "rates"] | None = None
    tax_rates: tuple[str, ...] | None = None
    stripe_account_id: str | None = None


class ProductChoice(BaseModel):
    """The product of a subscription from its next cycle on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product_id: Identifier


class Page(BaseModel, Generic[T]):
    """A part of a list, newest first. next_cursor: for the parameter `cursor`; null on the last page."""

    data: list[T]
    next_cursor: str | None = None


def fields_of(state: CatalogObject, version: int) -> dict[str, Any]:
    """The state's own fields and the version, for an Out model to take what it shows."""
    return {**{name: getattr(state, name) for name in type(state).model_fields}, "version": version}


def spec_fields(state: CatalogObject, spec: type[BaseModel]) -> dict[str, Any]:
    """The fields that a merchant may send, as they are now."""
    return {name: getattr(state, name) for name in spec.model_fields if name in type(state).model_fields}


def changed_fields(current: Mapping[str, Any], changes: BaseModel) -> dict[str, Any]:
    """The current fields with those that were sent put over them."""
    return {**current, **{name: getattr(changes, name) for name in changes.model_fields_set}}


SubscriptionOut.model_rebuild()
