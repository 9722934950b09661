"""One record of the catalog's log: the full new state of one object and the version that its writer saw."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict

from schemas.alert_rule import AlertRule
from schemas.customer import Customer
from schemas.log_break import LogBreak
from schemas.meter import Meter
from schemas.organization import ApiKey, Organization
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.webhook_endpoint import WebhookEndpoint


class Topology(BaseModel):
    """The partition count with which the topics were created. Another one would move customers between partitions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    organization_id: str = ""
    event_partitions: int
    created_at: int  # µs
    archived: bool = False


CatalogObject = (
    Organization
    | ApiKey
    | Meter
    | Product
    | Customer
    | Subscription
    | AlertRule
    | WebhookEndpoint
    | Topology
    | LogBreak
)


class Kind(StrEnum):
    """The kinds of object, as the log names them."""

    TOPOLOGY = "topology"
    ORGANIZATION = "organization"
    API_KEY = "api_key"
    METER = "meter"
    PRODUCT = "product"
    CUSTOMER = "customer"
    SUBSCRIPTION = "subscription"
    ALERT_RULE = "alert_rule"
    WEBHOOK_ENDPOINT = "webhook_endpoint"
    LOG_BREAK = "log_break"


MODELS: dict[Kind, type[CatalogObject]] = {
    Kind.TOPOLOGY: Topology,
    Kind.ORGANIZATION: Organization,
    Kind.API_KEY: ApiKey,
    Kind.METER: Meter,
    Kind.PRODUCT: Product,
    Kind.CUSTOMER: Customer,
    Kind.SUBSCRIPTION: Subscription,
    Kind.ALERT_RULE: AlertRule,
    Kind.WEBHOOK_ENDPOINT: WebhookEndpoint,
    Kind.LOG_BREAK: LogBreak,
}


def kind_of(state: CatalogObject) -> Kind:
    return next(kind for kind, model in MODELS.items() if type(state) is model)


RULES = 2
"""Version of the rules that decide whether a record is valid. Each record is judged by its writer's version, so that
a valid record stays valid.

1: a meter is priced by one subscription of a customer, over all products that the subscription ever had.
2: a meter, and a product, is charged by one subscription of a customer at a time (overlaps.py).
"""


class UnreadableRecord(ValueError):
    """Bytes in the log that are not a record. Every view ignores them."""


@dataclass(frozen=True, slots=True)
class CatalogRecord:
    """A new state of one object, valid if the object is at expected_version when the record is read.

    state: becomes version expected_version + 1.
    expected_version: 0: the object does not exist yet.
    written_at: µs, by the writer's clock; for people, no decision uses it.
    rules: see RULES.
    by: who asked for the change (runtime/actor.py), for people; None: the system itself, or older than the field.
    """

    state: CatalogObject
    expected_version: int
    written_at: int
    rules: int = RULES
    by: str | None = None

    @property
    def kind(self) -> Kind:
        return kind_of(self.state)

    @property
    def key(self) -> tuple[Kind, str, str]:
        return (self.kind, self.state.organization_id, self.state.id)


def encode(record: CatalogRecord) -> bytes:
    """JSON, readable with Kafka's own tools."""
    return msgspec.json.encode(
        {
            "kind": record.kind,
            "expected_version": record.expected_version,
            "written_at": record.written_at,
            "by": record.by,
            "rules": record.rules,
            "state": record.state.model_dump(mode="json"),
        }
    )


def decode(message: bytes) -> CatalogRecord:
    """Raises UnreadableRecord for bytes that are not a record."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(message)
        model = MODELS[Kind(fields["kind"])]
        return CatalogRecord(
            state=model.model_validate(fields["state"], strict=False),
            expected_version=int(fields["expected_version"]),
            written_at=int(fields["written_at"]),
            by=None if fields.get("by") is None else str(fields["by"]),
            rules=int(fields.get("rules", 1)),
        )
    except (ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
        raise UnreadableRecord(str(error)) from error
