"""usage.totals, ClickHouse → usage.repairs: what a live total lacks, or has too much of, at one place of the log.

For a partition whose totals stand at offset o: wait until ClickHouse has everything below o, count exactly what is
below o, write the difference. The aggregator adds it to whatever has come since, once: see schemas/repair.py. So events
that its memory of ids did not know as duplicates, tombstones, and what was used before a subscription or a meter was
made are put right while usage flows, and two of us at once change nothing twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from decimal import Decimal

import structlog

from catalog.cycles import Affected, tile_at
from catalog.view import CatalogView
from runtime.clock import now_us
from runtime.kafka.acked_producer import AckedProducer, Record
from runtime.kafka.admin import admin_client
from runtime.one_by_one import OneByOne
from schemas import repair as repairs
from schemas.decimals import exact
from schemas.period import Cycle, format_rfc3339
from schemas.repair import RepairReason, UsageRepair, repair_id
from schemas.settings import Settings
from schemas.topics import USAGE_REPAIRS, topic_name
from schemas.totals import UsageTotal, decimal_text, partial_key, total_key, unscaled_of
from schemas.watermark import Watermark
from stream_processors import metrics
from stream_processors.live_totals import LiveSnapshot, LiveTotalsReader
from stream_processors.state import UNNAMED
from warehouse.client import ClickHouseError, WarehouseUnavailable, concerns_all, unavailable
from warehouse.one_store import one_store
from warehouse.settled import settled
from warehouse.shards import Store, shards_of
from warehouse.totals import NO_USAGE, TotalsRequest, exact_totals
from warehouse.totals import UsageTotal as ExactTotal
from warehouse.used import Scope, UsedMonth, used_months

log = structlog.get_logger(__name__)

WINDOWS_AT_ONCE = 20_000
_REPAIRS_AT_ONCE = 10_000  # librdkafka's queue takes ten times as many
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.2
_DELIVERY_SECONDS = 15.0
_UNIT = Decimal(10) ** 9

SeriesKey = tuple[str, str, str]
"""organization_id, customer_id, event_name."""


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """What came of a partition. offset: its place. totals: how many were held against ClickHouse. repairs: what they
    differ by. whole: says of organizations that nothing is missing of them any more. skipped: why nothing was compared;
    None: it was. problems: series → why it could not be."""

    partition: int
    offset: int = 0
    totals: int = 0
    repairs: tuple[UsageRepair, ...] = ()
    whole: tuple[UsageRepair, ...] = ()
    skipped: str | None = None
    problems: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """Every partition that was asked for. seconds: what it took."""

    partitions: tuple[PartitionReport, ...]
    seconds: float = 0.0

    @property
    def repairs(self) -> list[UsageRepair]:
        return [repair for partition in self.partitions for repair in partition.repairs]

    @property
    def totals(self) -> int:
        return sum(partition.totals for partition in self.partitions)

    @property
    def skipped(self) -> dict[int, str]:
        return {each.partition: each.skipped for each in self.partitions if each.skipped is not None}

    @property
    def problems(self) -> dict[str, str]:
        """Series that could not be compared → why; the others were."""
        return {series: reason for each in self.partitions for series, reason in each.problems.items()}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A live total that there is, or should be: what it is of, and the windows whose events it counts."""

    key: bytes
    series: SeriesKey
    cycle: Cycle
    live: UsageTotal | None
    windows: tuple[TotalsRequest, ...] = field(default=())


def matches(scope: Sequence[Affected] | None, series: SeriesKey) -> bool:
    """Whether a series is within a scope; None: everything is."""
    organization_id, customer_id, event_name = series
    return scope is None or any(
        each.organization_id == organization_id
        and each.customer_id in (None, customer_id)
        and each.event_name in (None, event_name)
        for each in scope
    )


def series_text(series: SeriesKey) -> str:
    """For people."""
    organization_id, customer_id, event_name = series
    return f"{event_name} of customer {customer_id} of {organization_id}"


