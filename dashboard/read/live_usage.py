"""/api/v1/usage/live: totals of the stream, a moment old; for what is billed see /api/v1/usage."""

from __future__ import annotations

from fastapi import Request
from pydantic import BaseModel, Field

from dashboard.auth import Caller
from dashboard.live_rows import LiveRow, live_rows
from dashboard.live_view import in_cycles
from dashboard.read.parameters import From, To, period
from dashboard.routing import ReadRoute, api_router
from dashboard.services import services_of
from runtime.clock import now_us
from schemas.period import Cycle

router = api_router(ReadRoute, "Usage")
ROWS_MAX = 100_000


class LagOut(BaseModel):
    """messages: of the log, not counted yet; null while that is not known. seconds: how old what is counted is."""

    messages: int | None
    seconds: float


class LiveUsage(BaseModel):
    """complete: false when the organization uses more series than live totals are kept of, so that some may be missing
    or lack their beginning (/usage has them), or when there is more than an answer has room for."""

    data: list[LiveRow]
    lag: LagOut = Field(description="how far the stream is behind the log")
    complete: bool


@router.get("/usage/live")
async def get_live_usage(
    request: Request,
    caller: Caller,
    customer_id: str | None = None,
    meter_id: str | None = None,
    from_: From = None,
    to: To = None,
) -> LiveUsage:
    """Each customer's and meter's total of the current cycle; with `from` or `to`, of all cycles in that time."""
    services, now = services_of(request), now_us()
    live, view = services.live.view, services.catalog.view
    wanted = period(from_, to, Cycle(now, now + 1) if from_ is None and to is None else Cycle(0, now + 1))
    rows: list[LiveRow] = []
    organization_id = caller.organization_id
    for each in live.customers(organization_id) if customer_id is None else (customer_id,):
        for series in live.series_of(organization_id, each):
            rows.extend(live_rows(view, in_cycles(series, wanted), meter_id))
        if len(rows) > ROWS_MAX:
            break
    lag = services.live.lag(now)
    return LiveUsage(
        data=rows[:ROWS_MAX],
        lag=LagOut(messages=lag.messages, seconds=lag.seconds),
        complete=live.is_whole(organization_id) and len(rows) <= ROWS_MAX,
    )
