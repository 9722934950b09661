"""invoice snapshots → those whose quantities an independent count confirms; the others are held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import structlog

from billing_job.close_run import CloseRun
from billing_job.collect.charge import hold
from billing_job.invoice.checks import Difference, explain_differences, quantity_differences
from billing_job.invoice.late import Counted, counted_for
from billing_job.invoice.usage_reader import NotCovered
from ledger.snapshot import InvoiceFixed

log = structlog.get_logger(__name__)


def keep_confirmed(run: CloseRun, invoices: Sequence[InvoiceFixed]) -> list[InvoiceFixed]:
    """Those whose quantities an independent count confirms; the others are held as `mismatch`."""
    to_count = [each for each in invoices if run.billing.invoice(each.invoice_id).gate != "done"]
    differences: dict[str, list[Difference]] = {}
    loop = run.one_by_one("gate")
    try:
        # A customer who is too large to be counted beside others is counted alone.
        for part in loop.by_halves(to_count, lambda some: _differences(run, some), lambda fixed: fixed.invoice_id):
            differences |= part
    except NotCovered as lag:  # a restored backup has fewer events, which says nothing about the invoices
        for each in to_count:
            run.note(each, str(lag))
        return [each for each in invoices if run.billing.invoice(each.invoice_id).gate == "done"]
    for fixed in to_count:
        if found := differences.get(fixed.invoice_id):
            reason = explain_differences(found)
            log.error("invoice_held", invoice=fixed.invoice_id, reason=reason)
            with loop.one(fixed.invoice_id):
                hold(run.billing, fixed, "quantity", reason)
    run.progress("gate", len(invoices), len(invoices))
    counted = {fixed.invoice_id for fixed in to_count}
    return [fixed for fixed in invoices if fixed.invoice_id not in counted or differences.get(fixed.invoice_id) == []]


def _differences(run: CloseRun, invoices: Sequence[InvoiceFixed]) -> dict[str, list[Difference]]:
    """Every invoice's id → where its quantities are not those of the independent count, at each watermark's once.

    Raises NotCovered where ClickHouse has less than what was counted.
    """
    found: dict[str, list[Difference]] = {fixed.invoice_id: [] for fixed in invoices}
    checks: dict[str, list[tuple[InvoiceFixed, Counted]]] = defaultdict(list)
    for fixed in invoices:
        for check in counted_for(run.ledger, fixed):
            checks[repr(check.watermark)].append((fixed, check))
    if not checks:
        return found
    usage = run.context.usage
    with usage.one_store():
        usage.require_covered(group[0][1].watermark for group in checks.values())
        for group in checks.values():
            needs = {check.need.invoice_id: check.need for _, check in group}
            counted = usage.independent_totals(list(needs.values()), group[0][1].watermark)
            for fixed, check in group:
                found[fixed.invoice_id] += quantity_differences(check, counted[check.need.invoice_id])
    return found