def wanted_totals(
    view: CatalogView,
    snapshot: LiveSnapshot,
    used: Iterable[UsedMonth],
    scope: Sequence[Affected] | None,
    loop: OneByOne,
) -> list[_Wanted]:
    """Every total that there is, and every one that there should be by the catalog as it is now.

    loop: hears of series whose cycles can't be found; no total of theirs is wanted. Pure.
    """
    wanted: list[_Wanted] = []
    used_by: dict[SeriesKey, list[UsedMonth]] = {}
    for month in used:
        used_by.setdefault(month.series, []).append(month)
    live_by: dict[SeriesKey, list[tuple[bytes, UsageTotal]]] = {}
    for key, total in snapshot.totals.items():
        series = (total.organization_id, total.customer_id, total.event_name)
        if matches(scope, series):
            live_by.setdefault(series, []).append((key, total))
    for series in dict.fromkeys((*live_by, *used_by)):
        with loop.one(series_text(series)):
            live, months = live_by.get(series, ()), used_by.get(series, ())
            wanted += _wanted_of(view, series, live, months, snapshot.closed_before)
    return wanted


def _wanted_of(
    view: CatalogView,
    series: SeriesKey,
    live: Iterable[tuple[bytes, UsageTotal]],
    used: Iterable[UsedMonth],
    closed_before: int,
) -> list[_Wanted]:
    found: dict[bytes, tuple[Cycle, UsageTotal | None]] = {
        key: (Cycle(total.cycle_start, total.cycle_end), total) for key, total in live
    }
    for month in used:
        for cycle in _cycles_in(view, month):
            if cycle.end_us > closed_before:
                found.setdefault(total_key(*series, cycle.start_us, cycle.end_us), (cycle, None))
    return [
        _Wanted(key, series, cycle, total, tuple(_windows(view, series, cycle)))
        for key, (cycle, total) in found.items()
    ]


def within_room(
    wanted: Iterable[_Wanted], snapshot: LiveSnapshot, series_max: int
) -> tuple[list[_Wanted], frozenset[str]]:
    """Those of series that are live, or for which there is room; and organizations of which one was left out. Pure.

    The first of an organization for which there is none is among them all the same: the aggregator refuses its repair,
    and says from then on that the organization is partial. series_max: of an organization in the partition.
    """
    kept = {total.cycle_key[:3] for total in snapshot.totals.values()}
    room = Counter(organization_id for organization_id, _, _ in kept)
    found: list[_Wanted] = []
    left_out: set[str] = set()
    for each in wanted:
        organization_id = each.series[0]
        if each.series not in kept:
            if room[organization_id] >= series_max:
                is_told = organization_id in snapshot.partial or organization_id in left_out
                left_out.add(organization_id)
                if is_told:
                    continue
            else:
                kept.add(each.series)
                room[organization_id] += 1
        found.append(each)
    return found, frozenset(left_out)


def whole_again(
    snapshot: LiveSnapshot,
    left_out: Set[str],
    found: Iterable[UsageRepair],
    scope: Sequence[Affected] | None,
    now_us: int,
) -> Iterator[UsageRepair]:
    """What says so of each organization that was partial, and of which every series is exact at the place. Pure."""
    progress = snapshot.progress
    assert progress is not None
    differing = {repair.organization_id for repair in found} | left_out
    for organization_id, through in snapshot.partial.items():
        is_compared = scope is None or Affected(organization_id) in scope
        if is_compared and organization_id not in differing and through < progress.next_offset:
            place = progress.topic_id, progress.next_offset - 1
            yield UsageRepair(
                repair_id=repair_id(partial_key(organization_id), 0, *place),
                organization_id=organization_id,
                customer_id="",
                event_name="",
                cycle_start=0,
                cycle_end=0,
                repairs=0,
                count=0,
                sum="0",
                max=None,
                max_was=None,
                topic_id=place[0],
                partition=snapshot.partition,
                offset=place[1],
                reason=RepairReason.WHOLE,
                made_at=now_us,
            )


def _cycles_in(view: CatalogView, month: UsedMonth) -> Iterator[Cycle]:
    at = month.from_us
    while at < month.until_us:
        tile = tile_at(view, *month.series, at)
        yield from tile.cycles
        at = tile.until_us


def _windows(view: CatalogView, series: SeriesKey, cycle: Cycle) -> Iterator[TotalsRequest]:
    """The parts of a cycle in which an event of the series counts in it."""
    at = cycle.start_us
    while at < cycle.end_us:
        tile = tile_at(view, *series, at)
        if cycle in tile.cycles:
            yield TotalsRequest(*series, at, min(tile.until_us, cycle.end_us))
        at = tile.until_us


