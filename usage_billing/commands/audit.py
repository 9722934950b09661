"""audit: every accepted event in exactly one class, live totals equal to what is stored; or where they are not."""

from __future__ import annotations

import json
from typing import Annotated, Any

from confluent_kafka import KafkaException
from cyclopts import Parameter
from rich.table import Table

from billing_job.invoice.cycle_audit import CyclesAudit, audit_cycles
from billing_job.invoice.usage_reader import UsageReader
from catalog.cycles import Affected
from catalog.store import CatalogStore, CatalogUnavailable
from ledger.store import LedgerLog, LedgerUnavailable
from runtime.kafka.admin import check_partitions
from schemas.organization import Organization
from schemas.period import format_rfc3339
from schemas.repair import UsageRepair
from schemas.totals import UnreadableTotal
from stream_processors.reconcile import Reconciler, ReconcileReport, described
from usage_billing.console import DONE, FAILED, fail, out, settings_for, wrong_usage
from warehouse.audit import Audit, Conservation, Tally, document
from warehouse.audit import audit as audited
from warehouse.client import WarehouseUnavailable
from warehouse.epochs import UnknownTopic
from warehouse.projected import projection_faults
from warehouse.settled import settled
from warehouse.shards import open_shards

# A query of a partition of many millions of rows takes its time.
_READ_SECONDS = 600
_SHOWN_MAX = 20
_AWAY = (CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable)


def audit(
    *,
    organization: Annotated[str | None, Parameter(help="Only this organization's.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print it as JSON.", negative="")] = False,
) -> int:
    """Put every accepted event into one class, compare live totals with them, and what was billed for each cycle with
    what it costs; 1 when it does not balance.

    What is found is named by its coordinates: epoch/partition/offset/index.
    """
    settings = settings_for("audit")
    partitions = check_partitions(settings).partitions
    try:
        with CatalogStore(settings) as catalog, open_shards(settings, read_timeout_seconds=_READ_SECONDS) as shards:
            if organization is not None and catalog.view.get(Organization, organization, organization) is None:
                wrong_usage(f"there is no organization {organization!r}")
            reconciler = Reconciler(settings, catalog.view, lambda: shards)
            try:
                scope = None if organization is None else [Affected(organization)]
                live = reconciler.run(range(partitions), scope=scope, dry_run=True)
            finally:
                reconciler.close()
            faults = projection_faults(shards, settings, organization)
            found = audited(shards, settled(shards, settings)[1], partitions, organization).with_faults(faults)
        with LedgerLog(settings) as ledger, UsageReader(settings) as counts:
            cycles = audit_cycles(ledger.state, counts, found.watermark, organization)
    except (*_AWAY, UnknownTopic, UnreadableTotal, KafkaException) as error:
        fail(str(error))
    if as_json:
        whole = {**document(found), "live_totals": _live_document(live), "cycles": cycles.document()}
        print(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        _show(found, live)
        _show_cycles(cycles)
    return DONE if found.ok and cycles.ok and not live.repairs and not live.skipped and not live.problems else FAILED


def _live_document(live: ReconcileReport) -> dict[str, Any]:
    return {
        "compared": live.totals,
        "differences": [_difference(repair) for repair in live.repairs[:_SHOWN_MAX]],
        "differing": len(live.repairs),
        "not_compared": live.skipped,
        "problems": live.problems,
    }


def _difference(repair: UsageRepair) -> dict[str, Any]:
    return {
        "organization_id": repair.organization_id,
        "customer_id": repair.customer_id,
        "event_name": repair.event_name,
        "cycle": {"start": format_rfc3339(repair.cycle_start), "end": format_rfc3339(repair.cycle_end)},
        "count": repair.count,
        "sum": repair.sum,
        "max": repair.max,
        "max_was": repair.max_was,
        "at": {"partition": repair.partition, "offset": repair.offset},
    }


def _show(found: Audit, live: ReconcileReport) -> None:
    for each in found.organizations:
        _show_organization(each)
    if found.unreadable:
        out.print(f"  {found.unreadable} dead letters could not be read; whose they are is not known")
    for lost in found.lost_ends:
        out.print(str(lost), style="yellow", markup=False, soft_wrap=True)
    for fault in found.faults:
        out.print(str(fault), style="red", markup=False, soft_wrap=True)
    _show_live(live)
    offsets = ", ".join(f"{p}: {o}" for p, o in sorted(found.watermark.offsets.items()))
    out.print(f"  below epoch {found.watermark.epoch}, offsets {{{offsets}}}, in {found.seconds:.1f} s", soft_wrap=True)
    verdict = "balances" if found.ok else "does not balance"
    out.print(f"  every accepted event in one class: {verdict}", style="green" if found.ok else "red")


def _show_cycles(cycles: CyclesAudit) -> None:
    for fault in cycles.faults[:_SHOWN_MAX]:
        out.print(str(fault), style="red", markup=False, soft_wrap=True)
    if len(cycles.faults) > _SHOWN_MAX:
        out.print(f"and {len(cycles.faults) - _SHOWN_MAX} more cycles", style="red")
    for subscription_id, reason in list(cycles.problems.items())[:_SHOWN_MAX]:
        out.print(f"{subscription_id} was not audited: {reason}", style="red", markup=False, soft_wrap=True)
    if cycles.unsettled:
        out.print(f"  {cycles.unsettled} cycles are settled by the next invoice, after a void or a credit note")
    if cycles.not_compared:
        out.print(f"  {cycles.not_compared} counts were made beyond what ClickHouse has now", style="red")
    verdict = "what they cost" if cycles.ok else "not what they cost"
    out.print(f"  {cycles.cycles} cycles billed: {verdict}", style="green" if cycles.ok else "red")


def _show_organization(each: Conservation) -> None:
    table = Table("class", "events", "value", title=each.organization_id, title_justify="left")

    def row(name: str, tally: Tally) -> None:
        table.add_row(name, f"{tally.events:,}", tally.text)

    for kind, tally in each.classes.items():
        row(kind.label, tally)
    table.add_section()
    row("sum of the classes", each.accounted)
    row("accepted", each.accepted)
    out.print(table)
    if each.conflicts:
        out.print(f"  {each.conflicts} duplicates say something else than their first, such as", soft_wrap=True)
        for first, last in each.conflicts_at:
            out.print(f"    {'/'.join(map(str, last))}, first at {'/'.join(map(str, first))}")


def _show_live(live: ReconcileReport) -> None:
    for partition, reason in live.skipped.items():
        out.print(f"live totals of partition {partition} were not compared: {reason}", style="red", soft_wrap=True)
    for series, reason in list(live.problems.items())[:_SHOWN_MAX]:
        out.print(f"{series} was not compared: {reason}", style="red", markup=False, soft_wrap=True)
    for repair in live.repairs[:_SHOWN_MAX]:
        out.print(described(repair), style="red", markup=False, soft_wrap=True)
    if len(live.repairs) > _SHOWN_MAX:
        out.print(f"and {len(live.repairs) - _SHOWN_MAX} more live totals", style="red")
    out.print(f"  {live.totals} live totals compared, {len(live.repairs)} differ")
