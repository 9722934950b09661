"""alert rule × live totals → how many customers have reached its threshold in the cycle that runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.alert_kinds import KINDS, first_used, terms_of
from catalog.cycles import meter_reads
from catalog.view import CatalogView
from dashboard.live_view import LiveView
from runtime.one_by_one import OneByOne
from schemas.alert_rule import AlertRule
from schemas.meter import Meter
from schemas.period import Cycle
from schemas.totals import UsageTotal, unscaled_of

_LOOP = OneByOne("alert_counts", lambda _: False)


@dataclass(frozen=True, slots=True)
class _Usage:
    """A live total as the kinds of alerts take it."""

    cycle: Cycle
    sum: int
    count: int
    max: int | None


def _usage(total: UsageTotal) -> _Usage:
    return _Usage(
        Cycle(total.cycle_start, total.cycle_end),
        unscaled_of(total.sum),
        total.count,
        None if total.max is None else unscaled_of(total.max),
    )


def customers_reached(view: CatalogView, live: LiveView, rule: AlertRule, now: int) -> int:
    """Customers that the rule would alert at once. now: µs. One that it can't be checked against is not counted."""
    meter = view.get(Meter, rule.organization_id, rule.meter_id)
    if meter is None:
        return 0
    customers = live.customers(rule.organization_id) if rule.customer_id is None else [rule.customer_id]
    count = 0
    for customer_id in customers:
        with _LOOP.one(f"a new rule of customer {customer_id} of {rule.organization_id}"):
            count += _has_reached(view, live, rule, meter, customer_id, now)
    return count


def _has_reached(view: CatalogView, live: LiveView, rule: AlertRule, meter: Meter, customer_id: str, now: int) -> bool:
    reached = KINDS[rule.kind](rule, meter)
    series = [_usage(each) for each in live.series(rule.organization_id, customer_id, meter.event_name)]
    first = first_used(series)
    return any(
        reached(total, series, terms_of(view, rule, customer_id, total.cycle, first)) is not None
        and meter_reads(view, rule.organization_id, customer_id, meter.id, total.cycle)
        for total in series
        if now in total.cycle
    )
