"""alert rule, total, price of its cycle → the value that has reached the threshold, by kind of rule. Pure.

Each kind compares exactly, in integers or decimals, and returns the value in its own unit: units for `quantity`,
percent for `included_percent` and `typical_percent` (cut after nine decimals), major units of the currency for
`amount`. Without anything to compare with (included units, closed cycles, a price), no threshold is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from catalog.cycles import cycles_before, price_in
from catalog.view import CatalogView
from pricing.invoice_lines import usage_amount
from pricing.quantity import priced_quantity
from schemas.alert_rule import AlertKind, AlertRule
from schemas.currency import from_minor, round_to_minor
from schemas.decimals import plain
from schemas.event import VALUE_SCALE
from schemas.meter import Aggregation, Meter
from schemas.period import Cycle
from schemas.product import UsagePrice
from schemas.totals import decimal_text

_UNIT = 10**VALUE_SCALE
TYPICAL_CYCLES_MAX = 3


class Usage(Protocol):
    """A total of one customer, event_name and cycle. sum, max: × 10⁹; max None: no value."""

    @property
    def cycle(self) -> Cycle: ...
    @property
    def sum(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def max(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """Values that a customer's cycle is compared with.

    price, currency: None without a subscription that prices the meter in this cycle.
    before: whole closed cycles, latest first.
    """

    price: UsagePrice | None
    currency: str | None
    before: tuple[Cycle, ...]


Reached = Callable[[Usage, Sequence[Usage], Terms], str | None]
"""(total, all totals of its series, terms) → the value, a plain decimal string; None: below the threshold."""

NO_TERMS = Terms(None, None, ())


def first_used(series: Sequence[Usage]) -> int | None:
    """Start of the first cycle with usage, µs: what a customer did before it is not known, so it is not 0."""
    return min((each.cycle.start_us for each in series if each.count), default=None)


def terms_of(view: CatalogView, rule: AlertRule, customer_id: str, cycle: Cycle, first_used_us: int | None) -> Terms:
    """The number that a threshold is compared with, for the rule's meter in that cycle of a customer."""
    match rule.kind:
        case AlertKind.QUANTITY:
            return NO_TERMS
        case AlertKind.TYPICAL_PERCENT:
            if first_used_us is None:
                return NO_TERMS
            where = (rule.organization_id, customer_id, rule.meter_id)
            return Terms(None, None, cycles_before(view, *where, cycle, TYPICAL_CYCLES_MAX, first_used_us))
        case AlertKind.INCLUDED_PERCENT | AlertKind.AMOUNT:
            price = price_in(view, rule.organization_id, customer_id, rule.meter_id, cycle)
            return NO_TERMS if price is None else Terms(*price, ())


def quantity_of(total: Usage, aggregation: Aggregation) -> int:
    """The part of the total that a meter reads, × 10⁹; max without any value is 0."""
    return aggregation.quantity(total.sum, total.count * _UNIT, total.max, 0)


def _quantity_reached(rule: AlertRule, meter: Meter) -> Reached:
    """Kind `quantity`: the meter's quantity is at the threshold or above."""
    numerator, denominator = rule.threshold.as_integer_ratio()
    least = -(-numerator * _UNIT // denominator)  # rounded up: quantities are whole, × 10⁹
    aggregation = meter.aggregation

    def reached(total: Usage, _series: Sequence[Usage], _: Terms) -> str | None:
        quantity = quantity_of(total, aggregation)
        return decimal_text(quantity) if quantity >= least else None

    return reached


def _percent_reached(threshold: Decimal, part: int, whole: int) -> str | None:
    """part of whole in percent, when it is at the threshold or above; nothing is a part of 0 or less."""
    if whole <= 0:
        return None
    numerator, denominator = threshold.as_integer_ratio()
    if part * 100 * denominator < numerator * whole:
        return None
    return decimal_text(part * 100 * _UNIT // whole)


def _included_reached(rule: AlertRule, meter: Meter) -> Reached:
    """Kind `included_percent`: of the units that the price of the meter includes in each cycle."""

    def reached(total: Usage, _series: Sequence[Usage], terms: Terms) -> str | None:
        if terms.price is None:
            return None
        numerator, denominator = terms.price.included_units.as_integer_ratio()
        quantity = quantity_of(total, meter.aggregation)
        return _percent_reached(rule.threshold, quantity * denominator, numerator * _UNIT)

    return reached


def _typical_reached(rule: AlertRule, meter: Meter) -> Reached:
    """Kind `typical_percent`: of the mean of up to three whole cycles before; one without usage is 0 of it."""

    def reached(total: Usage, series: Sequence[Usage], terms: Terms) -> str | None:
        by_cycle = {other.cycle: other for other in series}
        used = [
            quantity_of(by_cycle[cycle], meter.aggregation) if cycle in by_cycle else 0
            for cycle in terms.before[:TYPICAL_CYCLES_MAX]
        ]
        return _percent_reached(rule.threshold, quantity_of(total, meter.aggregation) * len(used), sum(used))

    return reached


def _amount_reached(rule: AlertRule, meter: Meter) -> Reached:
    """Kind `amount`: the meter's line as an invoice would have it now, rounded as there."""

    def reached(total: Usage, _series: Sequence[Usage], terms: Terms) -> str | None:
        if terms.price is None or terms.currency is None:
            return None
        quantity = Decimal(decimal_text(quantity_of(total, meter.aggregation)))
        unrounded, _ = usage_amount(terms.price, priced_quantity(quantity, terms.price.included_units))
        amount = from_minor(round_to_minor(unrounded, terms.currency), terms.currency)
        return plain(amount) if amount >= rule.threshold else None

    return reached


KINDS: Mapping[AlertKind, Callable[[AlertRule, Meter], Reached]] = {
    AlertKind.QUANTITY: _quantity_reached,
    AlertKind.INCLUDED_PERCENT: _included_reached,
    AlertKind.TYPICAL_PERCENT: _typical_reached,
    AlertKind.AMOUNT: _amount_reached,
}
