"""counts of totals as they grow → events a second, of each organization. Pure, bounded."""

from __future__ import annotations

from schemas.period import SECOND_US

SECONDS = 10


class CountRates:
    """How many events were counted in the last whole seconds. An event that is in two cycles is counted in both."""

    def __init__(self) -> None:
        self._counted: dict[str, dict[int, int]] = {}

    def add(self, organization_id: str, events: int, at: int) -> None:
        """at: when they were counted, µs."""
        by_second = self._counted.setdefault(organization_id, {})
        second = at // SECOND_US
        by_second[second] = by_second.get(second, 0) + events
        if len(by_second) > 3 * SECONDS:
            self._counted[organization_id] = {each: by_second[each] for each in sorted(by_second)[-2 * SECONDS :]}

    def per_second(self, organization_id: str, now: int) -> float:
        """Over the last ten whole seconds. now: µs."""
        until = now // SECOND_US
        by_second = dict(self._counted.get(organization_id, {}))
        return sum(events for second, events in by_second.items() if until - SECONDS <= second < until) / SECONDS
