"""/usage: what was used, exactly, with the period before beside it; and the events themselves."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from whenever import Date, Time

from dashboard.chart import chart
from dashboard.pages.rendering import render
from dashboard.pages.session import Visitor, organization_of
from dashboard.problems import field_problem
from dashboard.read.usage import decoded_event_place, event_place
from dashboard.services import Services, now_us, services_of
from dashboard.usage_queries import EventFilter, UsageRow, stored_events, usage_rows
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.period import Cycle, UsageWindow, calendar_month_containing, windows_between

router = APIRouter(include_in_schema=False)
DAY_US = 86_400_000_000
BARS_MAX = 400
CUSTOMERS_SHOWN = 50
EVENTS_SHOWN = 50
_START_OF_DAY = Time()


def local_period(from_: str, to: str, zone: str, default: Cycle) -> Cycle:
    """Whole days of the zone, from one date through another. Raises Problem 422."""

    def midnight(name: str, text: str, days: int) -> int:
        try:
            date = Date.parse_iso(text).add(days=days)
        except ValueError:
            raise field_problem(name, "date_invalid", f"{name}: a date like 2026-03-31 is expected") from None
        return _midnight(date, zone)

    start = midnight("from", from_, 0) if from_ else default.start_us
    end = midnight("to", to, 1) if to else (default.end_us if default.end_us > start else start + 30 * DAY_US)
    if end <= start:
        raise field_problem("to", "period_empty", "the last day must not lie before the first")
    return Cycle(start, end)


def _midnight(date: Date, zone: str) -> int:
    return date.at(_START_OF_DAY).assume_tz(zone).to_instant().timestamp(unit="nanosecond") // 1000


def newest_period(services: Services, organization_id: str, zone: str) -> Cycle:
    """The newest month with usage, as the stream has it; the present one without any."""
    latest = max((series[-1].cycle_start for series in services.live.view.all_series(organization_id)), default=None)
    now = now_us()
    return calendar_month_containing(zone, now if latest is None else min(latest, now))


def fitting_window(period: Cycle, wanted: str) -> UsageWindow:
    """The window asked for, or the finest that gives a chart which can be read."""
    days = (period.end_us - period.start_us) / DAY_US
    if wanted == "hour" and days * 24 <= BARS_MAX:
        return "hour"
    if wanted == "month" or days > BARS_MAX:
        return "month"
    return "hour" if wanted == "" and days <= 2 else "day"


def combined(rows: list[UsageRow], aggregation: Aggregation) -> dict[int, Decimal]:
    """Window's start → its quantity."""
    found: dict[int, Decimal] = defaultdict(Decimal)
    for row in rows:
        at = row.period.start_us
        found[at] = max(found[at], row.quantity) if aggregation is Aggregation.MAX else found[at] + row.quantity
    return found


@router.get("/usage")
async def usage(
    request: Request,
    visitor: Visitor,
    customer_id: str = "",
    meter_id: str = "",
    from_date: str = "",
    to_date: str = "",
    window: str = "",
) -> Response:
    services, organization = services_of(request), visitor.organization_id
    zone = organization_of(request, visitor).time_zone
    meters = [meter for meter in services.catalog.view.all(Meter, organization) if not meter.archived]
    meter = next((meter for meter in meters if meter.id == meter_id), meters[0] if meters else None)
    period = local_period(from_date, to_date, zone, newest_period(services, organization, zone))
    values = {"customer_id": customer_id, "meter_id": meter.id if meter else "", "window": window}
    dates = {"from_date": from_date, "to_date": to_date}
    common: dict[str, Any] = {"meters": meters, "meter": meter, "period": period, "values": values, **dates}
    if meter is None:
        return render(request, "usage.html", visitor, chart=None, rows=[], total=None, before_total=None, **common)
    size = fitting_window(period, window)
    before = Cycle(max(0, 2 * period.start_us - period.end_us), period.start_us) if period.start_us > 0 else None
    watermark = await services.warehouse.stored()

    async def rows(of: Cycle, of_window: UsageWindow | None, by_customer: bool) -> list[UsageRow]:
        return await services.warehouse.run(
            usage_rows, organization, [meter], of, watermark=watermark, window=of_window, zone=zone,
            customer_id=customer_id or None, by_customer=by_customer,
        )  # fmt: skip

    series = combined(await rows(period, size, False), meter.aggregation)
    older = combined(await rows(before, size, False), meter.aggregation) if before else {}
    windows = [_cut(each, period) for each in windows_between(zone, size, period.start_us, period.end_us)]
    windows_before = (
        [_cut(each, before) for each in windows_between(zone, size, before.start_us, before.end_us)] if before else []
    )
    by_customer = await rows(period, None, True)
    totals = sorted(by_customer, key=lambda row: row.quantity, reverse=True)
    names = {customer.id: customer.name for customer in services.catalog.view.all(Customer, organization)}
    overall = combined(by_customer, meter.aggregation)
    overall_before = combined(await rows(before, None, False), meter.aggregation) if before else {}
    return render(
        request,
        "usage.html",
        visitor,
        chart=chart(windows, series, [older.get(each.start_us, Decimal(0)) for each in windows_before]),
        rows=[(names.get(row.customer_id, row.customer_id), row) for row in totals[:CUSTOMERS_SHOWN]],
        total=overall.get(period.start_us, Decimal(0)),
        before_total=overall_before.get(before.start_us, Decimal(0)) if before else None,
        **common,
    )


def _cut(window: Cycle, period: Cycle) -> Cycle:
    return Cycle(max(window.start_us, period.start_us), min(window.end_us, period.end_us))


@router.get("/usage/events")
async def events(
    request: Request,
    visitor: Visitor,
    customer_id: str = "",
    event_name: str = "",
    event_id: str = "",
    from_date: str = "",
    to_date: str = "",
    cursor: str = "",
) -> Response:
    services, organization = services_of(request), visitor.organization_id
    zone = organization_of(request, visitor).time_zone
    default = Cycle(0, now_us() + DAY_US) if event_id else newest_period(services, organization, zone)
    period = local_period(from_date, to_date, zone, default)
    wanted = EventFilter(period, customer_id or None, event_name or None, event_id or None)
    after = decoded_event_place(cursor) if cursor else None
    found = await services.warehouse.run(stored_events, organization, wanted, EVENTS_SHOWN + 1, after)
    values = {
        "customer_id": customer_id,
        "event_name": event_name,
        "event_id": event_id,
        "from_date": from_date,
        "to_date": to_date,
    }
    return render(
        request,
        "events.html",
        visitor,
        events=found[:EVENTS_SHOWN],
        following=event_place(found[EVENTS_SHOWN - 1]) if len(found) > EVENTS_SHOWN else None,
        query=urlencode(values),
        values=values,
        period=period,
    )
