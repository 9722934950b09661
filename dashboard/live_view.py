"""usage.totals, usage.alerts → what is newest of each, by organization. A pure fold, bounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.alert import Alert
from schemas.period import Cycle
from schemas.totals import Progress, UsageTotal

CYCLES_MAX = 36
ALERTS_MAX = 1000
SERIES_MAX = 1_000_000

Series = tuple[str, str]
"""customer_id, event_name."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far live totals are behind. messages: of usage.events, not counted yet; None: nothing is known yet.

    seconds: age of the newest message that is counted, where any is not; else 0.
    """

    messages: int | None
    seconds: float


class LiveView:
    """The newest total of each customer, event_name and cycle, and the newest alerts.

    Bounded: of a series the newest cycles are kept, and no more series than series_max. complete: False once a series
    found no room. Not locked: one thread applies; what readers get is replaced, never changed.
    """

    def __init__(
        self, *, cycles_max: int = CYCLES_MAX, alerts_max: int = ALERTS_MAX, series_max: int = SERIES_MAX
    ) -> None:
        self._cycles_max = cycles_max
        self._alerts_max = alerts_max
        self._totals: dict[str, dict[Series, tuple[UsageTotal, ...]]] = {}
        self._alerts: dict[str, tuple[Alert, ...]] = {}
        self._progress: dict[int, Progress] = {}
        self._series_max = series_max
        self.series_count = 0
        self.complete = True

    # -- reading ---------------------------------------------------------------------------------------------------

    def series(self, organization_id: str, customer_id: str, event_name: str) -> tuple[UsageTotal, ...]:
        """Totals of a customer and event_name, a cycle each, oldest first."""
        return self._totals.get(organization_id, {}).get((customer_id, event_name), ())

    def all_series(self, organization_id: str) -> list[tuple[UsageTotal, ...]]:
        """Every series of an organization."""
        return list(self._totals.get(organization_id, {}).values())

    def alerts(self, organization_id: str) -> tuple[Alert, ...]:
        """The newest alerts, latest first."""
        return self._alerts.get(organization_id, ())

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
        by_series = self._totals.setdefault(total.organization_id, {})
        key = (total.customer_id, total.event_name)
        known = by_series.get(key)
        if known is None:
            if self.series_count >= self._series_max:
                self.complete = False
                return False
            by_series[key] = (total,)
            self.series_count += 1
            return True
        same = next((i for i, old in enumerate(known) if old.cycle_key == total.cycle_key), None)
        if same is not None:
            if not total.supersedes(known[same]):
                return False
            by_series[key] = (*known[:same], total, *known[same + 1 :])
            return True
        cycles = sorted((*known, total), key=lambda each: (each.cycle_start, each.cycle_end))
        by_series[key] = tuple(cycles[-self._cycles_max :])
        return total in by_series[key]

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


def in_cycles(totals: Iterable[UsageTotal], wanted: Cycle) -> list[UsageTotal]:
    """Those whose cycle has an instant in common with the wanted period."""
    return [total for total in totals if total.cycle_start < wanted.end_us and wanted.start_us < total.cycle_end]
