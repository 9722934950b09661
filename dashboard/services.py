"""The parts that routes use, created once in a process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from fastapi import Request

from catalog.store import CatalogStore
from dashboard.billing_port import BillingPort, BillingRun, CyclesBilled
from dashboard.counting import Countings, Rounds
from dashboard.live import LiveTotals
from dashboard.revenue_book import RevenueBook
from dashboard.usage_figures import Figures
from dashboard.voiding import EventVoids
from dashboard.warehouse_access import WarehouseAccess
from dashboard.webhooks.worker import DeliveryLog
from runtime.health import Check
from runtime.limits import KeyLimits
from schemas.settings import Settings
from warehouse.audit import Audit


@dataclass(frozen=True, slots=True)
class Upcoming:
    """invoices: documents of a customer's open cycles, as they would be invoiced now. unpriced: why there are none."""

    invoices: list[dict[str, Any]]
    unpriced: str = ""


@dataclass(frozen=True)
class Services:
    """catalog, live, warehouse: started and stopped by the owner. billing None: this process has no ledger.

    figures, upcoming: of usage and invoices of open cycles, being counted; audits: of every event. stopping: set when
    open streams should end.
    """

    settings: Settings
    catalog: CatalogStore
    live: LiveTotals
    warehouse: WarehouseAccess
    deliveries: DeliveryLog
    voids: EventVoids
    revenue: RevenueBook
    webhooks: Check
    billing: BillingPort | None = None
    figures: Countings[Figures] = field(default_factory=Countings[Figures])
    upcoming: Countings[Upcoming] = field(default_factory=Countings[Upcoming])
    runs: Countings[BillingRun] = field(default_factory=Countings[BillingRun])
    audits: Rounds[tuple[Audit, CyclesBilled | None]] = field(default_factory=Rounds[tuple[Audit, CyclesBilled | None]])
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @cached_property
    def limits(self) -> KeyLimits:
        """What a key and an organization may ask of the API and the pages."""
        return KeyLimits(self.settings)

    @property
    def checks(self) -> dict[str, Check]:
        """What must be well for the pages to tell the truth."""
        return {
            "catalog": lambda: None if self.catalog.ready else "the catalog's log is not being read",
            "live_totals": self.live.check,
            "webhooks": self.webhooks,
            "clickhouse": self.warehouse.check,
        }


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)
