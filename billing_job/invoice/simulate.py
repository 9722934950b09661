"""a product, a customer's real past usage → what it would have charged, cycle by cycle, beside what was billed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from billing_job.invoice.estimate import PricedCycle, price_cycles
from billing_job.invoice.pricing import line_of
from billing_job.invoice.usage_reader import UsageReader
from catalog.view import CatalogView
from ledger.cycle_bills import cycle_bills
from ledger.view import InvoiceLedger
from pricing.invoice_lines import InvoiceComputation
from schemas.currency import from_minor
from schemas.decimals import plain
from schemas.meter import Meter
from schemas.period import DAY_US, Cycle, windows_between
from schemas.product import Product, ProductSpec
from schemas.subscription import Subscription

CYCLES_MAX = 400


class NotSimulable(ValueError):
    """The simulation can't be computed; the message says why. field: of the request."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Billed:
    """What the ledger has for a cycle, corrections included. minor: in the currency's minor units."""

    minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class SimulatedCycle:
    """One cycle. active_until: µs, end of what is priced. billed None: it was not invoiced."""

    cycle: Cycle
    active_until: int
    computed: InvoiceComputation
    billed: Billed | None

    def document(self) -> dict[str, Any]:
        """As the API shows it; difference: simulated less billed, where both are of one currency."""
        billed, computed = self.billed, self.computed
        difference = None
        if billed is not None and billed.currency == computed.currency:
            difference = plain(from_minor(computed.total_minor - billed.minor, billed.currency))
        return {
            "cycle": {"start": self.cycle.start, "end": self.cycle.end},
            "currency": computed.currency,
            "lines": [msgspec.to_builtins(line_of(line)) for line in computed.lines],
            "total": plain(computed.total),
            "billed": None if billed is None else plain(from_minor(billed.minor, billed.currency)),
            "billed_currency": None if billed is None else billed.currency,
            "difference": difference,
        }


def simulate(
    view: CatalogView,
    ledger: InvoiceLedger,
    usage: UsageReader,
    *,
    organization_id: str,
    customer_id: str,
    product: ProductSpec | str,
    period: Cycle,
) -> list[SimulatedCycle]:
    """The product, or that of an id, priced over each cycle of the customer that begins in the period, oldest first.

    Cycles are those of the customer's subscriptions; without any, calendar months in the organization's zone. Raises
    NotSimulable, WarehouseUnavailable.
    """
    spec = view.get(Product, organization_id, product) if isinstance(product, str) else product
    if spec is None:
        raise NotSimulable("product_id", f"there is no product {str(product)[:80]!r}")
    if not view.has_customer(organization_id, customer_id):
        raise NotSimulable("customer_id", f"there is no customer {customer_id[:80]!r}")
    watermark = usage.covered()
    meters = {meter_id: _meter(view, organization_id, meter_id) for meter_id in spec.meter_ids}
    billed = _billed(ledger, organization_id, customer_id)
    spans = _spans(view, organization_id, customer_id, period)
    if len(spans) > CYCLES_MAX:
        raise NotSimulable("from", f"more than {CYCLES_MAX} cycles begin within the period")
    cycles = [PricedCycle(customer_id, spec, meters, cycle, until) for cycle, until in spans]
    computed = price_cycles(usage, organization_id, cycles, watermark)
    return [
        SimulatedCycle(cycle, until, invoice, billed.get(cycle.start_us))
        for (cycle, until), invoice in zip(spans, computed, strict=True)
    ]


def past_year(now_us: int) -> Cycle:
    return Cycle(now_us - 366 * DAY_US, now_us)


def _meter(view: CatalogView, organization_id: str, meter_id: str) -> Meter:
    found = view.get(Meter, organization_id, meter_id)
    if found is None:
        raise NotSimulable("product", f"there is no meter {meter_id[:80]!r}")
    return found


def _spans(view: CatalogView, organization_id: str, customer_id: str, period: Cycle) -> list[tuple[Cycle, int]]:
    """Cycles that begin within the period, each with the end of what is priced; not many more than CYCLES_MAX."""
    found: dict[Cycle, int] = {}
    subscriptions = view.subscriptions_of(organization_id, customer_id)
    for each in subscriptions:
        for cycle in islice(_cycles(each, period), CYCLES_MAX + 2):
            until = cycle.end_us if each.ends_at is None else min(cycle.end_us, each.ends_at)
            found[cycle] = max(until, found.get(cycle, until))
    if not subscriptions:
        organization = view.organization(organization_id)
        zone = "UTC" if organization is None else organization.time_zone
        months = islice(windows_between(zone, "month", period.start_us, period.end_us), CYCLES_MAX + 2)
        found = {month: month.end_us for month in months}
    return sorted((cycle, until) for cycle, until in found.items() if period.start_us <= cycle.start_us)


def _cycles(subscription: Subscription, period: Cycle) -> Iterable[Cycle]:
    until = period.end_us if subscription.ends_at is None else min(period.end_us, subscription.ends_at)
    return subscription.calendar.between(period.start_us, until)


def _billed(ledger: InvoiceLedger, organization_id: str, customer_id: str) -> dict[int, Billed]:
    """Start of a cycle → what was billed for it, by all of the customer's subscriptions."""
    found: dict[int, Billed] = {}
    names = {each.subscription_id for each in ledger.of_customer(organization_id, customer_id)}
    for subscription_id in sorted(names):
        for start, bill in cycle_bills(ledger.of_subscription(organization_id, subscription_id)).items():
            known = found.get(start)
            if known is None or known.currency == bill.fixed.currency:
                found[start] = Billed(bill.billed_minor + (known.minor if known else 0), bill.fixed.currency)
    return found
