"""due cycles → invoices: watermark, totals, price, fix, gate, charge. Running it again changes nothing.

Two runs at once, or one that is killed anywhere and run again, end in the same invoices: what an invoice says is
decided by its first record in the ledger, and every run works only from what it has read back from there.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from billing_job import metrics
from billing_job.close_run import CloseRun, Progress
from billing_job.collect.collector import collect_invoices
from billing_job.collect.steps import system_clock
from billing_job.context import BillingContext, open_billing
from billing_job.invoice.builder import trues_up
from billing_job.invoice.due import DueCycle, due_cycles, join_due_cycles, require_past
from billing_job.invoice.to_do import in_force, split_begun, unfixed
from billing_job.invoice.usage_reader import NotCovered
from billing_job.snapshots import compute, record_waiting, store, supersede
from ledger.invoice import Invoice, just_fixed
from ledger.snapshot import InvoiceFixed
from ledger.view import InvoiceLedger
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.watermark import Watermark

log = structlog.get_logger(__name__)

_FIX_ATTEMPTS_MAX = 5


class UnknownOrganization(ValueError):
    """No organization has that id."""


@dataclass(frozen=True, slots=True)
class CloseReport:
    """The result of a close.

    invoices: every one that is due, as it is now (of a dry run: as it would be fixed), oldest cycle first; those not
    fixed are left out. fixed: how many this run fixed. in_grace: ended by as_of, closed later. waiting: why those in
    waiting_for could not be fixed. awaiting_approval: ids of those that someone has to let be charged. problems:
    invoice id → why it could not be finished now. seconds: part → time it took.
    """

    as_of: int
    dry_run: bool
    invoices: tuple[Invoice, ...] = ()
    fixed: int = 0
    in_grace: tuple[DueCycle, ...] = ()
    waiting: str | None = None
    waiting_for: tuple[DueCycle, ...] = ()
    awaiting_approval: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict[str, str])
    watermark: Watermark | None = None
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def by_state(self) -> dict[str, int]:
        """state → invoices, `waiting` ones included."""
        counted = Counter(invoice.state for invoice in self.invoices)
        counted["waiting"] += len(self.waiting_for)
        return {state: count for state, count in sorted(counted.items()) if count}

    @property
    def ok(self) -> bool:
        """Whether everything due went as far as it could. A payment that failed is a result, and Stripe's to retry."""
        return not (self.waiting or self.problems or any(each.state == "mismatch" for each in self.invoices))


def close(
    settings: Settings,
    as_of_us: int,
    *,
    organization_id: str | None = None,
    dry_run: bool = False,
    now_us: int | None = None,
    progress: Progress | None = None,
) -> CloseReport:
    """Close every cycle that ended at or before as_of and whose grace is over, and bring its invoice to payment.

    as_of_us, now_us: µs since 1970; now is the clock's. dry_run: compute and report, write nothing anywhere.
    Raises AsOfInFuture and UnknownOrganization for wrong use; CatalogUnavailable, LedgerUnavailable and
    WarehouseUnavailable when a part is away; what happens at Stripe is in the report.
    """
    with open_billing(settings) as context:
        return close_cycles(
            context, as_of_us, organization_id=organization_id, dry_run=dry_run, now_us=now_us, progress=progress
        )


def _all(due: DueCycle) -> bool:
    del due
    return True


