"""catalog, customer, event_name, time → the billing cycles in which an event counts. Pure.

A meter's cycle comes from the customer's subscription whose product prices it; where none does, from the calendar
month in the organization's zone. Meters that read one event_name may be priced by different subscriptions, so an event
can count in more than one cycle. The time line of a series is cut into tiles, within which the answer does not change;
totals.py keeps them, sorted, and computes none twice.

Events without a meter or without a known customer count in no cycle: otherwise every misspelled id would keep a live
total.
"""

from __future__ import annotations

from dataclasses import dataclass

from catalog.record import CatalogRecord
from catalog.view import CatalogView
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.organization import Organization
from schemas.period import Cycle, calendar_month_containing
from schemas.product import Product, UsagePrice
from schemas.subscription import FOR_EVER, Subscription

_ZONE_UNKNOWN = "UTC"


@dataclass(frozen=True, slots=True)
class Tile:
    """An event at from_us ≤ t < until_us (µs) counts in these cycles, each once. Never empty; cycles (): in none."""

    from_us: int
    until_us: int
    cycles: tuple[Cycle, ...]


UNCOUNTED = Tile(-FOR_EVER, FOR_EVER, ())
"""All times of a series whose customer or event_name the catalog does not know."""


@dataclass(frozen=True, slots=True)
class Affected:
    """Series whose tiles a change of the catalog may have changed. None: all of the organization's."""

    organization_id: str
    customer_id: str | None = None
    event_name: str | None = None


def affected_by(record: CatalogRecord) -> Affected | None:
    """What to compute again after a record; None: nothing. A product is priced only once a subscription names it.

    A customer's usage counts from its first record on, be it archived later.
    """
    state = record.state
    match state:
        case Customer() if record.expected_version == 0:
            return Affected(state.organization_id, customer_id=state.id)
        case Subscription():
            return Affected(state.organization_id, customer_id=state.customer_id)
        case Meter():
            return Affected(state.organization_id, event_name=state.event_name)
        case Organization():
            return Affected(state.organization_id)
        case _:
            return None


def tile_at(view: CatalogView, organization_id: str, customer_id: str, event_name: str, t_us: int) -> Tile:
    """The tile that contains t: one cycle a meter that reads event_name; once all are archived, the calendar month."""
    if not view.counts_live(organization_id, customer_id, event_name):
        return UNCOUNTED
    meters = view.meters_reading(organization_id, event_name)
    tiles = [_meter_tile(view, organization_id, customer_id, meter.id, t_us) for meter in meters]
    if not tiles:
        tiles = [_month_tile(view, organization_id, t_us)]
    return Tile(
        max(tile.from_us for tile in tiles),
        min(tile.until_us for tile in tiles),
        tuple(dict.fromkeys(cycle for tile in tiles for cycle in tile.cycles)),
    )


def meter_reads(view: CatalogView, organization_id: str, customer_id: str, meter_id: str, cycle: Cycle) -> bool:
    """Whether the cycle is one of the meter's for that customer, be it for a part of it only."""
    t_us = cycle.start_us
    while t_us < cycle.end_us:
        tile = _meter_tile(view, organization_id, customer_id, meter_id, t_us)
        if cycle in tile.cycles:
            return True
        t_us = tile.until_us
    return False


def price_in(
    view: CatalogView, organization_id: str, customer_id: str, meter_id: str, cycle: Cycle
) -> tuple[UsagePrice, str] | None:
    """The price of a meter in that cycle of a customer's subscription, and its currency; None: it costs nothing."""
    for subscription in view.subscriptions_of(organization_id, customer_id):
        if not _has_cycle(subscription, cycle):
            continue
        product = view.get(Product, organization_id, subscription.product_at(cycle.start_us))
        for price in () if product is None else product.prices:
            if product is not None and isinstance(price, UsagePrice) and price.meter_id == meter_id:
                return price, product.currency
    return None


def _has_cycle(subscription: Subscription, cycle: Cycle) -> bool:
    start = cycle.start_us
    if start < subscription.charged_from or (subscription.ends_at is not None and start >= subscription.ends_at):
        return False
    return cycle == subscription.calendar.containing(start)


def cycles_before(
    view: CatalogView, organization_id: str, customer_id: str, meter_id: str, cycle: Cycle, most: int, first_us: int
) -> tuple[Cycle, ...]:
    """Up to `most` whole cycles of a meter and customer that end at or before this one's start, latest first.

    Whole: not cut by the start or end of a subscription. first_us: nothing is looked at before the cycle in which it
    lies.
    """
    found: list[Cycle] = []
    t_us = cycle.start_us - 1
    while t_us >= first_us and len(found) < most:
        tile = _meter_tile(view, organization_id, customer_id, meter_id, t_us)
        (only,) = tile.cycles
        if (tile.from_us, tile.until_us) == (only.start_us, only.end_us) and only.end_us <= cycle.start_us:
            found.append(only)
        t_us = tile.from_us - 1
    return tuple(found)


def _month_tile(view: CatalogView, organization_id: str, t_us: int) -> Tile:
    organization = view.organization(organization_id)
    month = calendar_month_containing(organization.time_zone if organization else _ZONE_UNKNOWN, t_us)
    return Tile(month.start_us, month.end_us, (month,))


def _meter_tile(view: CatalogView, organization_id: str, customer_id: str, meter_id: str, t_us: int) -> Tile:
    """The tile of one meter. A cycle keeps its whole length where the subscription starts or ends within it."""
    month = _month_tile(view, organization_id, t_us)
    from_us, until_us = month.from_us, month.until_us
    for subscription in view.subscriptions_of(organization_id, customer_id):
        ends_at = FOR_EVER if subscription.ends_at is None else subscription.ends_at
        if t_us < subscription.charged_from:
            until_us = min(until_us, subscription.charged_from)
        elif t_us >= ends_at:
            from_us = max(from_us, ends_at)
        else:
            cycle = subscription.calendar.containing(t_us)
            product = view.get(Product, organization_id, subscription.product_at(cycle.start_us))
            if product is not None and meter_id in product.meter_ids:
                return Tile(cycle.start_us, min(cycle.end_us, ends_at), (cycle,))
            # Its product of the next cycle may price the meter.
            from_us, until_us = max(from_us, cycle.start_us), min(until_us, cycle.end_us, ends_at)
    return Tile(from_us, until_us, month.cycles)
