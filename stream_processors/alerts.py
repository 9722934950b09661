"""changed totals × alert rules → alerts that are due, each once per rule, customer and cycle. Pure.

What has fired in the end depends on totals and rules alone, not on which came first: a rule is checked against every
total of its meter when it appears, and every total when it is restored; then only what changes is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from catalog.view import CatalogView
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, AlertRule, alert_id
from schemas.decimals import plain
from schemas.event import VALUE_SCALE
from schemas.meter import Aggregation, Meter
from schemas.period import Cycle
from schemas.totals import decimal_text
from stream_processors.cycles import meter_reads
from stream_processors.state import FiredKey
from stream_processors.totals import Total

_UNIT = 10**VALUE_SCALE

Reached = Callable[[Total], int | None]
"""A total → the quantity × 10⁹ that has reached the threshold; None: it has not."""


def quantity_of(total: Total, aggregation: Aggregation) -> int:
    """What a meter reads of the total, × 10⁹; max without any value is 0."""
    match aggregation:
        case Aggregation.SUM:
            return total.sum
        case Aggregation.COUNT:
            return total.count * _UNIT
        case Aggregation.MAX:
            return total.max or 0


def _quantity_reached(rule: AlertRule, meter: Meter) -> Reached:
    """Kind `quantity`: the meter's quantity is at the threshold or above."""
    numerator, denominator = rule.threshold.as_integer_ratio()
    least = -(-numerator * _UNIT // denominator)  # rounded up: quantities are whole, × 10⁹
    aggregation = meter.aggregation

    def reached(total: Total) -> int | None:
        quantity = quantity_of(total, aggregation)
        return quantity if quantity >= least else None

    return reached


KINDS: dict[AlertKind, Callable[[AlertRule, Meter], Reached]] = {AlertKind.QUANTITY: _quantity_reached}
"""What the aggregator can evaluate; a rule of another kind is left to who can."""


@dataclass(frozen=True, slots=True)
class _Watch:
    rule: AlertRule
    meter: Meter
    reached: Reached


class AlertBook:
    """The rules in force, as the view has them, ready to be checked."""

    def __init__(self, view: CatalogView) -> None:
        self._view = view
        self._revision = -1
        self._watches: dict[tuple[str, str], tuple[_Watch, ...]] = {}
        self._reads: dict[tuple[str, str, Cycle], bool] = {}

    def due(self, totals: Iterable[Total], fired: Set[FiredKey], now: int) -> list[Alert]:
        """Alerts of these totals that have not fired. now: µs."""
        if self._revision != self._view.revision:
            self._revision = self._view.revision
            self._watches.clear()
            self._reads.clear()
        alerts: dict[str, Alert] = {}
        for total in totals:
            series = total.series
            key = (series.organization_id, series.event_name)
            watches = self._watches.get(key)
            if watches is None:
                watches = self._watches[key] = self._watches_on(*key)
            for watch in watches:
                quantity = watch.reached(total)
                if (
                    quantity is not None
                    and watch.rule.customer_id in (None, series.customer_id)
                    and (watch.rule.id, series.customer_id, total.cycle.start_us) not in fired
                    and self._meter_reads(watch.meter.id, total)
                ):
                    alert = _alert(watch, total, quantity, now)
                    alerts.setdefault(alert.id, alert)
        return list(alerts.values())

    def _watches_on(self, organization_id: str, event_name: str) -> tuple[_Watch, ...]:
        return tuple(
            _Watch(rule, meter, KINDS[rule.kind](rule, meter))
            for meter in self._view.meters_reading(organization_id, event_name)
            for rule in self._view.rules_on(organization_id, meter.id)
            if rule.kind in KINDS
        )

    def _meter_reads(self, meter_id: str, total: Total) -> bool:
        """Whether the total's cycle is one of the meter's: another meter of the same event_name may have others."""
        customer_id = total.series.customer_id
        key = (meter_id, customer_id, total.cycle)
        known = self._reads.get(key)
        if known is None:
            organization_id = total.series.organization_id
            known = self._reads[key] = meter_reads(self._view, organization_id, customer_id, meter_id, total.cycle)
        return known


def _alert(watch: _Watch, total: Total, quantity: int, now: int) -> Alert:
    rule, customer_id, cycle = watch.rule, total.series.customer_id, total.cycle
    return Alert(
        id=alert_id(rule.id, customer_id, cycle.start_us),
        organization_id=rule.organization_id,
        rule_id=rule.id,
        customer_id=customer_id,
        meter_id=rule.meter_id,
        kind=rule.kind,
        threshold=plain(rule.threshold),
        quantity=decimal_text(quantity),
        cycle_start=cycle.start_us,
        cycle_end=cycle.end_us,
        fired_at=now,
    )
