"""open cycle, exact quantities → the invoice as it would be now, by the engine that prices invoices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from msgspec import structs

from catalog.view import CatalogView
from dashboard.usage_queries import quantity
from pricing.invoice_lines import InvoiceComputation, price_lines
from pricing.proration import prorated_share
from pricing.tier_charge import TierCharge
from schemas.currency import amount_text
from schemas.decimals import plain
from schemas.meter import Meter
from schemas.period import Cycle
from schemas.product import Product
from schemas.subscription import FOR_EVER, Subscription
from schemas.watermark import Watermark
from warehouse.shards import Store
from warehouse.totals import TotalsRequest, exact_totals


@dataclass(frozen=True, slots=True)
class Preview:
    """What a cycle costs by what is stored now. active_until: end of what would be billed, µs."""

    subscription: Subscription
    product: Product
    cycle: Cycle
    active_until: int
    computed: InvoiceComputation


def open_cycles(view: CatalogView, organization_id: str, customer_id: str, at: int) -> list[tuple[Subscription, Cycle]]:
    """Each of the customer's subscriptions that charges then, with the cycle it is in, be it cut short by its end."""
    return [
        (subscription, cycle)
        for subscription in view.subscriptions_of(organization_id, customer_id)
        if subscription.charged_from <= at
        and (cycle := subscription.calendar.containing(at)).start_us < (subscription.ends_at or FOR_EVER)
    ]


def _active_until(subscription: Subscription, cycle: Cycle, until_us: int | None) -> int:
    ends = (cycle.end_us, subscription.ends_at, until_us)
    return min(end for end in ends if end is not None)


def previews(
    store: Store,
    view: CatalogView,
    cycles: Sequence[tuple[Subscription, Cycle]],
    watermark: Watermark | None,
    until_us: int | None = None,
) -> list[Preview]:
    """All previews by one query of totals below the watermark; none of a product that is gone.

    until_us: cycles that end later are priced as if they ended then. Raises WarehouseUnavailable.
    """
    planned = [
        (subscription, product, cycle, _meters(view, product))
        for subscription, cycle in cycles
        if (product := view.get(Product, subscription.organization_id, subscription.product_at(cycle.start_us)))
    ]

    def request(subscription: Subscription, cycle: Cycle, meter: Meter) -> TotalsRequest:
        return TotalsRequest(
            subscription.organization_id,
            subscription.customer_id,
            meter.event_name,
            cycle.start_us,
            _active_until(subscription, cycle, until_us),
        )

    wanted = [request(subscription, cycle, meter) for subscription, _, cycle, meters in planned for meter in meters]
    totals = exact_totals(store, wanted, watermark)
    made: list[Preview] = []
    for subscription, product, cycle, meters in planned:
        quantities: dict[str, Decimal] = {}
        for meter in meters:
            total = totals[request(subscription, cycle, meter)]
            quantities[meter.id] = quantity(meter.aggregation, total.sum, total.count, total.max)
        until = _active_until(subscription, cycle, until_us)
        share = prorated_share(cycle, cycle.start_us, until)
        computed = price_lines(product, quantities, meters={meter.id: meter for meter in meters}, proration=share)
        made.append(Preview(subscription, product, cycle, until, computed))
    return made


def _meters(view: CatalogView, product: Product) -> list[Meter]:
    found = (view.get(Meter, product.organization_id, meter_id) for meter_id in product.meter_ids)
    return [meter for meter in found if meter is not None]


def preview_document(preview: Preview, watermark: Watermark | None) -> dict[str, Any]:
    """A preview in the shape of an invoice; its state is `preview`, and it has no id."""
    lines: list[dict[str, Any]] = []
    for line in preview.computed.lines:
        fields = structs.asdict(line) | {"tiers": [_tier(tier, line.currency) for tier in line.tiers]}
        del fields["currency"]
        lines.append(_plain(fields))
    return {
        "id": None,
        "organization_id": preview.subscription.organization_id,
        "customer_id": preview.subscription.customer_id,
        "subscription_id": preview.subscription.id,
        "cycle": {"start": preview.cycle.start, "end": preview.cycle.end},
        "currency": preview.computed.currency,
        "lines": lines,
        "total": plain(preview.computed.total),
        "state": "preview",
        "watermark": watermark.as_json() if watermark else None,
    }


def _tier(tier: TierCharge, currency: str) -> dict[str, Any]:
    return structs.asdict(tier) | {"amount": amount_text(tier.amount, currency)}


def _plain(value: Any) -> Any:
    """Decimals as plain strings, all the way down."""
    match value:
        case Decimal():
            return plain(value)
        case dict():
            return {key: _plain(inner) for key, inner in cast(dict[str, Any], value).items()}
        case tuple() | list():
            return [_plain(inner) for inner in cast(Sequence[Any], value)]
        case _:
            return value
