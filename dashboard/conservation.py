"""audit → the overview's line that says what became of every accepted event; counted seldom, since it reads all."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from dashboard.counting import Countings
from dashboard.read.audit import AuditOut, audit_of
from dashboard.services import Services
from runtime.clock import now_us

AGE_SECONDS = 5.0
SHARE = 20  # a result is kept at least this many times as long as it took


@dataclass(frozen=True, slots=True)
class Conservation:
    """at: when it was counted, µs. renew_at: not before, monotonic seconds."""

    audit: AuditOut
    at: int
    renew_at: float

    @property
    def classes(self) -> list[tuple[str, int]]:
        """Name and events of each class that has any, most first."""
        counted = [(name, tally.events) for name, tally in self.audit.classes.items() if tally.events]
        return sorted(counted, key=lambda each: -each[1])


class Conservations:
    """The newest count of each organization."""

    def __init__(self) -> None:
        self._known: dict[str, Conservation] = {}
        self._countings = Countings[Conservation]()

    async def of(self, services: Services, organization_id: str) -> Conservation:
        """Counted now, unless it was a moment ago. Raises WarehouseUnavailable."""
        known = self._known.get(organization_id)
        if known is not None and time.monotonic() < known.renew_at:
            return known
        # Shielded: who goes away does not end it for the others.
        return await asyncio.shield(
            self._countings.begun(organization_id, lambda: self._count(services, organization_id))
        )

    async def _count(self, services: Services, organization_id: str) -> Conservation:
        started, at = time.monotonic(), now_us()
        audit = await audit_of(services, organization_id)
        ended = time.monotonic()
        found = Conservation(audit, at, ended + max(AGE_SECONDS, SHARE * (ended - started)))
        self._known[organization_id] = found
        return found
