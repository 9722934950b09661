"""/usage: what was used, exactly, with the period before beside it; and the events themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from whenever import Date, Time

from catalog.view import CatalogView
from dashboard.counting import soon
from dashboard.live_view import in_cycles
from dashboard.pages.invoices import shown
from dashboard.pages.rendering import render
from dashboard.pages.session import Session, Visitor, organization_of
from dashboard.problems import field_problem
from dashboard.read.invoices import own_invoice
from dashboard.read.usage import decoded_event_place, event_place
from dashboard.services import Services, services_of
from dashboard.usage_figures import (
    DAY_US,
    Figures,
    Wanted,
    Window,
    cycle_and_before,
    figures,
    fitting_window,
    pricing_subscription,
)
from dashboard.usage_queries import EventFilter, TooManyRows, stored_events
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.period import Cycle, calendar_month_containing
from schemas.subscription import Subscription
from schemas.totals import UsageTotal
from schemas.watermark import from_json

router = APIRouter(include_in_schema=False)
ROWS_SHOWN = 50
EVENTS_SHOWN = 50
WAIT_SECONDS = 0.06
"""A page comes with its figures when they are counted by then; else they come to it when they are."""
_START_OF_DAY = Time()
_FIRST_YEAR, _LAST_YEAR = 1969, 2100
"""Events begin with 1970. A chart of all months that a calendar has would take seconds."""


def local_period(from_: str, to: str, zone: str, default: Cycle) -> Cycle:
    """Whole days of the zone, from one date through another. Raises Problem 422."""

    def midnight(name: str, text: str, days: int) -> int:
        try:
            date = Date.parse_iso(text).add(days=days)
        except ValueError:
            date = None
        if date is None or not _FIRST_YEAR <= date.year <= _LAST_YEAR:
            raise field_problem(name, "date_invalid", f"{name}: a date like 2026-03-31 is expected")
        return _midnight(date, zone)

    start = midnight("from", from_, 0) if from_ else default.start_us
    end = midnight("to", to, 1) if to else (default.end_us if default.end_us > start else start + 30 * DAY_US)
    if end <= start:
        raise field_problem("to", "period_empty", "the end date must not be before the start date")
    return Cycle(start, end)


def _midnight(date: Date, zone: str) -> int:
    return date.at(_START_OF_DAY).assume_tz(zone).to_instant().timestamp(unit="nanosecond") // 1000


def newest_period(services: Services, organization_id: str, zone: str) -> Cycle:
    """The newest month with usage, as the stream has it; the present one without any."""
    latest = services.live.view.latest_cycle_start(organization_id)
    now = now_us()
    return calendar_month_containing(zone, now if latest is None else min(latest, now))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The page's address, read. subscription: of the customer, where it prices the meter."""

    meters: list[Meter]
    wanted: Wanted | None
    subscription: Subscription | None
    values: dict[str, str]


def _asked(request: Request, visitor: Session) -> _Asked:
    """Raises Problem 422."""
    services, organization = services_of(request), visitor.organization_id
    zone = organization_of(request, visitor).time_zone
    names = ("meter_id", "customer_id", "from_date", "to_date", "window", "group_by")
    values = {name: request.query_params.get(name, "")[:256] for name in names}
    meters = [meter for meter in services.catalog.view.all(Meter, organization) if not meter.archived]
    meter = next((meter for meter in meters if meter.id == values["meter_id"]), meters[0] if meters else None)
    values["meter_id"] = meter.id if meter else ""
    if meter is None:
        return _Asked(meters, None, None, values)
    customer_id = values["customer_id"] or None
    subscription = customer_id and pricing_subscription(
        services.catalog.view, organization, customer_id, meter.id, now_us()
    )
    default, before = newest_period(services, organization, zone), None
    dated = bool(values["from_date"] or values["to_date"])
    if subscription and not dated:
        default, before = cycle_and_before(subscription, now_us())
    by_cycle = values["window"] == "cycle" and subscription is not None
    if by_cycle and not dated:
        default = Cycle(0, default.end_us)
    period = local_period(values["from_date"], values["to_date"], zone, default)
    if before is None and not by_cycle and period.start_us > 0:
        before = _before(period, zone)
    window: Window = "cycle" if by_cycle else fitting_window(period, values["window"])
    wanted = Wanted(organization, zone, meter, period, before, window, customer_id, values["group_by"] or None)
    return _Asked(meters, wanted, subscription or None, values)


def _before(period: Cycle, zone: str) -> Cycle:
    """The time before, as long; before a calendar month the one before it, whatever its days."""
    if period == calendar_month_containing(zone, period.start_us):
        return calendar_month_containing(zone, period.start_us - 1)
    return Cycle(max(0, 2 * period.start_us - period.end_us), period.start_us)


