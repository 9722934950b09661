"""What the routes work with, made once a process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from catalog.store import CatalogStore
from dashboard.live import LiveTotals
from dashboard.warehouse_access import WarehouseAccess
from runtime.health import Check
from schemas.settings import Settings


@dataclass(frozen=True)
class Services:
    """catalog, live, warehouse: started and stopped by the owner. stopping: set when open streams should end."""

    settings: Settings
    catalog: CatalogStore
    live: LiveTotals
    warehouse: WarehouseAccess
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def checks(self) -> dict[str, Check]:
        """What must be well for the pages to tell the truth."""
        return {
            "catalog": lambda: None if self.catalog.ready else "the catalog's log is not being read",
            "live_totals": self.live.check,
        }


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


def now_us() -> int:
    """The clock, µs since 1970: read at the edges only."""
    return time.time_ns() // 1000
