"""due cycles → invoices: watermark, totals, price, fix, gate, charge. Running it again changes nothing.

Two runs at once, or one that is killed anywhere and run again, end in the same invoices: what an invoice says is
decided by its first record in the ledger, and every run works only from what it has read back from there.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import msgspec
import structlog

from billing_job import metrics
from billing_job.collect.charge import discard_strays, hold, pass_gate, settle, settle_zero
from billing_job.collect.customers import ensure_stripe_customer, forget_stripe_customer, is_gone
from billing_job.collect.seller import with_current_seller
from billing_job.collect.steps import Billing, InvoiceStopped, invoice_rests_until, note_problem, system_clock
from billing_job.collect.void_credit import NotPossible, reissue, void
from billing_job.invoice.approved import SUPERSEDED_BY, is_approved_already, is_untouched, superseded
from billing_job.invoice.builder import fixed_now, trues_up
from billing_job.invoice.checks import Difference, above_maximum, explained, quantity_differences
from billing_job.invoice.due import DueCycle, due_cycles, joined, require_past
from billing_job.invoice.late import Counted, counted_for
from billing_job.invoice.usage_reader import Counts, NotCovered
from billing_job.loops import invoice_by_invoice
from billing_job.stripe.api import (
    Json,
    StripeApi,
    StripeDeclined,
    StripeFailure,
    StripeRefused,
    StripeUnknown,
    calls_per_second,
)
from billing_job.worker_group import Share
from catalog.store import CatalogStore
from ledger.invoice import Invoice, just_fixed
from ledger.records import InvoiceStep, Phase, WaitCode
from ledger.snapshot import InvoiceFixed
from ledger.store import LedgerLog
from ledger.view import InvoiceLedger
from runtime.one_by_one import OneByOne
from schemas.customer import Customer
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.watermark import Watermark

log = structlog.get_logger(__name__)

Progress = Callable[[str, int, int], None]
"""part of the close (wait, fix, gate, charge), invoices done, invoices in all."""


_FIX_ATTEMPTS_MAX = 5


class UnknownOrganization(ValueError):
    """There is no organization of that id."""


@dataclass(frozen=True, slots=True)
class CloseReport:
    """What a close came to.

    invoices: every one that is due, as it is now (of a dry run: as it would be fixed), oldest cycle first; those not
    fixed are left out. fixed: how many this run fixed. in_grace: ended by as_of, closed later. waiting: why those in
    waiting_for could not be fixed. awaiting_approval: ids of those that someone has to let be charged. problems:
    invoice id → why it could not go on now. seconds: part → time it took.
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


@dataclass(frozen=True, slots=True)
class Stage:
    """What billing holds open: catalog, ledger, Stripe and ClickHouse."""

    settings: Settings
    catalog: CatalogStore
    log: LedgerLog
    api: StripeApi
    counts: Counts

    def fixed_now(self, due: Sequence[DueCycle], watermark: Watermark, now_us: int) -> list[InvoiceFixed]:
        """What would be fixed now; see there."""
        return fixed_now(
            self.catalog.view, self.log.state, self.counts, due, watermark, now_us=now_us, writer=self.log.writer
        )

    def billing(self, *, scheduled: bool = False) -> Billing:
        return Billing(self.log, self.api, system_clock, scheduled, self.settings.stripe_amount_digits_max)


@contextmanager
def opened(settings: Settings, share: Share | None = None, *, charging: bool = True) -> Generator[Stage]:
    """share: a worker's; without one, who is charging takes its part of Stripe's rate beside the workers.

    Raises CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable when one can't be reached in time.
    """
    with ExitStack() as stack:
        counts = stack.enter_context(Counts(settings))
        catalog = stack.enter_context(CatalogStore(settings))
        ledger = stack.enter_context(LedgerLog(settings))
        if share is None and charging and calls_per_second(settings) is not None:
            share = stack.enter_context(Share(settings, is_worker=False))
        api = stack.enter_context(StripeApi(settings, *(() if share is None else (share.of_rate,))))
        forbear_collecting()
        yield Stage(settings, catalog, ledger, api, counts)


