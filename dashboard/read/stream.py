"""/api/v1/stream: totals and alerts as they change, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from dashboard.auth import Caller
from dashboard.live_rows import alert_out, live_rows
from dashboard.routing import ReadRoute, api_router
from dashboard.services import Services, services_of
from schemas.organization import ApiKey

router = api_router(ReadRoute, "Usage")

GATHER_SECONDS = 0.25
"""Changes within this time are sent together: nobody reads faster."""
ROWS_PER_EVENT_MAX = 500
ALLOWED_SECONDS = 1.0


def _open_stream(request: Request, caller: Caller) -> Generator[None]:
    with services_of(request).limits.stream(caller.organization_id, caller.key_id):
        yield


OpenStream = Annotated[None, Depends(_open_stream)]
"""Counted until its answer has ended."""


@router.get("/stream", response_class=EventSourceResponse)
async def stream_usage(request: Request, caller: Caller, _: OpenStream) -> AsyncIterator[ServerSentEvent]:
    """What changes, within a moment.

    `ready`: once, at the start. `totals`: rows as in /usage/live. `alerts`: as in /alerts. `resync`: more changed than
    was kept for this client; read again what you show. A comment every 15 s keeps the connection.
    """
    services = services_of(request)

    def is_in_force() -> bool:
        key = services.catalog.view.get(ApiKey, caller.organization_id, caller.key_id)
        return key is not None and not key.archived

    async for event in changes(services, caller.organization_id, is_in_force):
        yield event


async def changes(
    services: Services, organization_id: str, is_allowed: Callable[[], bool]
) -> AsyncIterator[ServerSentEvent]:
    """What changes of an organization from now on. Ends with the process, or when the client is gone.

    is_allowed: whether the key or session that asked is still in force; asked every second, so that a revoked key's
    streams end within two.
    """
    listener = services.live.listen(organization_id)
    try:
        yield ServerSentEvent(event="ready", data={}, retry=1000)
        while not services.stopping.is_set() and is_allowed():
            await _either(listener.changed, services.stopping)
            if not is_allowed():  # nothing that came meanwhile is sent
                break
            totals, alerts, overflowed = listener.take()
            if overflowed:
                yield ServerSentEvent(event="resync", data={})
            rows = [_json(row) for row in live_rows(services.catalog.view, totals)]
            for start in range(0, len(rows), ROWS_PER_EVENT_MAX):
                yield ServerSentEvent(event="totals", data=rows[start : start + ROWS_PER_EVENT_MAX])
            if alerts:
                yield ServerSentEvent(event="alerts", data=[_json(alert_out(alert)) for alert in alerts])
            await asyncio.sleep(GATHER_SECONDS)
    finally:
        services.live.forget(listener)


def _json(row: Any) -> Any:
    return row.model_dump(mode="json", by_alias=True)


async def _either(*events: asyncio.Event) -> None:
    """Return when one of the events is set, or after a second."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=ALLOWED_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
