"""reconcile: live totals held against ClickHouse, and repaired."""

from __future__ import annotations

import time
from typing import Annotated

from confluent_kafka import KafkaException
from cyclopts import Parameter

from catalog.cycles import Affected
from catalog.store import CatalogStore, CatalogUnavailable
from runtime.kafka.acked_producer import NotAcknowledged
from runtime.kafka.admin import check_partitions
from schemas.organization import Organization
from schemas.totals import UnreadableTotal
from stream_processors.reconcile import Reconciler, ReconcileReport, described
from usage_billing.console import DONE, FAILED, fail, out, settings_for, wrong_usage
from warehouse.client import WarehouseUnavailable
from warehouse.epochs import UnknownTopic
from warehouse.shards import open_shards

_APPLIED_SECONDS = 30.0
_SHOWN_MAX = 50


def reconcile(
    *,
    organization: Annotated[str | None, Parameter(help="Only this organization's.")] = None,
    dry_run: Annotated[bool, Parameter(help="Show the differences, repair nothing.", negative="")] = False,
) -> int:
    """Compare live totals with ClickHouse and repair differences; 1 when not all could be compared or repaired."""
    settings = settings_for("reconcile")
    partitions = range(check_partitions(settings).partitions)
    scope = None if organization is None else [Affected(organization)]
    try:
        with CatalogStore(settings) as catalog, open_shards(settings) as shards:
            if organization is not None and catalog.view.get(Organization, organization, organization) is None:
                wrong_usage(f"there is no organization {organization!r}")
            reconciler = Reconciler(settings, catalog.view, lambda: shards)
            try:
                report = reconciler.run(partitions, scope=scope, dry_run=dry_run)
                _show(report)
                incomplete = bool(report.skipped or report.problems)
                if dry_run or not report.repairs:
                    return FAILED if incomplete or report.repairs else DONE
                return FAILED if not _applied(reconciler, report, scope) or incomplete else DONE
            finally:
                reconciler.close()
    except (
        CatalogUnavailable, WarehouseUnavailable, UnknownTopic, UnreadableTotal, NotAcknowledged, KafkaException,
    ) as error:  # fmt: skip
        fail(str(error))


def _applied(reconciler: Reconciler, report: ReconcileReport, scope: list[Affected] | None) -> bool:
    """Whether the aggregator has made all of it exact by now, or does so within a moment."""
    repaired = sorted({repair.partition for repair in report.repairs})
    deadline = time.monotonic() + _APPLIED_SECONDS
    while True:
        now = reconciler.run(repaired, scope=scope, dry_run=True)
        if not now.repairs and not now.skipped:
            out.print(f"  {len(report.repairs)} repairs are in the live totals")
            return True
        if time.monotonic() > deadline:
            out.print("  the repairs are written, and not in the live totals yet: is the aggregator running?")
            return False
        time.sleep(0.5)


def _show(report: ReconcileReport) -> None:
    out.print(
        f"  {report.totals} live totals held against ClickHouse in {report.seconds:.1f} s: "
        f"{len(report.repairs)} differ",
        soft_wrap=True,
    )
    for partition, reason in report.skipped.items():
        out.print(f"  partition {partition} was not compared: {reason}", style="yellow", soft_wrap=True)
    for series, reason in list(report.problems.items())[:_SHOWN_MAX]:
        out.print(f"  {series} was not compared: {reason}", style="yellow", markup=False, soft_wrap=True)
    for repair in report.repairs[:_SHOWN_MAX]:
        out.print(f"  {described(repair)}", markup=False, soft_wrap=True)
    if len(report.repairs) > _SHOWN_MAX:
        out.print(f"  and {len(report.repairs) - _SHOWN_MAX} more")
