"""/ : the numbers as they move, what fired, what was invoiced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from dashboard.conservation import Conservations
from dashboard.overview import usage_table
from dashboard.pages.alert_list import SHOWN, alert_list
from dashboard.pages.rendering import render
from dashboard.pages.session import COOKIE, Session, Visitor, organization_of, sessions_of
from dashboard.read.stream import changes
from dashboard.services import Services, services_of
from dashboard.usage_queries import accepted_since, invoice_summary
from runtime.clock import now_us
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.period import window_containing
from schemas.webhook_delivery import DeliveryState
from warehouse.client import WarehouseUnavailable

router = APIRouter(include_in_schema=False)
ALERTS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """What ClickHouse says. accepted: events since the day began. behind: messages of the log, not stored yet."""

    accepted: int
    behind: int | None
    invoiced: list[tuple[str, str, int, Decimal]]


def _table(request: Request, visitor: Session) -> dict[str, Any]:
    services = services_of(request)
    view, organization = services.catalog.view, visitor.organization_id
    meters = sum(not meter.archived for meter in view.all(Meter, organization))
    table = usage_table(services.live.view, view, organization)
    # For the example of a first event: usage of a customer that does not exist is not shown here.
    customers = () if table.rows else view.all(Customer, organization)
    customer = next((each for each in customers if not each.archived), None)
    return {
        "table": table,
        "meter_count": meters,
        "customer": customer,
        "is_whole": services.live.view.is_whole(organization),
    }


async def _stored(services: Services, organization_id: str, zone: str, now: int) -> Stored | None:
    """None: ClickHouse does not answer."""
    today = window_containing(zone, "day", now).start_us
    run, ends = services.warehouse.run, services.live.next_offsets
    try:
        accepted, watermark, invoiced = await asyncio.gather(
            run(accepted_since, organization_id, today),
            services.warehouse.stored(),
            run(invoice_summary, organization_id),
        )
    except WarehouseUnavailable:
        return None
    behind = None
    if ends is not None:
        behind = sum(
            max(0, end - (watermark.offsets.get(partition, 0) if watermark else 0)) for partition, end in ends.items()
        )
    return Stored(accepted, behind, invoiced)


async def _numbers(request: Request, visitor: Session) -> dict[str, Any]:
    """Live numbers come from memory; what is stored is left out, and said to be, while ClickHouse does not answer."""
    services, organization, now = services_of(request), visitor.organization_id, now_us()
    zone = organization_of(request, visitor).time_zone
    alerts = services.live.view.alerts(organization)
    stored, revenue = await asyncio.gather(
        _stored(services, organization, zone, now), services.revenue.of(organization, now)
    )
    deliveries = services.live.view.deliveries(organization)
    return {
        "rate": services.live.view.rates.per_second(organization, now),
        "lag": services.live.lag(now),
        "stored": stored,
        "revenue": revenue,
        "alert_count": len(alerts),
        "open_alert_count": sum(alert.cycle_end > now for alert in alerts),
        "undelivered": sum(each.state is not DeliveryState.DELIVERED for each in deliveries),
    }


@router.get("/")
async def overview(request: Request, visitor: Visitor) -> Response:
    return render(
        request,
        "overview.html",
        visitor,
        alerts=alert_list(services_of(request), visitor.organization_id, ALERTS_SHOWN),
        **_table(request, visitor),
        **await _numbers(request, visitor),
    )


@router.get("/live/numbers")
async def live_numbers(request: Request, visitor: Visitor) -> Response:
    """The tiles alone, for a page that is open."""
    return render(request, "live_numbers.html", visitor, **await _numbers(request, visitor))


@router.get("/live/conservation")
async def live_conservation(request: Request, visitor: Visitor) -> Response:
    """What became of every accepted event: it takes as long as reading all of them, and no page waits for it."""
    conservations = cast(Conservations, request.app.state.conservations)
    found = await conservations.of(services_of(request), visitor.organization_id)
    return render(request, "live_conservation.html", visitor, found=found)


@router.get("/live/totals")
async def live_totals(request: Request, visitor: Visitor) -> Response:
    """The table alone, for a page that is open."""
    return render(request, "live_totals.html", visitor, **_table(request, visitor))


@router.get("/live/alerts")
async def live_alerts(request: Request, visitor: Visitor, all: bool = False) -> Response:
    """The newest alerts alone, for a page that is open."""
    shown = SHOWN if all else ALERTS_SHOWN
    return render(
        request,
        "live_alerts.html",
        visitor,
        alerts=alert_list(services_of(request), visitor.organization_id, shown),
    )


def _open_stream(request: Request, visitor: Visitor) -> Generator[None]:
    with services_of(request).limits.stream(visitor.organization_id, visitor.key_id):
        yield


OpenStream = Annotated[None, Depends(_open_stream)]
"""Counted until its answer has ended."""


@router.get("/live/stream", response_class=EventSourceResponse)
async def live_stream(request: Request, visitor: Visitor, _: OpenStream) -> AsyncIterator[ServerSentEvent]:
    """The same events as /api/v1/stream, for the visitor's pages."""
    sessions, cookie = sessions_of(request), request.cookies.get(COOKIE)
    is_signed_in = lambda: sessions.read(cookie) is not None  # noqa: E731
    async for event in changes(services_of(request), visitor.organization_id, is_signed_in):
        yield event
