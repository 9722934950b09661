"""/api/v1/alerts: what fired, newest first."""

from __future__ import annotations

from fastapi import Request

from dashboard.auth import Caller
from dashboard.control.common import PAGE_DEFAULT, Cursor, Filter, Limit, page_of
from dashboard.live_rows import AlertOut, alert_out
from dashboard.objects import Page
from dashboard.routing import ReadRoute, api_router
from dashboard.services import services_of

router = api_router(ReadRoute, "Alerts")


@router.get("/alerts")
async def list_alerts(
    request: Request,
    caller: Caller,
    customer_id: Filter = None,
    meter_id: Filter = None,
    rule_id: Filter = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Page[AlertOut]:
    """A rule alerts once per customer and billing period."""
    wanted = {"customer_id": customer_id, "meter_id": meter_id, "rule_id": rule_id}
    known = services_of(request).live.view.alerts(caller.organization_id)[::-1]
    matching = [
        alert
        for alert in known
        if all(value is None or getattr(alert, name) == value for name, value in wanted.items())
    ]
    page, following = page_of(matching, limit, cursor, known, forgets=True)
    return Page(data=[alert_out(alert) for alert in page], next_cursor=following)
