"""product, cycles, ClickHouse → what each cycle costs: the engine of accruals and simulations. Nothing is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from billing_job.invoice.usage_reader import Need, Quantities
from catalog.view import CatalogView
from pricing.invoice_lines import InvoiceComputation, price_lines
from pricing.proration import prorated_share
from schemas.meter import Meter
from schemas.period import Cycle
from schemas.product import ProductSpec
from schemas.watermark import Watermark


class Totals(Protocol):
    """See usage_reader.UsageReader."""

    def totals(self, needs: Sequence[Need], watermark: Watermark) -> Quantities: ...


@dataclass(frozen=True, slots=True)
class PricedCycle:
    """A customer's cycle, and the product to price it by. active_until: end of what is priced, µs."""

    customer_id: str
    product: ProductSpec
    meters: dict[str, Meter]
    cycle: Cycle
    active_until: int


def price_cycles(
    usage: Totals, organization_id: str, cycles: Sequence[PricedCycle], watermark: Watermark
) -> list[InvoiceComputation]:
    """The lines of each cycle, from the events below the watermark, all counted in one query.

    Flat fees and minimums are prorated to active_until. Raises WarehouseUnavailable.
    """
    needs = [
        Need(
            str(number),
            organization_id,
            priced.customer_id,
            priced.cycle.start_us,
            priced.active_until,
            tuple(priced.meters.values()),
        )
        for number, priced in enumerate(cycles)
    ]
    quantities = usage.totals(needs, watermark)
    return [
        price_lines(
            priced.product,
            quantities[str(number)],
            meters=priced.meters,
            proration=prorated_share(priced.cycle, priced.cycle.start_us, priced.active_until),
        )
        for number, priced in enumerate(cycles)
    ]


def meters_of(view: CatalogView, organization_id: str, product: ProductSpec) -> dict[str, Meter]:
    """The product's meters by id; one that is gone is left out."""
    found = {meter_id: view.get(Meter, organization_id, meter_id) for meter_id in product.meter_ids}
    return {meter_id: meter for meter_id, meter in found.items() if meter is not None}
