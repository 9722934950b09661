"""The customers and meters of a load: live totals are kept only of what the catalog knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from catalog.record import CatalogObject
from catalog.store import CatalogStore
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.organization import DEFAULT_ORGANIZATION


def make_known(
    catalog: CatalogStore,
    customers: Iterable[str],
    event_names: Iterable[str] = (),
    organization_id: str = DEFAULT_ORGANIZATION,
) -> None:
    """Write those that are missing; in force on return. A name that a meter reads gets no other."""
    own: dict[str, Any] = {"organization_id": organization_id, "created_at": 0}
    wanted: list[CatalogObject] = [
        Customer(id=customer, name=customer, **own)
        for customer in dict.fromkeys(customers)
        if not catalog.view.knows_customer(organization_id, customer)
    ]
    wanted += [
        Meter(id=f"mtr_of_{name}", name=name, event_name=name, unit="1", aggregation=Aggregation.COUNT, **own)
        for name in dict.fromkeys(event_names)
        if not catalog.view.was_metered(organization_id, name)
    ]
    for fate in [catalog.submit(each, 0) for each in wanted]:
        assert fate.result(60) is None
