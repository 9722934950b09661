"""What the routes work with, made once a process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

from fastapi import Request

from catalog.store import CatalogStore
from schemas.settings import Settings


@dataclass(frozen=True)
class Services:
    """catalog: started already."""

    settings: Settings
    catalog: CatalogStore


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


def now_us() -> int:
    """The clock, µs since 1970: read at the edges only."""
    return time.time_ns() // 1000