def forbear_collecting() -> None:
    """What is there by now stays: the collector need not walk it again and again while invoices are made."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


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
    with opened(settings) as stage:
        return close_cycles(
            stage, as_of_us, organization_id=organization_id, dry_run=dry_run, now_us=now_us, progress=progress
        )


def _all(due: DueCycle) -> bool:
    del due
    return True


def close_cycles(
    stage: Stage,
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
    """`close` with what is open already. scheduled: wait for imports, and longer after each failure. only: of what is
    due, as the invoice in force, what is this run's to do.
    """
    run = _Run(stage, stage.billing(scheduled=scheduled), progress or _silent, stopping or threading.Event())
    now = system_clock() if now_us is None else now_us
    view = stage.catalog.view
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
    found = joined(parts)
    begun, in_grace = split_begun(stage.log.state, found.in_grace)
    due = [each for each in (*(in_force(stage.log.state, cycle) for cycle in found.due), *begun) if only(each)]
    report = replace(run.close(due, as_of_us=as_of_us, dry_run=dry_run), in_grace=in_grace)
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


@dataclass(slots=True)
class _Run:
    """One close."""

    stage: Stage
    billing: Billing
    progress: Progress
    stopping: threading.Event
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    problems: dict[str, str] = field(default_factory=dict[str, str])
    awaiting_approval: list[str] = field(default_factory=list[str])
    unchecked: dict[str, str] = field(default_factory=dict[str, str])  # approved, and why it can't be charged yet
    down: str | None = None  # why Stripe is not asked any more in this run
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ledger(self) -> InvoiceLedger:
        return self.stage.log.state

    def grace_seconds(self, organization_id: str) -> int:
        organization = self.stage.catalog.view.organization(organization_id)
        if organization is None or organization.grace_seconds is None:
            return self.stage.settings.close_grace_seconds
        return organization.grace_seconds

    def one_by_one(self, name: str) -> OneByOne:
        """A loop of this run over invoices: what can't be handled is among the problems, and the invoice says why."""
        return invoice_by_invoice(name, self._set_aside)

    def _set_aside(self, key: str, reason: str) -> None:
        with self.lock:
            self.problems[key] = reason
        note_problem(self.billing, key, reason)

    @contextmanager
    def timed(self, part: str) -> Generator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = time.monotonic() - started

    def close(self, due: Sequence[DueCycle], *, as_of_us: int, dry_run: bool) -> CloseReport:
        if not dry_run:
            due = self._supersede(due)
        open_cycles = self._unfixed(due)
        computed: list[InvoiceFixed] = []
        waiting: str | None = None
        watermark: Watermark | None = None
        fixed = 0
        try:
            for _ in range(_FIX_ATTEMPTS_MAX):
                if not open_cycles:
                    break
                watermark, computed = self._compute(open_cycles, dry_run=dry_run)
                if dry_run:
                    break
                with self.timed("fix"):
                    fixed += self._fix(computed)
                # Where another run fixed a subscription's invoice a moment before, what followed it is computed anew.
                lost = {each.invoice_id for each in computed}
                open_cycles = [each for each in self._unfixed(open_cycles) if each.invoice_id in lost]
            else:
                self.problems |= {each.invoice_id: "other runs fixed the invoices before it" for each in open_cycles}
        except NotCovered as lag:
            waiting = str(lag)
            log.warning("close_waits", reason=waiting, detail=lag.detail, invoices=len(open_cycles))
            if not dry_run:
                self._record_waiting(open_cycles, lag.code, str(lag))
        if dry_run:
            invoices = _as_if_fixed(due, computed, self.ledger)
        else:
            self._collect([each.invoice_id for each in due])
            invoices = _that_are_fixed(self.ledger.get(each.invoice_id) for each in due)
        return CloseReport(
            as_of=as_of_us,
            dry_run=dry_run,
            invoices=invoices,
            fixed=fixed,
            waiting=waiting,
            waiting_for=tuple(open_cycles) if waiting else (),
            awaiting_approval=tuple(self.awaiting_approval),
            problems=self.problems,
            watermark=watermark,
            seconds=self.seconds,
        )

    def _unfixed(self, due: Sequence[DueCycle]) -> list[DueCycle]:
        return [each for each in due if (found := self.ledger.get(each.invoice_id)) is None or not found.fixed]

    # -- compute -------------------------------------------------------------------------------------------------------

    def _compute(self, due: Sequence[DueCycle], *, dry_run: bool) -> tuple[Watermark, list[InvoiceFixed]]:
        """Read the watermark, wait until it is covered, count, price. Raises NotCovered.

        A subscription that can't be computed is left out, and its cycles wait, with the reason.
        """
        counts = self.stage.counts
        self.progress("wait", 0, len(due))
        with counts.one_store():
            with self.timed("wait"):
                watermark = counts.watermark()
                counts.wait_until_covered(watermark, self.stopping)
            with self.timed("count"):
                computed = self._computed(due, watermark, dry_run=dry_run)
        return watermark, computed

    def _computed(self, due: Sequence[DueCycle], watermark: Watermark, *, dry_run: bool) -> list[InvoiceFixed]:
        of_subscription: dict[str, list[DueCycle]] = defaultdict(list)
        for each in due:
            of_subscription[each.subscription_id].append(each)

        def set_aside(subscription_id: str, reason: str) -> None:
            cycles = of_subscription[subscription_id]
            with self.lock:
                self.problems |= {each.invoice_id: reason for each in cycles}
            if not dry_run:
                self._record_waiting(cycles, "not_computed", f"it can't be computed: {reason}")

        parts = invoice_by_invoice("compute", set_aside).by_halves(
            list(of_subscription),
            lambda ids: self.stage.fixed_now(_of(due, ids), watermark, self.billing.clock()),
            key=str,
        )
        return [fixed for part in parts for fixed in part]

    def _fix(self, computed: Sequence[InvoiceFixed]) -> int:
        """How many of the records are in force. One that the log does not take stops no other."""
        parts = self.one_by_one("fix").by_halves(computed, self.stage.log.append_all, lambda fixed: fixed.invoice_id)
        return sum(sum(won) for won in parts)

    def _supersede(self, due: Sequence[DueCycle]) -> list[DueCycle]:
        """What is due, with a revision in place of each approved invoice of which less is owed by now."""
        known = [self.ledger.get(each.invoice_id) for each in due]
        approved = [each for each in known if each is not None and is_untouched(each) and is_ours_to_do(each)]
        if not approved:
            return list(due)
        counts = self.stage.counts
        try:
            with counts.one_store():
                watermark = counts.watermark()
                counts.wait_until_covered(watermark, self.stopping)
                found = superseded(self.ledger, counts, approved, watermark)
        except NotCovered as lag:
            self.unchecked |= {each.id: f"approved, and not counted again yet: {lag}" for each in approved}
            return list(due)
        for invoice in found:
            assert invoice.fixed is not None
            try:
                reason = "usage that it bills was voided before it was charged"
                reissue(self.billing, void(self.billing, invoice, reason, by=SUPERSEDED_BY))
            except (NotPossible, InvoiceStopped) as stopped:
                self.unchecked[invoice.id] = str(stopped)
            except StripeFailure as failure:
                self.unchecked[invoice.id] = failure.reason
        return [in_force(self.ledger, each) for each in due]

    def _record_waiting(self, due: Sequence[DueCycle], code: WaitCode, reason: str) -> None:
        now = self.billing.clock()
        self.stage.log.append_all(
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
                    writer=self.stage.log.writer,
                )
                for each in due
                if (known := self.ledger.get(each.invoice_id)) is None or known.reason != reason
            ]
        )

    # -- gate and charge -----------------------------------------------------------------------------------------------

    def _collect(self, invoice_ids: Sequence[str]) -> None:
        """Bring what is fixed and unfinished as far as it goes, from what the ledger says."""
        unfinished: list[InvoiceFixed] = []
        loop = self.one_by_one("collect")
        for invoice_id in invoice_ids:
            with loop.one(invoice_id):
                unfinished += self._unfinished(invoice_id)
        if not unfinished:
            return
        with self.timed("gate"):
            agreed = self._gate(unfinished)
        to_charge: list[InvoiceFixed] = []
        for fixed in agreed:
            with loop.one(fixed.invoice_id):
                if not self._is_above_maximum(fixed) and not self._awaits_approval(fixed):
                    to_charge.append(fixed)
        with self.timed("charge"):
            self._charge(to_charge)

    def _unfinished(self, invoice_id: str) -> list[InvoiceFixed]:
        """The invoice, if it is to be taken further now; a void that was begun is finished here."""
        invoice = self.ledger.get(invoice_id)
        if invoice is None or invoice.fixed is None or not is_ours_to_do(invoice):
            return []
        if invoice_id in self.unchecked:
            self._problem(invoice.fixed, self.unchecked[invoice_id])
            return []
        if invoice.voiding:
            self._finish_void(invoice, invoice.fixed)
            return []
        fixed = with_current_seller(self.billing, self.stage.catalog.view, invoice) or invoice.fixed
        invoice = self.billing.invoice(invoice_id)
        if self.billing.scheduled and self.billing.clock() < invoice_rests_until(invoice):
            self.problems[invoice_id] = f"tried again later: {invoice.reason}"
            return []
        return [fixed]

    def _is_above_maximum(self, fixed: InvoiceFixed) -> bool:
        """Whether it is held because Stripe would charge no such amount. What Stripe has finalized is not."""
        seen = self.billing.invoice(fixed.invoice_id).stripe
        reason = above_maximum(fixed, self.billing.digits_max)
        if reason is None or (seen is not None and seen.status != "draft"):
            return False
        hold(self.billing, fixed, "amount_above_maximum", reason)
        return True

    def _awaits_approval(self, fixed: InvoiceFixed) -> bool:
        """Whether its organization lets nothing be charged that nobody has approved. The counts agree already."""
        organization = self.stage.catalog.view.organization(fixed.organization_id)
        manual = organization is not None and organization.invoice_approval == "manual"
        if not manual or not fixed.total_minor or self.billing.invoice(fixed.invoice_id).approved:
            return False
        if is_approved_already(self.ledger, fixed):
            self.stage.log.append(
                self.billing.record(fixed, "approve", "done", reason="approved before it was revised")
            )
            return False
        pass_gate(self.billing, fixed)
        self.awaiting_approval.append(fixed.invoice_id)
        return True

    def _finish_void(self, invoice: Invoice, fixed: InvoiceFixed) -> None:
        """A void that was begun and not finished: nothing else may follow."""
        try:
            void(self.billing, invoice, invoice.steps["void", 0].memo or "")
        except (NotPossible, InvoiceStopped) as stopped:
            self._problem(fixed, str(stopped))
        except StripeFailure as failure:
            self._problem(fixed, failure.reason)

    def _gate(self, invoices: Sequence[InvoiceFixed]) -> list[InvoiceFixed]:
        """Those whose quantities an independent count confirms; the others are held as `mismatch`."""
        to_count = [each for each in invoices if self.billing.invoice(each.invoice_id).gate != "done"]
        differences: dict[str, list[Difference]] = {}
        loop = self.one_by_one("gate")
        try:
            # A customer who is too large to be counted beside others is counted alone.
            for part in loop.by_halves(to_count, self._differences, lambda fixed: fixed.invoice_id):
                differences |= part
        except NotCovered as lag:  # an older copy of the store: that it has less says nothing about the invoices
            for each in to_count:
                self._problem(each, str(lag))
            return [each for each in invoices if self.billing.invoice(each.invoice_id).gate == "done"]
        for fixed in to_count:
            if found := differences.get(fixed.invoice_id):
                reason = explained(found)
                log.error("invoice_held", invoice=fixed.invoice_id, reason=reason)
                with loop.one(fixed.invoice_id):
                    hold(self.billing, fixed, "quantity", reason)
        self.progress("gate", len(invoices), len(invoices))
        counted = {fixed.invoice_id for fixed in to_count}
        return [
            fixed for fixed in invoices if fixed.invoice_id not in counted or differences.get(fixed.invoice_id) == []
        ]

    def _differences(self, invoices: Sequence[InvoiceFixed]) -> dict[str, list[Difference]]:
        """Every invoice's id → where its quantities are not those of the independent count, at each watermark's once.

        Raises NotCovered where ClickHouse has less than what was counted.
        """
        found: dict[str, list[Difference]] = {fixed.invoice_id: [] for fixed in invoices}
        checks: dict[str, list[tuple[InvoiceFixed, Counted]]] = defaultdict(list)
        for fixed in invoices:
            for check in counted_for(self.ledger, fixed):
                checks[repr(check.watermark)].append((fixed, check))
        if not checks:
            return found
        counts = self.stage.counts
        with counts.one_store():
            counts.require_covered(group[0][1].watermark for group in checks.values())
            for group in checks.values():
                needs = {check.need.invoice_id: check.need for _, check in group}
                counted = counts.independent_totals(list(needs.values()), group[0][1].watermark)
                for fixed, check in group:
                    found[fixed.invoice_id] += quantity_differences(check, counted[check.need.invoice_id])
        return found

    def _charge(self, invoices: Sequence[InvoiceFixed]) -> None:
        """Customers at the same time, each customer's invoices one after the other, oldest cycle first."""
        by_customer: dict[tuple[str, str, str | None], list[InvoiceFixed]] = defaultdict(list)
        for fixed in sorted(invoices, key=lambda each: (each.cycle_start, each.invoice_id)):
            key = (fixed.organization_id, fixed.customer_id, fixed.seller.stripe_account_id)
            by_customer[key].append(fixed)
        progress = _Steps(self.progress, "charge", len(invoices))
        workers = max(1, min(self.stage.settings.billing_concurrency, len(by_customer)))
        with ThreadPoolExecutor(workers, thread_name_prefix="charge") as pool:
            try:
                for _ in pool.map(lambda group: self._charge_customer(group, progress), by_customer.values()):
                    pass
            except BaseException:
                self.stopping.set()  # the others stop after the invoice they are at
                raise

    def _charge_customer(self, invoices: Sequence[InvoiceFixed], progress: _Steps) -> None:
        account = invoices[0].seller.stripe_account_id
        stripe_customer_id: str | None = None
        listing: list[list[Json]] = []

        def listed() -> list[Json]:
            if not listing:
                assert stripe_customer_id is not None
                listing.append(self.stage.api.invoices_of(stripe_customer_id, account))
            return listing[0]

        loop = self.one_by_one("charge")
        for fixed in invoices:
            if self.stopping.is_set():
                self._problem(fixed, "stopped before it was its turn")
            elif self.down is not None and fixed.total_minor:
                self._problem(fixed, self.down)
            else:
                with loop.one(fixed.invoice_id):
                    try:
                        if fixed.total_minor == 0:
                            settle_zero(self.billing, fixed)
                        else:
                            if stripe_customer_id is None:
                                stripe_customer_id = self._stripe_customer(fixed)
                            try:
                                settle(self.billing, fixed, stripe_customer_id, listed)
                            except StripeRefused as refused:
                                if not is_gone(refused):
                                    raise
                                stripe_customer_id = self._stripe_customer(fixed, gone=refused)
                                listing.clear()
                                settle(self.billing, fixed, stripe_customer_id, listed)
                            discard_strays(self.billing, self.billing.invoice(fixed.invoice_id), listed())
                    except InvoiceStopped as stopped:
                        self._problem(fixed, str(stopped))
                    except StripeFailure as failure:
                        self._problem(fixed, failure.reason)
                        if isinstance(failure, StripeUnknown) and (failure.status is None or failure.status >= 500):
                            # Every invoice would wait as long for the same answer.
                            self.down = f"Stripe does not answer ({failure.reason}); not tried any further in this run"
            progress.step()

    def _stripe_customer(self, fixed: InvoiceFixed, gone: StripeRefused | None = None) -> str:
        """Id at Stripe of the invoice's customer. gone: that of the one in force is not known there any more.

        The invoice carries the reason when there is none. Raises StripeFailure, InvoiceStopped.
        """
        customer = self.stage.catalog.view.get(Customer, fixed.organization_id, fixed.customer_id)
        assert customer is not None
        account = fixed.seller.stripe_account_id
        asked_at = self.billing.invoice(fixed.invoice_id).retry_asked_at
        try:
            if gone is not None:
                if customer.stripe_customer_id is not None:  # given: only who gave it can correct it
                    raise gone
                forget_stripe_customer(self.billing, customer, account, gone)
            found = ensure_stripe_customer(self.billing, customer, account, asked_at=asked_at)
        except StripeFailure as failure:
            phase: Phase = "failed" if isinstance(failure, StripeRefused | StripeDeclined) else "unknown"
            self._without_customer(fixed, phase, failure.code, failure.reason)
            raise
        except InvoiceStopped as stopped:
            self._without_customer(fixed, "unknown", None, str(stopped))
            raise
        assert found.stripe_customer_id is not None
        return found.stripe_customer_id

    def _without_customer(self, fixed: InvoiceFixed, phase: Phase, code: str | None, reason: str) -> None:
        """Record why the invoice can't go on; the same news is written again only to let it rest longer."""
        invoice = self.billing.invoice(fixed.invoice_id)
        known = invoice.attempt("customer")
        if invoice.reason == reason and (phase == "unknown" or not self.billing.scheduled):
            return
        number = known.number + 1 if known else 1
        self.billing.log.append(self.billing.record(fixed, "customer", phase, attempt=number, code=code, reason=reason))

    def _problem(self, fixed: InvoiceFixed, reason: str) -> None:
        log.warning("invoice_not_finished", invoice=fixed.invoice_id, customer=fixed.customer_id, reason=reason)
        with self.lock:
            self.problems[fixed.invoice_id] = reason


