"""a meter, a period → chart and table of the usage page, exact, with the period before beside it.

By hour, day and month for all customers or one; by cycle for a customer whose subscription prices the meter.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from catalog.view import CatalogView
from dashboard.chart import Chart, charts
from dashboard.usage_queries import UsageRow, quantity, usage_rows
from dashboard.warehouse_access import WarehouseAccess
from schemas.meter import Aggregation, Meter
from schemas.period import DAY_US, Cycle, UsageWindow, windows_between
from schemas.subscription import Subscription
from schemas.watermark import Watermark
from warehouse.totals import TotalsRequest, exact_totals

Window = Literal["hour", "day", "month", "cycle"]
BARS_MAX = 400
CYCLES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the page asks for. before: the period that it is held against; None: there is none. group_by: a property."""

    organization_id: str
    zone: str
    meter: Meter
    period: Cycle
    before: Cycle | None
    window: Window
    customer_id: str | None = None
    group_by: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """charts: one a size. rows: of customers, or of a property's values (group), greatest first.

    before_total: None without a before.
    """

    charts: Sequence[Chart]
    total: Decimal
    before_total: Decimal | None
    rows: Sequence[UsageRow]


def pricing_subscription(
    view: CatalogView, organization_id: str, customer_id: str, meter_id: str, at: int
) -> Subscription | None:
    """The customer's subscription that prices the meter: the one active at that time, else the newest."""
    pricing = [
        each
        for each in view.subscriptions_of(organization_id, customer_id)
        if meter_id in view.meters_of(organization_id, each.product_ids)
    ]
    active = [each for each in pricing if each.started_at <= at and (each.ends_at is None or at < each.ends_at)]
    return (active or pricing or [None])[-1]


def cycle_and_before(subscription: Subscription, at: int) -> tuple[Cycle, Cycle | None]:
    """The cycle of an instant and the one before it, where there is one."""
    last = at if subscription.ends_at is None else min(at, subscription.ends_at - 1)
    calendar = subscription.calendar
    cycle = calendar.containing(max(last, subscription.started_at))
    before = calendar.containing(cycle.start_us - 1) if cycle.start_us > subscription.started_at else None
    return cycle, before


def last_cycles(subscription: Subscription, period: Cycle) -> list[Cycle]:
    """The cycles in a period, the last twelve of them."""
    until = period.end_us if subscription.ends_at is None else min(period.end_us, subscription.ends_at)
    return list(subscription.calendar.between(period.start_us, until))[-CYCLES_SHOWN:]


def fitting_window(period: Cycle, wanted: str) -> UsageWindow:
    """The window asked for, or the finest that gives a chart which can be read."""
    days = (period.end_us - period.start_us) / DAY_US
    if wanted == "hour" and days * 24 <= BARS_MAX:
        return "hour"
    if wanted == "month" or days > BARS_MAX:
        return "month"
    return "hour" if wanted == "" and days <= 2 else "day"


def combined(rows: Iterable[UsageRow], aggregation: Aggregation) -> dict[int, Decimal]:
    """Window's start → its quantity."""
    found: dict[int, Decimal] = {}
    for row in rows:
        at = row.period.start_us
        known = found.get(at)
        if known is None:
            found[at] = row.quantity
        else:
            found[at] = max(known, row.quantity) if aggregation is Aggregation.MAX else known + row.quantity
    return defaultdict(Decimal, found)


def whole(quantities: Iterable[Decimal], aggregation: Aggregation) -> Decimal:
    """Of all windows together."""
    found = list(quantities)
    if aggregation is Aggregation.MAX:
        return max(found, default=Decimal(0))
    return sum(found, Decimal(0))


async def figures(warehouse: WarehouseAccess, wanted: Wanted, subscription: Subscription | None) -> Figures:
    """Raises WarehouseUnavailable, TooManyRows. subscription: needed for windows of cycles."""
    watermark = await warehouse.stored(wanted.organization_id, wanted.customer_id)
    if wanted.window == "cycle" and subscription is not None:
        return await _by_cycle(warehouse, wanted, last_cycles(subscription, wanted.period), watermark)
    window: UsageWindow = "month" if wanted.window == "cycle" else wanted.window
    meter, zone = wanted.meter, wanted.zone

    async def rows(of: Cycle | None, of_window: UsageWindow | None, *, grouped: bool) -> list[UsageRow]:
        if of is None:
            return []
        return await warehouse.run_aside(
            usage_rows, wanted.organization_id, [meter], of, watermark=watermark, window=of_window, zone=zone,
            customer_id=wanted.customer_id, by_customer=grouped and wanted.group_by is None,
            group_by=wanted.group_by if grouped else None,
        )  # fmt: skip

    series, older, table = await asyncio.gather(
        rows(wanted.period, window, grouped=False),
        rows(wanted.before, window, grouped=False),
        rows(wanted.period, None, grouped=True),
    )
    now, before = combined(series, meter.aggregation), combined(older, meter.aggregation)
    return Figures(
        charts=charts(
            _windows(zone, window, wanted.period),
            now,
            [before[each.start_us] for each in _windows(zone, window, wanted.before)],
        ),
        total=whole(now.values(), meter.aggregation),
        before_total=None if wanted.before is None else whole(before.values(), meter.aggregation),
        rows=sorted(table, key=lambda row: row.quantity, reverse=True),
    )


async def _by_cycle(
    warehouse: WarehouseAccess, wanted: Wanted, cycles: Sequence[Cycle], watermark: Watermark | None
) -> Figures:
    """A bar a cycle, the cycle before behind it; the total is the last one's."""
    meter, customer_id = wanted.meter, wanted.customer_id or ""
    requests = [
        TotalsRequest(wanted.organization_id, customer_id, meter.event_name, each.start_us, each.end_us)
        for each in cycles
    ]
    totals = await warehouse.run_aside(exact_totals, requests, watermark)
    found = [quantity(meter.aggregation, totals[each].sum, totals[each].count, totals[each].max) for each in requests]
    now = {each.start_us: value for each, value in zip(cycles, found, strict=True)}
    return Figures(
        charts=charts(cycles, now, [Decimal(0), *found]),
        total=found[-1] if found else Decimal(0),
        before_total=found[-2] if len(found) > 1 else None,
        rows=[UsageRow(customer_id, meter.id, each, value) for each, value in zip(cycles, found, strict=True)][::-1],
    )


def _windows(zone: str, window: UsageWindow, period: Cycle | None) -> list[Cycle]:
    if period is None:
        return []
    return [
        Cycle(max(each.start_us, period.start_us), min(each.end_us, period.end_us))
        for each in windows_between(zone, window, period.start_us, period.end_us)
    ]
