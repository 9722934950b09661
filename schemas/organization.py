"""The tenant and its keys."""

from __future__ import annotations

import hashlib
import secrets
from enum import StrEnum
from functools import cache
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from schemas.stripe_ids import StripeAccountId, TaxRateId

DEFAULT_ORGANIZATION = "default"
KEY_PREFIX = "ubk_"

Name = Annotated[str, StringConstraints(min_length=1, max_length=256, strip_whitespace=True)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]


@cache
def _zones() -> frozenset[str]:
    """Asking the system takes 5 ms, which a catalog of many subscriptions would take for each."""
    return frozenset(available_timezones())


def _known_zone(name: str) -> str:
    if name not in _zones():
        raise ValueError(f'"{name}" isn\'t a time zone; try Europe/Vienna')
    return name


TimeZone = Annotated[str, AfterValidator(_known_zone)]


def _no_bool(value: object) -> object:
    """JSON's true and false are not numbers, though Python's are."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "a whole number is expected")
    return value


GraceSeconds = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]


class Scope(StrEnum):
    """The permissions of a key. admin includes the other two."""

    INGEST = "ingest"
    READ = "read"
    ADMIN = "admin"


class OrganizationFields(BaseModel):
    """Settings of an organization. stripe_account_id: sent as Stripe-Account; None: the operator is the seller.

    Stripe's ids are checked where they are entered; here they are as they were stored, perhaps before that check.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = "Default"
    time_zone: TimeZone = "UTC"
    late_policy: Literal["next_invoice", "ignore"] = "next_invoice"
    grace_seconds: Annotated[GraceSeconds | None, Field(description="None: USAGE_CLOSE_GRACE_SECONDS")] = None
    invoice_approval: Annotated[
        Literal["automatic", "manual"], Field(description="manual: nothing is charged that nobody has approved")
    ] = "automatic"
    tax_mode: Literal["none", "stripe_automatic", "rates"] = "none"
    tax_rates: tuple[str, ...] = ()
    stripe_account_id: str | None = None


class OrganizationSpec(OrganizationFields):
    """The fields that an operator or a merchant enters."""

    tax_rates: Annotated[tuple[TaxRateId, ...], Field(validate_default=True)] = ()
    stripe_account_id: StripeAccountId | None = None

    @field_validator("tax_rates")
    @classmethod
    def _rates_are_given(cls, rates: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # Without one, Stripe would be asked for no tax at all.
        if info.data.get("tax_mode") == "rates" and not rates:
            raise PydanticCustomError("tax_rates_missing", "at least one tax rate is needed, since tax_mode is rates")
        return rates


class Organization(OrganizationFields):
    """organization_id equals id, so that every object of the catalog names its tenant the same way."""

    id: Identifier
    organization_id: Identifier
    created_at: int  # µs
    archived: bool = False


class ApiKeySpec(BaseModel):
    """The fields of a request for a new key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = "key"
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]


class ApiKey(ApiKeySpec):
    """A key as it is kept: the secret's SHA-256 in hex, never the secret."""

    id: Identifier
    organization_id: Identifier
    sha256: str
    hint: str  # the last four characters, to recognise it by
    created_at: int  # µs
    archived: bool = False  # revoked

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


def new_secret() -> str:
    """A key's secret: 256 random bits behind a prefix that secret scanners can find."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def secret_digest(secret: str) -> str:
    """SHA-256 in hex. High entropy in, so no salt and no stretching; a look-up by digest leaks no time."""
    return hashlib.sha256(secret.encode()).hexdigest()