class _Steps:
    """Progress from several threads."""

    def __init__(self, progress: Progress, part: str, total: int) -> None:
        self._progress, self._part, self._total = progress, part, total
        self._done = 0
        self._lock = threading.Lock()
        progress(part, 0, total)

    def step(self) -> None:
        with self._lock:
            self._done += 1
            self._progress(self._part, self._done, self._total)


def _of(due: Sequence[DueCycle], subscription_ids: Sequence[str]) -> list[DueCycle]:
    """In the order of `due`, oldest first."""
    wanted = set(subscription_ids)
    return [each for each in due if each.subscription_id in wanted]


def in_force(ledger: InvoiceLedger, due: DueCycle) -> DueCycle:
    """The cycle with the revision of the invoice that bills it."""
    invoice_id, revision = ledger.in_force(due.organization_id, due.subscription_id, due.cycle.start_us)
    if invoice_id == due.invoice_id:
        return due
    return msgspec.structs.replace(due, invoice_id=invoice_id, revision=revision)


def split_begun(ledger: InvoiceLedger, in_grace: Iterable[DueCycle]) -> tuple[list[DueCycle], tuple[DueCycle, ...]]:
    """Cycles whose invoice is fixed already, as the one in force, and those that are waited for.

    What is fixed waits for no late events any more: someone closed it by hand, and may have approved it since.
    """
    begun: list[DueCycle] = []
    waited_for: list[DueCycle] = []
    for cycle in in_grace:
        current = in_force(ledger, cycle)
        known = ledger.get(current.invoice_id)
        if known is not None and known.fixed is not None:
            begun.append(current)
        else:
            waited_for.append(cycle)
    return begun, tuple(waited_for)


