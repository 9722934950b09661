"""/ : the numbers as they move, what fired, what was invoiced."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from dashboard.overview import usage_table
from dashboard.pages.alert_list import SHOWN, alert_list
from dashboard.pages.rendering import render
from dashboard.pages.session import Session, Visitor
from dashboard.read.stream import changes
from dashboard.services import now_us, services_of
from dashboard.usage_queries import invoice_summary
from schemas.customer import Customer
from schemas.meter import Meter
from warehouse.client import WarehouseUnavailable

router = APIRouter(include_in_schema=False)
ALERTS_SHOWN = 8


def _numbers(request: Request, visitor: Session) -> dict[str, Any]:
    services = services_of(request)
    view, organization = services.catalog.view, visitor.organization_id
    return {
        "table": usage_table(services.live.view, view, organization),
        "lag": services.live.lag(now_us()),
        "customer_count": sum(not customer.archived for customer in view.all(Customer, organization)),
        "meter_count": sum(not meter.archived for meter in view.all(Meter, organization)),
        "alert_count": len(services.live.view.alerts(organization)),
    }


@router.get("/")
async def overview(request: Request, visitor: Visitor) -> Response:
    """Live numbers come from memory; what is invoiced is left out, and said to be, while ClickHouse does not answer."""
    services = services_of(request)
    try:
        invoiced = await services.warehouse.run(invoice_summary, visitor.organization_id)
    except WarehouseUnavailable:
        invoiced = None
    return render(
        request,
        "overview.html",
        visitor,
        alerts=alert_list(services, visitor.organization_id, ALERTS_SHOWN),
        invoiced=invoiced,
        **_numbers(request, visitor),
    )


@router.get("/live/totals")
async def live_totals(request: Request, visitor: Visitor) -> Response:
    """The table alone, for a page that is open."""
    return render(request, "live_totals.html", visitor, **_numbers(request, visitor))


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


@router.get("/live/stream", response_class=EventSourceResponse)
async def live_stream(request: Request, visitor: Visitor) -> AsyncIterator[ServerSentEvent]:
    """The same events as /api/v1/stream, for the visitor's pages."""
    async for event in changes(services_of(request), visitor.organization_id):
        yield event
