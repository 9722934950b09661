"""usage.totals, usage.alerts, deliveries → what is newest of each, by organization. A pure fold, bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from dashboard.count_rates import CountRates
from schemas.alert import Alert
from schemas.period import Cycle
from schemas.totals import Progress, UsageTotal
from schemas.webhook_delivery import WebhookDelivery

CYCLES_MAX = 36
ALERTS_MAX = 1000
DELIVERIES_MAX = 2000
SERIES_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Lag:
    """How far live totals are behind. messages: of usage.events, not counted yet; None: nothing is known yet.

    seconds: age of the newest message that is counted, where any is not; else 0.
    """

    messages: int | None
    seconds: float


class LiveView:
    """The newest total of each customer, event_name and cycle, and the newest alerts.

    rates: events that were counted of late. Bounded: of a series the newest cycles are kept, and of an organization no
    more series than series_max. Not locked: one thread applies; what readers get is
    replaced, never changed.
    """

    def __init__(
        self, *, cycles_max: int = CYCLES_MAX, alerts_max: int = ALERTS_MAX, series_max: int = SERIES_MAX
    ) -> None:
        self._cycles_max = cycles_max
        self._alerts_max = alerts_max
        # organization → customer → event_name → totals, a cycle each
        self._totals: dict[str, dict[str, dict[str, tuple[UsageTotal, ...]]]] = {}
        # organization → customer, last changed last → the number of its last change, which counts those of all
        self._changes: dict[str, dict[str, int]] = {}
        self._change_count = 0
        self._latest_start: dict[str, int] = {}
        self._alerts: dict[str, tuple[Alert, ...]] = {}
        self._deliveries: dict[str, dict[str, WebhookDelivery]] = {}
        self._progress: dict[int, Progress] = {}
        self._series_max = series_max
        self.rates = CountRates()
        self._series_counts: Counter[str] = Counter()
        self._left_out: set[str] = set()  # organizations of which a series found no room here
        self._partial: dict[str, set[int]] = {}  # organization → partitions in which the aggregator had none
        self._closed_before: dict[int, int] = {}

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def series_count(self) -> int:
        return self._series_counts.total()

    def is_whole(self, organization_id: str) -> bool:
        """Whether every series of it is here; else some may be missing, or lack their beginning."""
        return organization_id not in self._left_out and not self._partial.get(organization_id)

    def series(self, organization_id: str, customer_id: str, event_name: str) -> tuple[UsageTotal, ...]:
        """Totals of a customer and event_name, a cycle each, oldest first."""
        return self._totals.get(organization_id, {}).get(customer_id, {}).get(event_name, ())

    def series_of(self, organization_id: str, customer_id: str) -> list[tuple[UsageTotal, ...]]:
        """Every series of a customer."""
        return list(self._totals.get(organization_id, {}).get(customer_id, {}).values())

    def customers(self, organization_id: str) -> list[str]:
        """Customers with usage, those that changed last at the end."""
        return list(self._changes.get(organization_id, {}))

    def changed_since(self, organization_id: str, number: int) -> tuple[set[str], int]:
        """Customers whose totals changed after the change of that number (0: all with usage), and the newest number."""
        changes = list(self._changes.get(organization_id, {}).items())
        newer = takewhile(lambda change: change[1] > number, reversed(changes))
        return {customer for customer, _ in newer}, changes[-1][1] if changes else number

    def latest_cycle_start(self, organization_id: str) -> int | None:
        """Of the newest cycle with usage, µs; None: there is no usage."""
        return self._latest_start.get(organization_id)

    def alerts(self, organization_id: str) -> tuple[Alert, ...]:
        """The newest alerts, latest first."""
        return self._alerts.get(organization_id, ())

    def deliveries(self, organization_id: str) -> list[WebhookDelivery]:
        """The newest webhook deliveries, latest first."""
        return list(self._deliveries.get(organization_id, {}).values())[::-1]

    def delivery(self, organization_id: str, delivery_id: str) -> WebhookDelivery | None:
        return self._deliveries.get(organization_id, {}).get(delivery_id)

    def lag(self, next_offsets: dict[int, int] | None, now: int) -> Lag:
        """next_offsets: partition → the end of usage.events; None: not known. now: µs."""
        if next_offsets is None:
            return Lag(None, 0.0)
        behind = {
            partition: end - (self._progress[partition].next_offset if partition in self._progress else 0)
            for partition, end in next_offsets.items()
        }
        times = [
            now - self._progress[partition].log_time
            for partition, count in behind.items()
            if count > 0 and partition in self._progress
        ]
        return Lag(sum(max(0, count) for count in behind.values()), max(times, default=0) / 1e6)

    # -- applying --------------------------------------------------------------------------------------------------

    def apply_total(self, total: UsageTotal) -> bool:
        """Whether it is newer than what was known."""
        if total.cycle_end <= self._closed_before.get(total.partition, 0):
            return False
        customers = self._totals.setdefault(total.organization_id, {})
        by_event = customers.get(total.customer_id, {})
        known = by_event.get(total.event_name)
        if known is None:
            if self._series_counts[total.organization_id] >= self._series_max:
                self._left_out.add(total.organization_id)
                return False
            self._series_counts[total.organization_id] += 1
        newer = self._with(known or (), total)
        if newer is None:
            return False
        by_event[total.event_name] = newer
        customers[total.customer_id] = by_event
        # After the total is in place: who learns of a change finds it.
        self._change_count += 1
        changes = self._changes.setdefault(total.organization_id, {})
        changes.pop(total.customer_id, None)
        changes[total.customer_id] = self._change_count
        latest = self._latest_start.get(total.organization_id, total.cycle_start)
        self._latest_start[total.organization_id] = max(latest, total.cycle_start)
        return True

    def _with(self, known: tuple[UsageTotal, ...], total: UsageTotal) -> tuple[UsageTotal, ...] | None:
        """A series with the total in it; None: it is not newer than what is there, or too old to be kept."""
        same = next((i for i, old in enumerate(known) if old.cycle_key == total.cycle_key), None)
        if same is not None:
            return (*known[:same], total, *known[same + 1 :]) if total.supersedes(known[same]) else None
        cycles = sorted((*known, total), key=lambda each: (each.cycle_start, each.cycle_end))
        kept = tuple(cycles[-self._cycles_max :])
        return kept if total in kept else None

    def apply_closed(self, partition: int, before: int) -> None:
        """The partition has closed all cycles that end by this time (µs). 0 means that it recounts every cycle."""
        self._closed_before[partition] = before
        for organization_id, customers in self._totals.items():
            for customer_id, by_event in list(customers.items()):
                kept = {
                    name: left
                    for name, series in by_event.items()
                    if (left := tuple(t for t in series if t.partition != partition or t.cycle_end > before))
                }
                self._series_counts[organization_id] -= len(by_event) - len(kept)
                if kept:
                    customers[customer_id] = kept
                else:
                    del customers[customer_id]
                    self._changes.get(organization_id, {}).pop(customer_id, None)

    def apply_partial(self, organization_id: str, partition: int, *, is_partial: bool) -> None:
        """Whether the organization has more series in the partition than the limit allows."""
        known = self._partial.get(organization_id, set())
        self._partial[organization_id] = known | {partition} if is_partial else known - {partition}

    def apply_progress(self, progress: Progress) -> None:
        self._progress[progress.partition] = progress

    def apply_alert(self, alert: Alert) -> bool:
        """False when it is known: an alert may be published twice, and the first stays."""
        known = self._alerts.get(alert.organization_id, ())
        if any(old.id == alert.id for old in known):
            return False
        newest = sorted((alert, *known), key=lambda each: each.fired_at, reverse=True)
        self._alerts[alert.organization_id] = tuple(newest[: self._alerts_max])
        return True

    def apply_delivery(self, delivery: WebhookDelivery) -> None:
        """Keep the newest state of each; the oldest of them make room."""
        known = self._deliveries.get(delivery.organization_id, {})
        other = known.get(delivery.id)
        if other is not None and other.revision > delivery.revision:
            return
        kept = {**known, delivery.id: delivery}
        if other is None:
            ordered = sorted(kept.values(), key=lambda each: each.created_at)[-DELIVERIES_MAX:]
            kept = {each.id: each for each in ordered}
        self._deliveries[delivery.organization_id] = kept


def in_cycles(totals: Iterable[UsageTotal], wanted: Cycle) -> list[UsageTotal]:
    """Those whose cycle has an instant in common with the wanted period."""
    return [total for total in totals if total.cycle_start < wanted.end_us and wanted.start_us < total.cycle_end]
