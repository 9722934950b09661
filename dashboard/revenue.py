"""live totals × subscriptions → what the open cycles have come to so far, by currency.

By the engine that invoices, from the stream: it informs, and never is what is invoiced. Only what has changed since the
last look is priced again, so that thousands of subscriptions cost little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from catalog.view import CatalogView
from dashboard.live_view import LiveView
from dashboard.subscriptions import cycle_at
from pricing.invoice_lines import price_lines
from runtime.one_by_one import OneByOne
from schemas.currency import from_minor
from schemas.meter import Meter
from schemas.period import Cycle
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.totals import UsageTotal


@dataclass(frozen=True, slots=True)
class Revenue:
    """amounts: currency → major units before tax. subscriptions: with an open cycle. at: when it was priced, µs.

    not_priced: subscription → why it is in no amount.
    """

    amounts: dict[str, Decimal]
    subscriptions: int
    at: int
    not_priced: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Open:
    subscription: Subscription
    cycle: Cycle
    product: Product
    meters: tuple[Meter, ...]
    totals: tuple[UsageTotal | None, ...]
    amount_minor: int


class OpenRevenue:
    """Revenue of one organization. Not for two threads at a time."""

    def __init__(self, view: CatalogView, live: LiveView, organization_id: str) -> None:
        self._view = view
        self._live = live
        self._organization_id = organization_id
        self._priced: dict[str, _Open] = {}
        self._seen = 0  # the last change of live totals that is priced
        self._not_priced: dict[str, str] = {}
        self._loop = OneByOne("revenue", lambda _: False, self._fail)

    def _fail(self, subscription_id: str, reason: str) -> None:
        self._not_priced[subscription_id] = reason

    def at(self, now: int) -> Revenue:
        """now: µs."""
        priced: dict[str, _Open] = {}
        self._not_priced = {}
        changed, seen = self._live.changed_since(self._organization_id, self._seen)
        for subscription in self._view.all(Subscription, self._organization_id):
            known = self._priced.get(subscription.id)
            with self._loop.one(subscription.id):
                if known is None or known.subscription is not subscription or now not in known.cycle:
                    known = self._begun(subscription, now)
                elif subscription.customer_id in changed:
                    known = self._current(known)
                if known is not None:
                    priced[subscription.id] = known
        self._priced, self._seen = priced, seen
        minor: dict[str, int] = defaultdict(int)
        for each in priced.values():
            minor[each.product.currency] += each.amount_minor
        amounts = {currency: from_minor(amount, currency) for currency, amount in sorted(minor.items())}
        return Revenue(amounts, len(priced), now, self._not_priced)

    def _begun(self, subscription: Subscription, now: int) -> _Open | None:
        """A subscription in its cycle, not priced yet; None: it has none now."""
        cycle = cycle_at(subscription, now)
        if cycle is None:
            return None
        product = self._view.get(Product, self._organization_id, subscription.product_at(cycle.start_us))
        if product is None:
            return None
        found = (self._view.get(Meter, self._organization_id, meter_id) for meter_id in product.meter_ids)
        meters = tuple(meter for meter in found if meter is not None)
        return self._price(
            _Open(subscription, cycle, product, meters, (), 0), self._totals(subscription, cycle, meters)
        )

    def _current(self, known: _Open) -> _Open:
        totals = self._totals(known.subscription, known.cycle, known.meters)
        same = all(old is new for old, new in zip(known.totals, totals, strict=True))
        return known if same else self._price(known, totals)

    def _totals(
        self, subscription: Subscription, cycle: Cycle, meters: tuple[Meter, ...]
    ) -> tuple[UsageTotal | None, ...]:
        return tuple(
            next(
                (
                    total
                    for total in reversed(
                        self._live.series(self._organization_id, subscription.customer_id, meter.event_name)
                    )
                    if (total.cycle_start, total.cycle_end) == (cycle.start_us, cycle.end_us)
                ),
                None,
            )
            for meter in meters
        )

    def _price(self, known: _Open, totals: tuple[UsageTotal | None, ...]) -> _Open:
        quantities = {
            meter.id: Decimal(0) if total is None else total.quantity(meter.aggregation)
            for meter, total in zip(known.meters, totals, strict=True)
        }
        computed = price_lines(known.product, quantities, meters={meter.id: meter for meter in known.meters})
        return _Open(known.subscription, known.cycle, known.product, known.meters, totals, computed.total_minor)
