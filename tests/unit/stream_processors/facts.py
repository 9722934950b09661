"""A catalog in a few words: objects that tests apply to a view, and batches to count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catalog.record import CatalogObject, CatalogRecord
from catalog.view import CatalogView
from schemas.alert_rule import AlertKind, AlertRule
from schemas.customer import Customer
from schemas.event import unscaled_value
from schemas.meter import Aggregation, Meter
from schemas.organization import Organization
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.usage_batch import UsageBatch, unscaled_bytes

ORG = "default"
us = parse_rfc3339


def view_of(*objects: CatalogObject) -> CatalogView:
    """A view in which these were written, in this order, each of them accepted."""
    view = CatalogView()
    for state in objects:
        put(view, state)
    return view


def put(view: CatalogView, state: CatalogObject) -> CatalogRecord:
    """Write an object, new or changed; the record."""
    record = CatalogRecord(state, view.version(type(state), state.organization_id, state.id), 0)
    assert view.apply(record) is None
    return record


def known(customers: str = "abc", event_names: Sequence[str] = ("calls", "bytes")) -> CatalogView:
    """A view with customers of one letter each, and a meter for each name."""
    return view_of(*map(customer, customers), *(meter(name, name) for name in event_names))


def organization(zone: str = "UTC") -> Organization:
    return Organization(id=ORG, organization_id=ORG, created_at=0, time_zone=zone)


def customer(customer_id: str) -> Customer:
    return Customer(id=customer_id, organization_id=ORG, created_at=0, name=customer_id)


def meter(name: str, event_name: str = "calls", aggregation: Aggregation = Aggregation.SUM) -> Meter:
    return Meter(
        id=f"mtr_{name}",
        organization_id=ORG,
        created_at=0,
        name=name,
        event_name=event_name,
        unit="units",
        aggregation=aggregation,
    )


def product(name: str, *meters: str) -> Product:
    prices = [{"model": "per_unit", "meter_id": f"mtr_{each}", "unit_amount": "1"} for each in meters]
    return Product.model_validate(
        {
            "id": f"prod_{name}",
            "organization_id": ORG,
            "created_at": 0,
            "name": name,
            "currency": "eur",
            "prices": prices,
        }
    )


def subscription(name: str, of: str, to: str, started_at: str, ends_at: str | None = None, **more: Any) -> Subscription:
    values: dict[str, Any] = {
        "id": f"sub_{name}",
        "organization_id": ORG,
        "customer_id": of,
        "product_id": f"prod_{to}",
        "started_at": us(started_at),
        "ends_at": us(ends_at) if ends_at else None,
        "billing_interval": "month",
        "collection_method": "charge_automatically",
        "time_zone": "UTC",
        "created_at": 0,
    }
    return Subscription.model_validate({**values, **more})


def rule(name: str, on: str, threshold: str, of: str | None = None, kind: AlertKind = AlertKind.QUANTITY) -> AlertRule:
    return AlertRule.model_validate(
        {
            "id": f"rule_{name}",
            "organization_id": ORG,
            "created_at": 0,
            "meter_id": f"mtr_{on}",
            "customer_id": of,
            "kind": kind,
            "threshold": threshold,
        }
    )


Row = tuple[str, str, int, str | None, str]
"""customer_id, event_name, timestamp, value as it is spelled, identity."""


def batch(rows: Sequence[Row], received_at: int = 0, organization_id: str = ORG) -> UsageBatch:
    return UsageBatch(
        batch_id=bytes(16),
        received_at=received_at,
        organization_id=[organization_id] * len(rows),
        customer_id=[row[0] for row in rows],
        event_name=[row[1] for row in rows],
        timestamp=[row[2] for row in rows],
        value=[None if row[3] is None else unscaled_bytes(unscaled_value(row[3])) for row in rows],
        identity=[row[4] for row in rows] if any(row[4] for row in rows) else (),
    )