def close_cycles(
    context: BillingContext,
    as_of_us: int,
    *,
    organization_id: str | None = None,
    dry_run: bool = False,
    now_us: int | None = None,
    progress: Progress | None = None,
    scheduled: bool = False,
    stopping: threading.Event | None = None,
    only: Callable[[DueCycle], bool] = _all,
) -> CloseReport:
    """`close` with what is open already. scheduled: wait for imports, and longer after each failure. only:
    whether a due cycle, with its current revision, is this run's to do.
    """
    run = CloseRun(context, context.billing(scheduled=scheduled), progress or _silent, stopping or threading.Event())
    now = system_clock() if now_us is None else now_us
    view = context.catalog.view
    if organization_id is not None and view.organization(organization_id) is None:
        raise UnknownOrganization(f"there is no organization {organization_id!r}")
    require_past(as_of_us, now)
    parts = run.one_by_one("due").by_halves(
        view.all(Subscription, organization_id),
        lambda subscriptions: due_cycles(
            subscriptions,
            as_of_us=as_of_us,
            now_us=now,
            grace_seconds=run.grace_seconds,
            trues_up=lambda organization: trues_up(view, organization),
            wait_for_imports=scheduled,
        ),
        key=lambda subscription: subscription.id,
    )
    found = join_due_cycles(parts)
    begun, in_grace = split_begun(context.log.state, found.in_grace)
    due = [each for each in (*(in_force(context.log.state, cycle) for cycle in found.due), *begun) if only(each)]
    report = replace(_closed(run, due, as_of_us=as_of_us, dry_run=dry_run), in_grace=in_grace)
    _tell(report)
    return report


def _tell(report: CloseReport) -> None:
    metrics.CLOSES.labels("ok" if report.ok else "incomplete").inc()
    metrics.WAITING.set(len(report.waiting_for))
    metrics.PROBLEMS.set(len(report.problems))
    metrics.AWAITING_APPROVAL.set(len(report.awaiting_approval))
    for part, seconds in report.seconds.items():
        metrics.CLOSE_SECONDS.labels(part).observe(seconds)


def _silent(part: str, done: int, total: int) -> None:
    del part, done, total


def _closed(run: CloseRun, due: Sequence[DueCycle], *, as_of_us: int, dry_run: bool) -> CloseReport:
    if not dry_run:
        due = supersede(run, due)
    open_cycles = unfixed(run.ledger, due)
    computed: list[InvoiceFixed] = []
    waiting: str | None = None
    watermark: Watermark | None = None
    fixed = 0
    try:
        for _ in range(_FIX_ATTEMPTS_MAX):
            if not open_cycles:
                break
            watermark, computed = compute(run, open_cycles, dry_run=dry_run)
            if dry_run:
                break
            with run.timed("fix"):
                fixed += store(run, computed)
            # Another run fixed an earlier invoice of the subscription meanwhile: compute those that follow it again.
            lost = {each.invoice_id for each in computed}
            open_cycles = [each for each in unfixed(run.ledger, open_cycles) if each.invoice_id in lost]
        else:
            run.problems |= {each.invoice_id: "other runs fixed the invoices before it" for each in open_cycles}
    except NotCovered as lag:
        waiting = str(lag)
        log.warning("close_waits", reason=waiting, detail=lag.detail, invoices=len(open_cycles))
        if not dry_run:
            record_waiting(run, open_cycles, lag.code, str(lag))
    if dry_run:
        invoices = _as_if_fixed(due, computed, run.ledger)
    else:
        collect_invoices(run, [each.invoice_id for each in due])
        invoices = _that_are_fixed(run.ledger.get(each.invoice_id) for each in due)
    return CloseReport(
        as_of=as_of_us,
        dry_run=dry_run,
        invoices=invoices,
        fixed=fixed,
        waiting=waiting,
        waiting_for=tuple(open_cycles) if waiting else (),
        awaiting_approval=tuple(run.awaiting_approval),
        problems=run.problems,
        watermark=watermark,
        seconds=run.seconds,
    )


def _as_if_fixed(
    due: Sequence[DueCycle], computed: Sequence[InvoiceFixed], ledger: InvoiceLedger
) -> tuple[Invoice, ...]:
    """The invoices of a dry run: fixed ones from the ledger, the others as they would be fixed now."""
    as_fixed = {fixed.invoice_id: just_fixed(fixed) for fixed in computed}
    return _that_are_fixed(as_fixed.get(each.invoice_id) or ledger.get(each.invoice_id) for each in due)


def _that_are_fixed(found: Iterable[Invoice | None]) -> tuple[Invoice, ...]:
    return tuple(invoice for invoice in found if invoice is not None and invoice.fixed is not None)
