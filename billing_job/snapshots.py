"""due cycles → invoice snapshots: watermark, totals, prices, then the ledger. The first record of an invoice wins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from billing_job.close_run import CloseRun
from billing_job.collect.steps import InvoiceStopped
from billing_job.collect.void_credit import NotPossible, reissue, void
from billing_job.invoice.approved import SUPERSEDED_BY, find_superseded, is_untouched
from billing_job.invoice.due import DueCycle
from billing_job.invoice.to_do import in_force, is_ours_to_do
from billing_job.invoice.usage_reader import NotCovered
from billing_job.loops import invoice_by_invoice
from billing_job.stripe.errors import StripeFailure
from ledger.records import InvoiceStep, WaitCode
from ledger.snapshot import InvoiceFixed
from schemas.watermark import Watermark


def compute(run: CloseRun, due: Sequence[DueCycle], *, dry_run: bool) -> tuple[Watermark, list[InvoiceFixed]]:
    """Read the watermark, wait until it is covered, count, price. Raises NotCovered.

    A subscription that can't be computed is left out, and its cycles wait, with the reason.
    """
    usage = run.context.usage
    run.progress("wait", 0, len(due))
    with usage.one_store():
        with run.timed("wait"):
            watermark = usage.watermark()
            usage.wait_until_covered(watermark, run.stopping)
        with run.timed("count"):
            computed = _computed(run, due, watermark, dry_run=dry_run)
    return watermark, computed


def _computed(run: CloseRun, due: Sequence[DueCycle], watermark: Watermark, *, dry_run: bool) -> list[InvoiceFixed]:
    of_subscription: dict[str, list[DueCycle]] = defaultdict(list)
    for each in due:
        of_subscription[each.subscription_id].append(each)

    def set_aside(subscription_id: str, reason: str) -> None:
        cycles = of_subscription[subscription_id]
        with run.lock:
            run.problems |= {each.invoice_id: reason for each in cycles}
        if not dry_run:
            record_waiting(run, cycles, "not_computed", f"it can't be computed: {reason}")

    parts = invoice_by_invoice("compute", set_aside).by_halves(
        list(of_subscription),
        lambda ids: run.context.build_snapshots(_of(due, ids), watermark, run.billing.clock()),
        key=str,
    )
    return [fixed for part in parts for fixed in part]


def store(run: CloseRun, computed: Sequence[InvoiceFixed]) -> int:
    """Write the records. Returns how many of them won; a record that the log refuses does not stop the others."""
    parts = run.one_by_one("fix").by_halves(computed, run.context.log.append_all, lambda fixed: fixed.invoice_id)
    return sum(sum(won) for won in parts)


def supersede(run: CloseRun, due: Sequence[DueCycle]) -> list[DueCycle]:
    """The due cycles, with a revision for each approved invoice of which less is owed by now."""
    known = [run.ledger.get(each.invoice_id) for each in due]
    approved = [each for each in known if each is not None and is_untouched(each) and is_ours_to_do(each)]
    if not approved:
        return list(due)
    usage = run.context.usage
    try:
        with usage.one_store():
            watermark = usage.watermark()
            usage.wait_until_covered(watermark, run.stopping)
            found = find_superseded(run.ledger, usage, approved, watermark)
    except NotCovered as lag:
        run.unchecked |= {each.id: f"approved, and not counted again yet: {lag}" for each in approved}
        return list(due)
    for invoice in found:
        assert invoice.fixed is not None
        try:
            reason = "usage that it bills was voided before it was charged"
            reissue(run.billing, void(run.billing, invoice, reason, by=SUPERSEDED_BY))
        except (NotPossible, InvoiceStopped) as stopped:
            run.unchecked[invoice.id] = str(stopped)
        except StripeFailure as failure:
            run.unchecked[invoice.id] = failure.reason
    return [in_force(run.ledger, each) for each in due]


def record_waiting(run: CloseRun, due: Sequence[DueCycle], code: WaitCode, reason: str) -> None:
    now = run.billing.clock()
    run.context.log.append_all(
        [
            InvoiceStep(
                invoice_id=each.invoice_id,
                organization_id=each.organization_id,
                customer_id=each.customer_id,
                step="wait",
                phase="failed",
                at=now,
                code=code,
                reason=reason,
                subscription_id=each.subscription_id,
                cycle_start=each.cycle.start_us,
                cycle_end=each.cycle.end_us,
                writer=run.context.log.writer,
            )
            for each in due
            if (known := run.ledger.get(each.invoice_id)) is None or known.reason != reason
        ]
    )


def _of(due: Sequence[DueCycle], subscription_ids: Sequence[str]) -> list[DueCycle]:
    """In the order of `due`, oldest first."""
    wanted = set(subscription_ids)
    return [each for each in due if each.subscription_id in wanted]