@exact
def added(totals: Iterable[ExactTotal]) -> ExactTotal:
    """Totals of windows that do not overlap, as one."""
    found = list(totals)
    values = [each.max for each in found if each.max is not None]
    total = sum((each.sum for each in found), Decimal(0))
    return ExactTotal(total, sum(each.count for each in found), max(values, default=None)) if found else NO_USAGE


def difference(
    wanted: _Wanted, counted: ExactTotal, topic_id: str, partition: int, offset: int, reason: RepairReason, now_us: int
) -> UsageRepair | None:
    """What makes the live total exact; None: it is. offset: next one that neither contains. Pure."""
    live = wanted.live
    live_sum, live_count = (0, 0) if live is None else (unscaled_of(live.sum), live.count)
    live_max = None if live is None else live.max
    exact_max = None if counted.max is None else decimal_text(_unscaled(counted.max))
    missing, events = _unscaled(counted.sum) - live_sum, counted.count - live_count
    if not missing and not events and exact_max == live_max:
        return None
    number = 0 if live is None else live.repairs
    return UsageRepair(
        repair_id=repair_id(wanted.key, number, topic_id, offset - 1),
        organization_id=wanted.series[0],
        customer_id=wanted.series[1],
        event_name=wanted.series[2],
        cycle_start=wanted.cycle.start_us,
        cycle_end=wanted.cycle.end_us,
        repairs=number,
        count=events,
        sum=decimal_text(missing),
        max=exact_max,
        max_was=live_max,
        topic_id=topic_id,
        partition=partition,
        offset=offset - 1,
        reason=reason,
        made_at=now_us,
    )


@exact
def _unscaled(value: Decimal) -> int:
    return int(value * _UNIT)


def described(repair: UsageRepair) -> str:
    """What is wrong with a live total, for people."""
    sign = "" if repair.sum.startswith("-") else "+"
    most = "" if repair.max == repair.max_was else f", max {repair.max_was} should be {repair.max}"
    return (
        f"live total of {repair.organization_id}, {repair.customer_id}, {repair.event_name}, cycle from "
        f"{format_rfc3339(repair.cycle_start)}, differs by {repair.count:+d} events and {sign}{repair.sum}{most}; "
        f"compared at partition {repair.partition}, offset {repair.offset}"
    )


def _asked(affected: Affected) -> Scope:
    return affected.organization_id, affected.customer_id, affected.event_name


