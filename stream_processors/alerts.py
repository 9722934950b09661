"""changed totals × alert rules → alerts that are due, each once per rule, customer and cycle. Pure.

What has fired in the end depends on totals and rules alone, not on which came first: a rule is checked against every
total of its meter when it appears, and every total when it is restored; then only what changes is. Whether an alert is
sent depends on the log's clock (moments.py): not when its cycle was over, or its threshold reached, by the time its
rule was made, nor when the usage came after the cycle and its grace. The rule may ask for those too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass

from msgspec.structs import replace

from catalog.alert_kinds import KINDS, NO_TERMS, Reached, Terms, first_used, terms_of
from catalog.cycles import meter_reads
from catalog.view import CatalogView
from runtime.one_by_one import OneByOne
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, AlertRule, NotSent, alert_id
from schemas.decimals import plain
from schemas.meter import Meter
from schemas.period import Cycle
from stream_processors.moments import GraceUs, Seen
from stream_processors.state import FiredKey
from stream_processors.totals import Total


@dataclass(frozen=True, slots=True)
class _Watch:
    rule: AlertRule
    meter: Meter
    reached: Reached


IsNew = Callable[[AlertRule], bool]


def _never(_: AlertRule) -> bool:
    return False


class AlertBook:
    """The rules in force, as the view has them, ready to be checked. grace_us: after its end a cycle still runs."""

    def __init__(self, view: CatalogView, grace_us: GraceUs = lambda _: 0) -> None:
        self._view = view
        self._grace_us = grace_us
        self._revision = -1
        self._watches: dict[tuple[str, str], tuple[_Watch, ...]] = {}
        self._reads: dict[tuple[str, str, Cycle], bool] = {}
        self._terms: dict[tuple[str, str, Cycle, bool, int | None], Terms] = {}
        self._loop = OneByOne("alerts", lambda _: False)

    def due(
        self,
        seen: Iterable[Seen],
        fired: Set[FiredKey],
        now: int,
        *,
        is_new: IsNew = _never,
        rule_ids: Set[str] | None = None,
    ) -> list[Alert]:
        """Alerts of these totals that have not fired. now: µs; the time of a total that no message has changed.

        is_new: whether the totals are held against a rule for the first time. rule_ids: only these; None: all.
        """
        if self._revision != self._view.revision:
            self._revision = self._view.revision
            self._watches.clear()
            self._reads.clear()
            self._terms.clear()
        alerts: dict[str, Alert] = {}
        for each in seen:
            changed, at_us = each.total, now if each.at_us is None else each.at_us
            series = changed.series
            key = (series.organization_id, series.event_name)
            watches = self._watches.get(key)
            if watches is None:
                watches = self._watches[key] = self._watches_on(*key)
            for watch in watches:
                if watch.rule.customer_id not in (None, series.customer_id):
                    continue
                if rule_ids is not None and watch.rule.id not in rule_ids:
                    continue
                # A rule that can't be checked against this customer keeps no other alert back.
                with self._loop.one(f"rule {watch.rule.id} of customer {series.customer_id}"):
                    for total in _concerned(watch, changed):
                        if (watch.rule.id, series.customer_id, total.cycle.start_us) in fired:
                            continue
                        if (alert := self._alert(watch, total, now)) is not None and alert.id not in alerts:
                            why = self._not_sent(watch.rule, total, at_us, is_new=is_new(watch.rule))
                            alerts[alert.id] = alert if why is None else replace(alert, not_sent=why)
        return list(alerts.values())

    def _watches_on(self, organization_id: str, event_name: str) -> tuple[_Watch, ...]:
        watches: list[_Watch] = []
        for meter in self._view.meters_reading(organization_id, event_name):
            for rule in self._view.rules_on(organization_id, meter.id):
                with self._loop.one(f"rule {rule.id}"):
                    watches.append(_Watch(rule, meter, KINDS[rule.kind](rule, meter)))
        return tuple(watches)

    def _alert(self, watch: _Watch, total: Total, now: int) -> Alert | None:
        """None: the threshold is not reached, or the cycle is none of the meter's."""
        needs_terms = watch.rule.kind is not AlertKind.QUANTITY
        terms = self._terms_of(watch, total) if needs_terms else NO_TERMS
        reached = watch.reached(total, total.series.totals, terms)
        if reached is None or not self._meter_reads(watch.meter.id, total):
            return None
        rule, customer_id, cycle = watch.rule, total.series.customer_id, total.cycle
        return Alert(
            id=alert_id(rule.id, customer_id, cycle.start_us),
            organization_id=rule.organization_id,
            rule_id=rule.id,
            customer_id=customer_id,
            meter_id=rule.meter_id,
            kind=rule.kind,
            threshold=plain(rule.threshold),
            quantity=reached,
            cycle_start=cycle.start_us,
            cycle_end=cycle.end_us,
            fired_at=now,
            currency=terms.currency if rule.kind is AlertKind.AMOUNT else None,
        )

    def _not_sent(self, rule: AlertRule, total: Total, at_us: int, *, is_new: bool) -> NotSent | None:
        """at_us: when the total said so."""
        over_at = total.cycle.end_us + self._grace_us(rule.organization_id)
        if max(at_us, rule.created_at) > over_at:
            return None if rule.past_cycles else NotSent.CYCLE_OVER
        if (is_new or at_us <= rule.created_at) and not rule.alert_existing:
            return NotSent.ALREADY_REACHED
        return None

    def _meter_reads(self, meter_id: str, total: Total) -> bool:
        """Whether the total's cycle is one of the meter's: another meter of the same event_name may have others."""
        customer_id = total.series.customer_id
        key = (meter_id, customer_id, total.cycle)
        known = self._reads.get(key)
        if known is None:
            organization_id = total.series.organization_id
            known = self._reads[key] = meter_reads(self._view, organization_id, customer_id, meter_id, total.cycle)
        return known

    def _terms_of(self, watch: _Watch, total: Total) -> Terms:
        typical = watch.rule.kind is AlertKind.TYPICAL_PERCENT
        first = first_used(total.series.totals) if typical else None
        key = (watch.meter.id, total.series.customer_id, total.cycle, typical, first)
        known = self._terms.get(key)
        if known is None:
            known = terms_of(self._view, watch.rule, total.series.customer_id, total.cycle, first)
            self._terms[key] = known
        return known


def _concerned(watch: _Watch, changed: Total) -> Iterator[Total]:
    """The changed total, and for typical usage those after it: their mean has changed too."""
    yield changed
    if watch.rule.kind is AlertKind.TYPICAL_PERCENT:
        yield from (later for later in changed.series.totals if later.cycle.start_us > changed.cycle.start_us)
