"""stored tombstones, catalog changes, the clock → rounds of reconciling, in a thread of the sink.

What a tombstone or a change of the catalog touches is reconciled within seconds, as a new customer's usage of before;
everything once in a while, for what no one noticed: duplicates older than the aggregator's memory, and what changed
while no sink was running.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog
from confluent_kafka import KafkaException

from catalog.cycles import Affected, affected_by
from catalog.record import CatalogRecord
from catalog.store import CatalogStore
from runtime.kafka.acked_producer import NotAcknowledged
from schemas.log_break import LogBreak
from schemas.partition import partition_of
from schemas.repair import RepairReason
from schemas.settings import Settings
from schemas.totals import UnreadableTotal
from stream_processors.reconcile import Reconciler, ReconcileReport
from warehouse.client import ASIDE, WarehouseUnavailable
from warehouse.epochs import UnknownTopic
from warehouse.shards import Shards, open_shards

log = structlog.get_logger(__name__)

FIRST_ROUND_SECONDS = 60.0
# Whoever applied events by the catalog of before has published them by then.
SETTLE_SECONDS = 5.0
SCOPES_MAX = 200
_ROUND_SECONDS = 1.0
_WAIT_SECONDS = 10.0
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Noted:
    """Something that changed. at: monotonic seconds. after: (partition, next offset) that totals must have reached."""

    scope: Affected
    reason: RepairReason
    at: float
    after: tuple[int, int] | None = None

    def done_by(self, report: ReconcileReport, began: float) -> bool:
        """Whether nothing is left to do for it: its totals were exact, and no one can still be about to change that."""
        if report.skipped or report.repairs:
            return False
        if self.after is not None:
            partition, offset = self.after
            return all(each.offset >= offset for each in report.partitions if each.partition == partition)
        return began - self.at >= SETTLE_SECONDS


def joined(noted: Iterable[Noted]) -> list[Affected]:
    """The scopes, each once; whole organizations where they would be too many for a query. Pure."""
    scopes = list(dict.fromkeys(each.scope for each in noted))
    if len(scopes) <= SCOPES_MAX:
        return scopes
    return [Affected(organization_id) for organization_id in dict.fromkeys(s.organization_id for s in scopes)]


def settled_notes(noted: Iterable[Noted], now: float) -> tuple[list[Noted], list[Noted]]:
    """Those to reconcile now, and those for later; one pass, since an import notes each of its customers. Pure."""
    ready: list[Noted] = []
    early: list[Noted] = []
    for each in noted:
        (ready if each.after is not None or now - each.at >= SETTLE_SECONDS else early).append(each)
    return ready, early


class ReconcileService:
    """start() and stop() belong to the sink. partitions: those that it has now; other sinks have the others."""

    def __init__(self, settings: Settings, catalog: CatalogStore, partitions: Callable[[], Sequence[int]]) -> None:
        self._settings = settings
        self._catalog = catalog
        self._partitions = partitions
        self._noted: list[Noted] = []
        self._broken: dict[int, float] = {}  # partition whose log lost its end → since when, monotonic seconds
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._shards: Shards | None = None
        self._thread = threading.Thread(target=self._run, name="reconcile", daemon=True)
        catalog.subscribe(self._on_catalog_record)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def voided(self, partition: int, offset: int, series: Iterable[tuple[str, str, str]]) -> None:
        """Tombstones of a message that was stored. series: organization_id, customer_id, event_name of each."""
        now = time.monotonic()
        for organization_id, customer_id, event_name in dict.fromkeys(series):
            scope = Affected(organization_id, customer_id, event_name)
            self._note(Noted(scope, RepairReason.VOID, now, (partition, offset + 1)))

    def _on_catalog_record(self, record: CatalogRecord) -> None:
        """In the catalog's thread."""
        if isinstance(record.state, LogBreak):
            with self._lock:
                self._broken[record.state.partition] = time.monotonic()
        elif (scope := affected_by(record)) is not None:
            self._note(Noted(scope, RepairReason.LATE_CATALOG, time.monotonic()))

    def _note(self, noted: Noted) -> None:
        with self._lock:
            self._noted.append(noted)

    def _run(self) -> None:
        reconciler = Reconciler(self._settings, self._catalog.view, self._opened)
        everything_at = time.monotonic() + min(FIRST_ROUND_SECONDS, self._settings.reconcile_seconds)
        try:
            while not self._stopping.wait(_ROUND_SECONDS):
                try:
                    self._work_off(reconciler)
                    self._mend(reconciler)
                    if time.monotonic() >= everything_at:
                        everything_at = time.monotonic() + self._settings.reconcile_seconds
                        self._tell(self._reconcile(reconciler, self._partitions(), None, RepairReason.RECONCILE))
                except (KafkaException, WarehouseUnavailable, UnknownTopic, UnreadableTotal, NotAcknowledged) as error:
                    # Nothing is forgotten: what was noted stays noted, and the next round finds what this one left.
                    self._drop_clients()
                    log.warning("reconcile_failed", error=str(error))
                    reconciler = self._renewed(reconciler)
                except Exception:  # the thread is the last that could go on: without it live totals drift unseen
                    self._drop_clients()
                    log.exception("reconcile_failed")
                    reconciler = self._renewed(reconciler)
        finally:
            reconciler.close()
            self._drop_clients()

    def _renewed(self, reconciler: Reconciler) -> Reconciler:
        """Another, after a while: a client of a broker that went away may never get an answer again."""
        reconciler.close()
        self._stopping.wait(_WAIT_SECONDS)
        return Reconciler(self._settings, self._catalog.view, self._opened)

    def _work_off(self, reconciler: Reconciler) -> None:
        now = time.monotonic()
        with self._lock:
            noted, self._noted = settled_notes(self._noted, now)
        left: list[Noted] = []
        for reason in dict.fromkeys(each.reason for each in noted):
            of_reason = [each for each in noted if each.reason is reason]
            began = time.monotonic()
            try:
                scope = joined(of_reason)
                report = self._reconcile(reconciler, self._partitions_of(scope), scope, reason)
            except BaseException:
                with self._lock:
                    self._noted += noted
                raise
            self._tell(report)
            left += [each for each in of_reason if not each.done_by(report, began)]
        with self._lock:
            self._noted = left + self._noted

    def _mend(self, reconciler: Reconciler) -> None:
        """What live totals counted of a lost end and ClickHouse does not have, or the other way round."""
        with self._lock:
            began = time.monotonic()
            broken = [p for p, at in self._broken.items() if began - at >= SETTLE_SECONDS]
        if not (mine := [partition for partition in self._partitions() if partition in broken]):
            return
        report = self._reconcile(reconciler, mine, None, RepairReason.RECONCILE)
        self._tell(report)
        with self._lock:
            for each in report.partitions:
                if each.skipped is None and not each.repairs:
                    self._broken.pop(each.partition, None)

    def _reconcile(
        self, reconciler: Reconciler, partitions: Sequence[int], scope: Sequence[Affected] | None, reason: RepairReason
    ) -> ReconcileReport:
        return reconciler.run(
            partitions, scope=scope, reason=reason, wait_seconds=_WAIT_SECONDS, stopping=self._stopping.is_set
        )

    def _partitions_of(self, scope: Sequence[Affected]) -> list[int]:
        mine = self._partitions()
        if any(each.customer_id is None for each in scope):
            return list(mine)
        count = self._settings.event_partitions
        wanted = {partition_of(each.organization_id, each.customer_id or "", count) for each in scope}
        return [partition for partition in mine if partition in wanted]

    def _tell(self, report: ReconcileReport) -> None:
        if report.repairs or report.skipped or report.problems:
            log.info(
                "reconciled", totals=report.totals, repairs=len(report.repairs), skipped=report.skipped,
                problems=report.problems,
                seconds=round(report.seconds, 3),
            )  # fmt: skip

    def _opened(self) -> Shards:
        if self._shards is None:
            self._shards = open_shards(self._settings, more_settings=ASIDE)
        return self._shards

    def _drop_clients(self) -> None:
        if self._shards is not None:
            self._shards.close()
            self._shards = None
