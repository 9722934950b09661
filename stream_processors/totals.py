"""UsageBatch columns → sum, count and max per organization, customer, event_name and cycle. Pure; the hot path.

Inside, values are exact integers, × 10⁹; decimals begin where a record is written. All three aggregations are kept,
so a total does not depend on which meters there are, or on when they were made. Usage of an unknown customer, or of a
name that nothing meters, adds to none: once the catalog knows both, `reconcile` adds what came before. Nor does usage
of a cycle that is closed, or of a series for which there is no room.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from catalog.cycles import UNCOUNTED, Affected, Tile
from schemas.period import Cycle
from schemas.repair import UsageRepair, repaired_max
from schemas.totals import UsageTotal, decimal_text, total_key, unscaled_of
from schemas.usage_batch import UsageBatch
from stream_processors.dedupe import series_seed

TileAt = Callable[[str, str, str, int], Tile]
"""organization_id, customer_id, event_name, t in µs → the tile that contains t."""


class Timeline(Protocol):
    """When usage counts: see catalog.cycles."""

    def __call__(self, organization_id: str, customer_id: str, event_name: str, t_us: int) -> Tile:
        """The tile that contains t."""
        ...

    def counts_live(self, organization_id: str, customer_id: str, event_name: str) -> bool:
        """Whether the series has any tile in which it counts."""
        ...


SeriesKey = tuple[str, str, str]
"""organization_id, customer_id, event_name."""

NO_OFFSET = -1
_NEVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Repaired:
    """How many repairs a total contains, and what they added to it; sum × 10⁹."""

    repairs: int
    sum: int
    count: int


NOT_REPAIRED = Repaired(0, 0, 0)


class Total:
    """One running total. Mutable: it is added to once an event.

    sum, max: value × 10⁹; max None: no value yet. first_offset, last_offset: messages of the current topic that it
    contains, NO_OFFSET before the first. changed: since it was last written.
    """

    __slots__ = ("changed", "count", "cycle", "first_offset", "last_offset", "max", "repaired", "series", "sum")

    def __init__(self, series: Series, cycle: Cycle) -> None:
        self.series = series
        self.cycle = cycle
        self.sum = 0
        self.count = 0
        self.max: int | None = None
        self.first_offset = NO_OFFSET
        self.last_offset = NO_OFFSET
        self.repaired = NOT_REPAIRED
        self.changed = False

    def copy(self) -> Total:
        """The total as it is now; of the same series, which does not know it."""
        made = Total(self.series, self.cycle)
        made.sum, made.count, made.max = self.sum, self.count, self.max
        return made

    def key(self) -> bytes:
        series = self.series
        return total_key(
            series.organization_id, series.customer_id, series.event_name, self.cycle.start_us, self.cycle.end_us
        )

    def record(self, topic_id: str, partition: int, now: int) -> UsageTotal:
        """now: µs."""
        series, cycle = self.series, self.cycle
        return UsageTotal(
            series.organization_id,
            series.customer_id,
            series.event_name,
            cycle.start_us,
            cycle.end_us,
            decimal_text(self.sum),
            self.count,
            None if self.max is None else decimal_text(self.max),
            topic_id,
            partition,
            self.first_offset,
            self.last_offset,
            now,
            self.repaired.repairs,
            decimal_text(self.repaired.sum),
            self.repaired.count,
        )


class Series:
    """What one customer uses of one event_name: its totals, and the tiles of its time line that were asked for.

    from_us, until_us, current: the tile that the last event was in, so that the next one, mostly in the same, is found
    by two comparisons. seed: of its identities' hashes.
    """

    __slots__ = (
        "_starts",
        "_tiles",
        "current",
        "customer_id",
        "event_name",
        "from_us",
        "organization_id",
        "seed",
        "totals",
        "until_us",
    )

    def __init__(self, organization_id: str, customer_id: str, event_name: str) -> None:
        self.organization_id = organization_id
        self.customer_id = customer_id
        self.event_name = event_name
        self.seed = series_seed(organization_id, customer_id, event_name)
        self.totals: list[Total] = []
        self.forget_tiles()

    def forget_tiles(self) -> None:
        """The catalog has changed: ask for tiles again. Totals stay."""
        self.from_us = self.until_us = _NEVER
        self.current: tuple[Total, ...] = ()
        self._starts: list[int] = []
        self._tiles: list[tuple[int, int, tuple[Total, ...]]] = []

    @classmethod
    def uncounted(cls, organization_id: str, customer_id: str, event_name: str) -> Series:
        """One that keeps no totals; for the hashes of its identities."""
        series = cls(organization_id, customer_id, event_name)
        series.from_us, series.until_us = UNCOUNTED.from_us, UNCOUNTED.until_us
        series._starts.append(series.from_us)
        series._tiles.append((series.from_us, series.until_us, ()))
        return series

    def total(self, cycle: Cycle) -> Total:
        for total in self.totals:
            if total.cycle == cycle:
                return total
        total = Total(self, cycle)
        self.totals.append(total)
        return total

    def move_to(self, t_us: int, tile_at: TileAt) -> tuple[Total, ...]:
        """Make the tile of t the current one; its totals."""
        at = bisect_right(self._starts, t_us) - 1
        if at < 0 or t_us >= self._tiles[at][1]:
            tile = tile_at(self.organization_id, self.customer_id, self.event_name, t_us)
            at += 1
            self._starts.insert(at, tile.from_us)
            self._tiles.insert(at, (tile.from_us, tile.until_us, tuple(map(self.total, tile.cycles))))
        self.from_us, self.until_us, self.current = self._tiles[at]
        return self.current


class Totals:
    """All running totals of one partition.

    Offsets only grow, but for the first messages after a crash in the middle of a write: some totals contain them
    already and others do not. So a message at or below a total's last offset adds nothing to it.

    closed_before: of cycles that end at or before it (µs) there is no total. partial: organizations of which a series
    was left out → the last offset at which one was; some of their totals may be missing, or lack their beginning.
    """

    def __init__(self, tiles: Timeline, series_max: int = sys.maxsize) -> None:
        """series_max: of an organization."""
        self._tiles = tiles
        self._series_max = series_max
        self._series_counts: Counter[str] = Counter()
        self.closed_before = 0
        self.partial: dict[str, int] = {}
        self._series: dict[SeriesKey, Series] = {}
        self._by_customer: dict[tuple[str, str], list[Series]] = {}
        self._changed: list[Total] = []
        self._fresh: list[Series] = []  # since the last write: of duplicates and closed cycles alone, no total comes
        self._written_through = NO_OFFSET  # greatest last_offset that was restored

    def __len__(self) -> int:
        return sum(len(series.totals) for series in self._series.values())

    def __iter__(self) -> Iterator[Total]:
        for series in self._series.values():
            yield from series.totals

    @property
    def changed(self) -> Sequence[Total]:
        """Totals that have changed since `take_changed`."""
        return self._changed

    def take_changed(self) -> list[Total]:
        """The same, and forget it: they are about to be written. A series that came to no total takes no room."""
        for series in self._fresh:
            if not series.totals:
                self._forget(series)
        self._fresh.clear()
        changed, self._changed = self._changed, []
        for total in changed:
            total.changed = False
        return changed

    def series_of(self, offset: int, batch: UsageBatch) -> list[Series]:
        """The series of each event of the message at an offset."""
        get = self._series.get
        if len(batch.customer_id) == 1:
            key = (batch.organization_id[0], batch.customer_id[0], batch.event_name[0])
            return [get(key) or self._new_series(key, offset, {})]
        keys = list(zip(batch.organization_id, batch.customer_id, batch.event_name, strict=True))
        found = [get(key) for key in keys]
        if None in found:
            uncounted: dict[SeriesKey, Series] = {}
            return [series or self._new_series(key, offset, uncounted) for series, key in zip(found, keys, strict=True)]
        return found  # pyright: ignore[reportReturnType]

    def _new_series(self, key: SeriesKey, offset: int, uncounted: dict[SeriesKey, Series]) -> Series:
        """Keep it, unless it does not count: then it is among the batch's own, and forgotten with it."""
        series = self._series.get(key) or uncounted.get(key)  # kept already for an earlier event of the batch
        if series is None:
            if self._tiles.counts_live(*key):
                if self.has_room(key[0]):
                    series = self.series(*key)
                    self._fresh.append(series)
                    return series
                self.partial[key[0]] = offset
            series = uncounted[key] = Series.uncounted(*key)
        return series

    def has_room(self, organization_id: str) -> bool:
        """Whether another series of it would be kept."""
        return self._series_counts[organization_id] < self._series_max

    def _tile_at(self, organization_id: str, customer_id: str, event_name: str, t_us: int) -> Tile:
        """The tile that contains t, without closed cycles."""
        tile = self._tiles(organization_id, customer_id, event_name, t_us)
        closed_before = self.closed_before
        for cycle in tile.cycles:
            if cycle.end_us <= closed_before:
                return replace(tile, cycles=tuple(each for each in tile.cycles if each.end_us > closed_before))
        return tile

    def series(self, organization_id: str, customer_id: str, event_name: str) -> Series:
        key = (organization_id, customer_id, event_name)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series(organization_id, customer_id, event_name)
            self._series_counts[organization_id] += 1
            self._by_customer.setdefault((organization_id, customer_id), []).append(series)
        return series

    def add(self, offset: int, batch: UsageBatch, series: Sequence[Series], counts: Sequence[bool] | None) -> None:
        """Add the events of the message at an offset. counts: False for a duplicate; None: there is none."""
        if offset <= self._written_through:
            self._add_where_missing(offset, batch, series, counts)
            return
        tile_at, changed = self._tile_at, self._changed
        from_bytes = int.from_bytes
        events = zip(series, batch.timestamp, batch.value, strict=True)
        if counts is not None:
            events = (event for event, first in zip(events, counts, strict=True) if first)
        for one, t_us, value in events:
            totals = one.current if one.from_us <= t_us < one.until_us else one.move_to(t_us, tile_at)
            for total in totals:
                total.count += 1
                if value is not None:
                    unscaled = from_bytes(value, "big", signed=True)
                    total.sum += unscaled
                    if total.max is None or unscaled > total.max:
                        total.max = unscaled
                if total.last_offset != offset:
                    total.last_offset = offset
                    if total.first_offset < 0:
                        total.first_offset = offset
                    if not total.changed:
                        total.changed = True
                        changed.append(total)

    def _add_where_missing(
        self, offset: int, batch: UsageBatch, series: Sequence[Series], counts: Sequence[bool] | None
    ) -> None:
        """The same for a message that some totals contain. Rare, so plain: pass over those."""
        had: dict[Total, bool] = {}
        for index, (one, t_us, value) in enumerate(zip(series, batch.timestamp, batch.value, strict=True)):
            if counts is not None and not counts[index]:
                continue
            unscaled = None if value is None else int.from_bytes(value, "big", signed=True)
            for total in one.move_to(t_us, self._tile_at):
                # Asked once a message: the first of its events to be added makes its offset the total's last.
                if not had.setdefault(total, total.last_offset >= offset):
                    self._add_one(total, offset, unscaled)

    def _add_one(self, total: Total, offset: int, unscaled: int | None) -> None:
        total.count += 1
        if unscaled is not None:
            total.sum += unscaled
            total.max = unscaled if total.max is None else max(total.max, unscaled)
        total.last_offset = offset
        if total.first_offset < 0:
            total.first_offset = offset
        if not total.changed:
            total.changed = True
            self._changed.append(total)

    def repair(self, repair: UsageRepair) -> bool:
        """Apply it if it was computed from the total as it is; False: it was not, and nothing has changed.

        Raises ValueError for numbers that are none, and has changed nothing then.
        """
        key = (repair.organization_id, repair.customer_id, repair.event_name)
        cycle = Cycle(repair.cycle_start, repair.cycle_end)
        series = self._series.get(key)
        if cycle.end_us <= self.closed_before:
            return False
        if series is None and not self.has_room(repair.organization_id):
            through = self.partial.get(repair.organization_id, NO_OFFSET)
            self.partial[repair.organization_id] = max(through, repair.offset)
            return False
        total = None if series is None else next((each for each in series.totals if each.cycle == cycle), None)
        if repair.repairs != (NOT_REPAIRED if total is None else total.repaired).repairs:
            return False
        added, most = unscaled_of(repair.sum), repaired_max(None if total is None else total.max, repair)
        if total is None:
            total = self.series(*key).total(cycle)
        total.sum += added
        total.count += repair.count
        total.max = most
        before = total.repaired
        total.repaired = Repaired(before.repairs + 1, before.sum + added, before.count + repair.count)
        if not total.changed:
            total.changed = True
            self._changed.append(total)
        return True

    def restore(self, record: UsageTotal, topic_id: str, *, outdated: bool = False) -> None:
        """Take over a written total. Of another topic: its numbers stay, its offsets mean nothing any more.

        outdated: the last one written was another, so it counts as changed.
        """
        series = self.series(record.organization_id, record.customer_id, record.event_name)
        total = series.total(Cycle(record.cycle_start, record.cycle_end))
        total.sum = unscaled_of(record.sum)
        total.count = record.count
        total.max = None if record.max is None else unscaled_of(record.max)
        if record.repairs:
            total.repaired = Repaired(record.repairs, unscaled_of(record.repaired_sum), record.repaired_count)
        if record.topic_id == topic_id:
            total.first_offset, total.last_offset = record.first_offset, record.last_offset
            self._written_through = max(self._written_through, record.last_offset)
        if outdated and not total.changed:
            total.changed = True
            self._changed.append(total)

    def forget_offsets(self) -> None:
        """The log's offsets begin to mean other messages: the numbers stay. All that has changed is written."""
        self._written_through = NO_OFFSET
        self.partial = dict.fromkeys(self.partial, NO_OFFSET)
        for series in self._series.values():
            for total in series.totals:
                total.first_offset = total.last_offset = NO_OFFSET

    def forget_tiles(self, affected: Affected) -> None:
        """Assign later events by the catalog as it is now."""
        if affected.customer_id is not None:
            for series in self._by_customer.get((affected.organization_id, affected.customer_id), ()):
                series.forget_tiles()
            return
        for series in self._series.values():
            if series.organization_id == affected.organization_id and affected.event_name in (None, series.event_name):
                series.forget_tiles()

    def close_cycles(self, before: int) -> list[Total]:
        """Keep no total of a cycle that ends at or before (µs); those that there were. All changes must be written."""
        self.closed_before = max(before, self.closed_before)
        closed = [total for total in self if total.cycle.end_us <= self.closed_before]
        for series in {total.series for total in closed}:
            series.totals = [total for total in series.totals if total.cycle.end_us > self.closed_before]
            series.forget_tiles()
            if not series.totals:
                self._forget(series)
        return closed

    def _forget(self, series: Series) -> None:
        del self._series[series.organization_id, series.customer_id, series.event_name]
        self._series_counts[series.organization_id] -= 1
        customer = (series.organization_id, series.customer_id)
        self._by_customer[customer].remove(series)
        if not self._by_customer[customer]:
            del self._by_customer[customer]

    def reading(self, organization_id: str, event_name: str) -> list[Total]:
        """Every total of an organization's event_name."""
        return [
            total
            for series in self._series.values()
            if series.organization_id == organization_id and series.event_name == event_name
            for total in series.totals
        ]

    def of_customer(self, organization_id: str, customer_id: str) -> list[Total]:
        """Every total of a customer."""
        return [
            total for series in self._by_customer.get((organization_id, customer_id), ()) for total in series.totals
        ]