class Reconciler:
    """Holds live totals against ClickHouse, a partition at a time. Not thread-safe; close it after use."""

    def __init__(self, settings: Settings, view: CatalogView, store: Callable[[], Store]) -> None:
        self._settings = settings
        self._view = view
        self._store = store
        self._reader = LiveTotalsReader(settings)
        self._admin = admin_client(settings)
        self._topic = topic_name(settings, USAGE_REPAIRS)
        self._producer = AckedProducer(
            settings.kafka_properties,
            delivery_seconds=_DELIVERY_SECONDS,
            records_at_once=_REPAIRS_AT_ONCE,
            more={"compression.type": "zstd"},
        )

    def close(self) -> None:
        self._reader.close()

    def run(
        self,
        partitions: Iterable[int],
        *,
        scope: Sequence[Affected] | None = None,
        reason: RepairReason = RepairReason.RECONCILE,
        dry_run: bool = False,
        wait_seconds: float = _WAIT_SECONDS,
        stopping: Callable[[], bool] = lambda: False,
    ) -> ReconcileReport:
        """Compare, and unless dry_run write the repairs. scope: only those series; None: all.

        wait_seconds: until ClickHouse has what the totals contain; a partition that it has not by then is skipped, and
        the report says so. Raises KafkaException, WarehouseUnavailable, StoreReplaced,
        UnreadableTotal, NotAcknowledged.
        """
        started = time.monotonic()
        reports: list[PartitionReport] = []
        for partition in partitions:
            if stopping():
                break
            try:
                with one_store(shards_of(self._store()).of(partition)):
                    report = self._partition(partition, scope, reason, wait_seconds, stopping)
            except WarehouseUnavailable as error:
                if shards_of(self._store()).count == 1:
                    raise
                report = PartitionReport(partition, skipped=str(error))  # others are on other servers
            if not dry_run:
                write_repairs(self._producer, self._topic, (*report.repairs, *report.whole))
            reports.append(report)
        seconds = time.monotonic() - started
        metrics.RECONCILE_SECONDS.observe(seconds)
        return ReconcileReport(tuple(reports), seconds)

    def _partition(
        self,
        partition: int,
        scope: Sequence[Affected] | None,
        reason: RepairReason,
        wait_seconds: float,
        stopping: Callable[[], bool],
    ) -> PartitionReport:
        snapshot = self._reader.snapshot(partition)
        progress = snapshot.progress
        if progress is None:
            return PartitionReport(partition)
        place = self._covered(partition, progress.topic_id, progress.next_offset, wait_seconds, stopping)
        if isinstance(place, str):
            return PartitionReport(partition, progress.next_offset, skipped=place)
        store = self._store()
        try:
            used = used_months(store, partition, place, None if scope is None else [_asked(each) for each in scope])
        except ClickHouseError as error:
            raise unavailable(error) from error
        problems: dict[str, str] = {}
        loop = OneByOne("reconcile", concerns_all, problems.__setitem__)
        wanted, left_out = within_room(
            wanted_totals(self._view, snapshot, used, scope, loop),
            snapshot,
            self._settings.live_series_per_partition_max,
        )
        counted = self._exact(store, wanted, place, loop)
        now = now_us()
        found: list[UsageRepair] = []
        compared = 0
        for each in wanted:
            if any(window not in counted for window in each.windows):
                continue  # its series is among the problems
            with loop.one(series_text(each.series)):
                repair = difference(
                    each, added(counted[w] for w in each.windows), progress.topic_id, partition,
                    progress.next_offset, reason, now,
                )  # fmt: skip
                compared += 1
                found += [] if repair is None else [repair]
        metrics.RECONCILED_TOTALS.inc(compared)
        whole = () if problems else tuple(whole_again(snapshot, left_out, found, scope, now))
        return PartitionReport(partition, progress.next_offset, compared, tuple(found), whole=whole, problems=problems)

    def _covered(
        self, partition: int, topic_id: str, offset: int, wait_seconds: float, stopping: Callable[[], bool]
    ) -> Watermark | str:
        """The partition's place once ClickHouse has everything below it; else why it has not."""
        deadline = time.monotonic() + wait_seconds
        while True:
            epochs, stored = settled(self._store(), self._settings, self._admin, only=[partition])
            if epochs.log_id(partition) != topic_id.partition(UNNAMED)[0]:
                return "the aggregator has not begun with the log as it is now"
            if stored.offsets.get(partition, 0) >= offset:
                return Watermark(stored.place(partition)[0], {partition: offset})
            if time.monotonic() > deadline or stopping():
                return f"ClickHouse has it up to {stored.offsets.get(partition, 0)}, the totals up to {offset}"
            time.sleep(_POLL_SECONDS)

    def _exact(
        self, store: Store, wanted: Sequence[_Wanted], place: Watermark, loop: OneByOne
    ) -> Mapping[TotalsRequest, ExactTotal]:
        """loop: hears of windows that can't be counted; they have no total."""
        windows = sorted(
            {window for each in wanted for window in each.windows},
            key=lambda w: (w.organization_id, w.customer_id, w.event_name, w.start_us, w.end_us),
        )
        found: dict[TotalsRequest, ExactTotal] = {}
        for first in range(0, len(windows), WINDOWS_AT_ONCE):
            for part in loop.by_halves(
                windows[first : first + WINDOWS_AT_ONCE],
                lambda some: exact_totals(store, some, place),
                lambda window: series_text((window.organization_id, window.customer_id, window.event_name)),
            ):
                found |= part
        return found


def write_repairs(producer: AckedProducer, topic: str, found: Sequence[UsageRepair]) -> None:
    """Returns when all are acknowledged.

    Raises NotAcknowledged: a repair that was written is applied once, and the next round finds the others again.
    """
    producer.write(topic, [Record(repair.partition, repair.key, repairs.encode(repair)) for repair in found])
    for repair in found:
        metrics.REPAIRS_WRITTEN.labels(repair.reason).inc()
        log.info(
            "repair_written", repair_id=repair.repair_id, organization=repair.organization_id,
            customer=repair.customer_id, event_name=repair.event_name, cycle_start=repair.cycle_start,
            count=repair.count, sum=repair.sum, partition=repair.partition, offset=repair.offset,
        )  # fmt: skip