def is_ours_to_do(invoice: Invoice) -> bool:
    """Whether a close has anything left to do for it. What is open and was tried is Stripe's to collect."""
    if invoice.finished or invoice.voiding:
        return not invoice.finished
    status = None if invoice.stripe is None else invoice.stripe.status
    paid = invoice.attempt("pay")
    if status == "uncollectible":  # given up, until someone asks for another attempt
        return paid is not None and paid.phase != "done" and invoice.state != "mismatch"
    if status == "open" and invoice.state != "mismatch":
        assert invoice.fixed is not None
        tried = paid is not None and paid.phase == "done"
        return invoice.fixed.seller.collection_method == "charge_automatically" and not tried
    return status != "void"


def _as_if_fixed(
    due: Sequence[DueCycle], computed: Sequence[InvoiceFixed], ledger: InvoiceLedger
) -> tuple[Invoice, ...]:
    """What a dry run shows: what is fixed as it is, the rest as it would be fixed now."""
    as_fixed = {fixed.invoice_id: just_fixed(fixed) for fixed in computed}
    return _that_are_fixed(as_fixed.get(each.invoice_id) or ledger.get(each.invoice_id) for each in due)


def _that_are_fixed(found: Iterable[Invoice | None]) -> tuple[Invoice, ...]:
    return tuple(invoice for invoice in found if invoice is not None and invoice.fixed is not None)
