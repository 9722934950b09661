"""What the routes work with, made once a process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from catalog.store import CatalogStore
from dashboard.live import LiveTotals
from schemas.settings import Settings


@dataclass(frozen=True)
class Services:
    """catalog, live: started and stopped by the owner. stopping: set when open streams should end."""

    settings: Settings
    catalog: CatalogStore
    live: LiveTotals
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


def now_us() -> int:
    """The clock, µs since 1970: read at the edges only."""
    return time.time_ns() // 1000
