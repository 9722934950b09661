"""messages of one partition, between two looks at its totals → what each total said, and by when. Pure.

An alert is sent if its threshold was reached while the cycle or its grace ran, and after the rule was made. A look
covers many messages, of hours after a stop, and what it finds must not depend on how many. So the clock is the log's
(the greatest received_at so far), a total has the time of its last message, and where that clock passes an instant that
decides (a changed total's cycle is over, a rule was made), the totals concerned are kept as they were.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stream_processors.totals import Total

GraceUs = Callable[[str], int]
"""Organization's id → how long after its end a cycle still counts as running, µs."""
_NEVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Seen:
    """A total as it was at log time at_us; None: no message has changed it since the look before."""

    total: Total
    at_us: int | None


class Moments:
    """log_time: µs, after the last message. made_at: when rules were made, ascending µs: of those that may be later.

    watched: whether there is any rule; without one nothing is kept.
    """

    def __init__(self, grace_us: GraceUs) -> None:
        self._grace_us = grace_us
        self.log_time = 0
        self.made_at: Sequence[int] = ()
        self.watched = True
        self._graces: dict[str, int] = {}
        self._offsets: list[int] = []  # of messages that moved the clock
        self._times: list[int] = []
        self._kept: list[Seen] = []
        self._scanned = 0  # changed totals that _soonest has
        self._soonest = _NEVER  # when the first changed total's cycle is over

    def over_at(self, total: Total) -> int:
        """µs from when on usage is late for the total's cycle."""
        organization_id = total.series.organization_id
        grace_us = self._graces.get(organization_id)  # asked for once a look: there may be 100,000 totals
        if grace_us is None:
            grace_us = self._graces[organization_id] = self._grace_us(organization_id)
        return total.cycle.end_us + grace_us

    def before(self, offset: int, received_at: int, changed: Sequence[Total]) -> None:
        """The message at that offset is the next to be added; changed: totals, in the order in which they did."""
        before, after = self.log_time, max(self.log_time, received_at)
        if before == after and self._offsets:
            return
        if self.watched:
            if len(changed) != self._scanned:
                for total in changed[self._scanned :]:
                    over_at = self.over_at(total)
                    if before <= over_at < self._soonest:
                        self._soonest = over_at
                self._scanned = len(changed)
            if after > self._soonest or (self.made_at and self._is_made(before, after)):
                self._keep(before, after, changed)
        self.log_time = after
        self._offsets.append(offset)
        self._times.append(after)

    def _is_made(self, before: int, after: int) -> bool:
        """Whether a rule was made in [before, after)."""
        return bisect_left(self.made_at, after) > bisect_left(self.made_at, before)

    def _keep(self, before: int, after: int, changed: Sequence[Total]) -> None:
        all_of_them = self._is_made(before, after)
        self._soonest = _NEVER
        for total in changed:
            over_at = self.over_at(total)
            if all_of_them or before <= over_at < after:
                at_us = self.time_of(total)
                if at_us is not None:
                    self._kept.append(Seen(total.copy(), at_us))
            if over_at >= after:
                self._soonest = min(self._soonest, over_at)

    def time_of(self, total: Total) -> int | None:
        """Log time at the total's last message; None: before the last look."""
        found = bisect_right(self._offsets, total.last_offset) - 1
        return self._times[found] if found >= 0 else None

    def seen(self, changed: Sequence[Total]) -> Iterator[Seen]:
        """What has changed since the look before, older states first."""
        yield from self._kept
        for total in changed:
            yield Seen(total, self.time_of(total))

    def forget(self) -> None:
        """All of it was looked at, and nothing counts as changed any more."""
        self._offsets.clear()
        self._times.clear()
        self._kept.clear()
        self._graces.clear()
        self._scanned, self._soonest = 0, _NEVER