async def _figures(request: Request, asked: _Asked, seconds: float | None) -> Figures | None:
    """seconds: how long to wait; None: until they are there. Raises Problem 422, WarehouseUnavailable."""
    assert asked.wanted is not None
    services, wanted, subscription = services_of(request), asked.wanted, asked.subscription
    key = (wanted, subscription and subscription.id)
    task = services.figures.begun(key, lambda: figures(services.warehouse, wanted, subscription))
    try:
        return await task if seconds is None else await soon(task, seconds)
    except TooManyRows:
        raise field_problem(None, "too_many_rows", "there are too many rows; pick a customer") from None


def _shown(request: Request, asked: _Asked, found: Figures | None) -> dict[str, Any]:
    """What the part of the page needs that holds the figures."""
    assert asked.wanted is not None
    view, organization = services_of(request).catalog.view, asked.wanted.organization_id
    rows = list(found.rows[:ROWS_SHOWN]) if found else []
    customers = {row.customer_id: view.get(Customer, organization, row.customer_id) for row in rows}
    names = {id_: customer.name if customer else id_ for id_, customer in customers.items()}
    return {"wanted": asked.wanted, "meter": asked.wanted.meter, "found": found, "rows": rows, "names": names}


@router.get("/usage")
async def usage(request: Request, visitor: Visitor, wait: bool = False) -> Response:
    asked = _asked(request, visitor)
    address = f"/usage/figures?{urlencode(asked.values)}"
    is_whole = services_of(request).live.view.is_whole(visitor.organization_id)
    common: dict[str, Any] = {
        "meters": asked.meters, "values": asked.values, "address": address, "is_whole": is_whole,
    }  # fmt: skip
    if asked.wanted is None:
        return render(request, "usage.html", visitor, wanted=None, live=None, **common)
    found = await _figures(request, asked, None if wait else WAIT_SECONDS)
    live = _live_total(services_of(request), asked.wanted)
    live_cycle = live and Cycle(live.cycle_start, live.cycle_end)
    shown = _shown(request, asked, found)
    return render(request, "usage.html", visitor, live=live, live_cycle=live_cycle, **common, **shown)


@router.get("/usage/figures")
async def usage_figures(request: Request, visitor: Visitor) -> Response:
    """Chart and table alone, when they are counted."""
    asked = _asked(request, visitor)
    if asked.wanted is None:
        raise field_problem("meter_id", "unknown_reference", "there is no meter yet")
    found = await _figures(request, asked, None)
    return render(request, "usage_figures.html", visitor, **_shown(request, asked, found))


def _live_total(services: Services, wanted: Wanted) -> UsageTotal | None:
    """The newest total of the customer in the period, as the stream has it."""
    if wanted.customer_id is None:
        return None
    series = services.live.view.series(wanted.organization_id, wanted.customer_id, wanted.meter.event_name)
    return next(reversed(in_cycles(series, wanted.period)), None)


@router.get("/usage/events")
async def events(
    request: Request,
    visitor: Visitor,
    customer_id: str = "",
    event_name: str = "",
    event_id: str = "",
    from_date: str = "",
    to_date: str = "",
    invoice_id: str = "",
    meter_id: str = "",
    cursor: str = "",
    done: str = "",
) -> Response:
    """invoice_id, meter_id: exactly the events that a line of the invoice counted."""
    services, organization = services_of(request), visitor.organization_id
    zone = organization_of(request, visitor).time_zone
    behind: dict[str, Any] | None = None
    if invoice_id:
        behind = shown(await own_invoice(request, organization, invoice_id), services.catalog.view)
        wanted = _counted_by(services.catalog.view, behind, meter_id)
    else:
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
        query=urlencode({"invoice_id": invoice_id, "meter_id": meter_id} if invoice_id else values),
        values=values,
        period=wanted.period,
        behind=behind,
        done=done,
        event_name=wanted.event_name,
    )


def _counted_by(view: CatalogView, invoice: dict[str, Any], meter_id: str) -> EventFilter:
    """The events behind a line of an invoice. Raises Problem 404."""
    meter = view.get(Meter, invoice["organization_id"], meter_id)
    watermark = invoice.get("watermark")
    if meter is None or watermark is None:
        raise Problem(404, "not_found", f"the invoice has no line of a meter {meter_id[:80]}")
    subscription = view.get(Subscription, invoice["organization_id"], invoice["subscription_id"])
    cycle: Cycle = invoice["cycle"]
    ends_at = subscription.ends_at if subscription else None
    period = Cycle(cycle.start_us, cycle.end_us if ends_at is None else min(cycle.end_us, ends_at))
    return EventFilter(
        period,
        customer_id=invoice["customer_id"],
        event_name=meter.event_name,
        watermark=from_json(watermark),
    )
