"""what was invoiced + what ClickHouse has now → corrections of earlier cycles: late and voided events, each once.

A correction is the price of a whole cycle by its own snapshot, less everything billed for it so far, so that however
often events come late, what was billed adds up to what the cycle costs. The ledger ensures this: it accepts a
correction only if the invoices that it counted are not void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Protocol

import structlog

from billing_job.invoice.due import DueCycle
from billing_job.invoice.pricing import LateCorrection, TrueUp, correction_of, cost_minor
from billing_job.invoice.usage_reader import Need, Quantities, need_of
from ledger.cycle_bills import CycleBill, cycle_bills, reissue_of, shares_of, usage_notes
from ledger.invoice import Invoice
from ledger.snapshot import FIRST_REVISION, Correction, InvoiceFixed, Reissue
from ledger.view import InvoiceLedger
from schemas.period import format_rfc3339
from schemas.watermark import Watermark, lowest
from warehouse.client import WarehouseUnavailable

log = structlog.get_logger(__name__)


class UsageSource(Protocol):
    """The queries that corrections need; see billing_job.invoice.usage_reader.UsageReader."""

    def totals(self, needs: Sequence[Need], watermark: Watermark) -> Quantities: ...
    def with_late_events(self, needs: Sequence[Need], since: Watermark, watermark: Watermark) -> set[str]: ...


SubscriptionKey = tuple[str, str]
"""(organization_id, subscription_id)."""

_LATE_QUERIES_MAX = 8
_NOTHING_BEFORE = TrueUp(complete=True)
_IN_DOUBT = frozenset({None, "quantity", "subtotal"})
"""Holds of invoices of which it is not sure that they say the right thing."""


@dataclass(frozen=True)
class BilledSubscription:
    """invoices: all that are fixed, in the order of the log. bills: cycle start → what billed it."""

    key: SubscriptionKey
    invoices: tuple[Invoice, ...]
    bills: Mapping[int, CycleBill]

    @property
    def follows(self) -> str | None:
        return self.invoices[-1].fixed_hash if self.invoices else None

    @cached_property
    def since(self) -> Watermark:
        """Nothing below it is late any more."""
        return lowest(bill.counted_to for bill in self.counted)

    @property
    def counted(self) -> list[CycleBill]:
        """Those of cycles that were counted: all but waived ones."""
        return [bill for bill in self.bills.values() if not bill.waived]

    @cached_property
    def must_look(self) -> bool:
        """Whether a cycle does not cost what was billed for it, as it was counted: after a void or a credit note."""
        if not any(each.state == "void" or usage_notes(each) for each in self.invoices):
            return False
        return any(
            cost_minor(bill, {meter_id: Decimal(text) for meter_id, text in bill.quantities.items()})
            != bill.billed_minor
            for bill in self.bills.values()
        )


def true_ups(
    ledger: InvoiceLedger,
    usage: UsageSource,
    due: Sequence[DueCycle],
    watermark: Watermark,
    *,
    trues_up: Callable[[str], bool],
    currency_of: Callable[[DueCycle], str],
) -> dict[SubscriptionKey, TrueUp]:
    """What the next invoice of each subscription corrects; one that can't be looked at now is left out.

    due: oldest first. trues_up: of an organization's id, whether it bills late usage. Raises WarehouseUnavailable.
    """
    found: dict[SubscriptionKey, BilledSubscription] = {}
    made: dict[SubscriptionKey, TrueUp] = {}
    for each in due:
        key = (each.organization_id, each.subscription_id)
        if key not in found and key not in made and trues_up(each.organization_id):
            invoices = tuple(ledger.of_subscription(*key))
            if not invoices:
                made[key] = _NOTHING_BEFORE
                continue
            billed = BilledSubscription(key, invoices, cycle_bills(invoices))
            if not (reason := _held(billed, currency_of(each), watermark)):
                found[key] = billed
            else:
                log.warning("late_usage_waits", subscription=each.subscription_id, reason=reason)
    late = _with_late_events(usage, [each for each in found.values() if each.counted], watermark)
    changed = [billed for key, billed in found.items() if key in late or billed.must_look]
    needs = [need_of(bill.fixed) for billed in changed for bill in billed.counted]
    quantities = usage.totals(needs, watermark) if needs else {}
    made |= {key: TrueUp(complete=True, follows=billed.follows) for key, billed in found.items()}
    for billed in changed:
        corrections = corrections_of(billed.bills.values(), quantities)
        made[billed.key] = TrueUp(corrections, complete=True, follows=billed.follows)
    return made


def _held(billed: BilledSubscription, currency: str, watermark: Watermark) -> str | None:
    """Why earlier cycles are not looked at now; the next invoice does it."""
    if any(each.held_by in _IN_DOUBT for each in billed.invoices if each.state == "mismatch"):
        return "an invoice of the subscription is held"
    if not all(bill.counted_to.reached_by(watermark) for bill in billed.bills.values()):
        return "the log was read further by another run"
    if any(bill.fixed.currency != currency for bill in billed.bills.values()):
        return "earlier cycles were billed in another currency"
    return None


def corrections_of(
    bills: Iterable[CycleBill], quantities: Mapping[str, Mapping[str, Decimal]]
) -> tuple[LateCorrection, ...]:
    """Of those cycles of which a quantity or the amount is not what was billed; oldest first. Pure.

    quantities: id of the cycle's own invoice → meter id → total now; none of a waived cycle.
    """
    made: list[LateCorrection] = []
    for bill in sorted(bills, key=lambda bill: bill.fixed.cycle_start):
        late = correction_of(bill, {} if bill.waived else quantities[bill.fixed.invoice_id])
        recounted = not bill.waived and late.correction.quantities != bill.quantities
        if late.correction.difference_minor or recounted:
            made.append(late)
    return tuple(made)


def _with_late_events(
    usage: UsageSource, billed: Sequence[BilledSubscription], watermark: Watermark
) -> set[SubscriptionKey]:
    """Those with events in cycles that were invoiced, stored after they were counted; perhaps a few more."""
    late: set[SubscriptionKey] = set()
    for since, group in _grouped(billed):
        needs = {_span(each).invoice_id: each.key for each in group}
        found = usage.with_late_events([_span(each) for each in group], since, watermark)
        late |= {needs[name] for name in found}
    return late


def _grouped(billed: Sequence[BilledSubscription]) -> Iterable[tuple[Watermark, list[BilledSubscription]]]:
    """A few groups that were counted up to about the same offsets, each with the lowest of them."""
    ordered = sorted(billed, key=lambda each: (each.since.epoch, sum(each.since.offsets.values()), each.key))
    size = max(1, -(-len(ordered) // _LATE_QUERIES_MAX))
    start = 0
    while start < len(ordered):
        group = ordered[start : start + size]
        # Subscriptions that were counted up to the same offsets are queried together.
        while start + len(group) < len(ordered) and ordered[start + len(group)].since == group[-1].since:
            group.append(ordered[start + len(group)])
        start += len(group)
        yield lowest(each.since for each in group), group


def _span(billed: BilledSubscription) -> Need:
    """One window over every cycle of the subscription that was invoiced."""
    fixed = [bill.fixed for bill in billed.counted]
    meters = {meter.id: meter for each in fixed for meter in each.priced_meters.values()}
    return Need(
        fixed[0].invoice_id,
        fixed[0].organization_id,
        fixed[0].customer_id,
        min(each.cycle_start for each in fixed),
        max(each.active_until for each in fixed),
        tuple(meters.values()),
    )


# --- What would be billed -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PendingLate:
    """The cost of a cycle beyond what was billed for it. fixed: the cycle's invoice; amount_minor: negative, too."""

    fixed: InvoiceFixed
    amount_minor: int


def pending(
    ledger: InvoiceLedger,
    usage: UsageSource,
    subscriptions: Iterable[SubscriptionKey],
    watermark: Watermark,
    *,
    issued_by_us: int,
) -> list[PendingLate]:
    """Late usage that no invoice issued by then had billed, of cycles invoiced by then; as corrections price it.

    Of cycles that were not, what other invoices had corrected ahead, negative: it is part of what those cycles cost.
    Nothing after a final invoice. Raises WarehouseUnavailable, also while ClickHouse lacks what was counted before.
    """
    found = [
        BilledSubscription(key, invoices, cycle_bills(invoices))
        for key in subscriptions
        if (invoices := tuple(each for each in ledger.of_subscription(*key) if _issued(each, issued_by_us)))
        and not any(each.fixed is not None and each.fixed.final and each.state != "void" for each in invoices)
    ]
    if not all(bill.counted_to.reached_by(watermark) for each in found for bill in each.bills.values()):
        raise WarehouseUnavailable("ClickHouse does not have everything that was invoiced")
    late = _with_late_events(usage, [each for each in found if each.counted], watermark)
    changed = [
        each for each in found if each.key in late or each.must_look or _corrected_later(ledger, each, issued_by_us)
    ]
    needs = [need_of(bill.fixed) for each in changed for bill in each.counted]
    quantities = usage.totals(needs, watermark) if needs else {}
    made: list[PendingLate] = []
    for each in changed:
        for correction in corrections_of(each.bills.values(), quantities):
            made.append(PendingLate(correction.corrected, correction.correction.difference_minor))
    made += [ahead for each in found for ahead in _billed_ahead(ledger, each)]
    return [each for each in made if each.amount_minor]


def _issued(invoice: Invoice, by_us: int) -> bool:
    return invoice.issued_at is not None and invoice.issued_at <= by_us


def _corrected_later(ledger: InvoiceLedger, billed: BilledSubscription, by_us: int) -> bool:
    """Whether an invoice not issued by then corrects a cycle: one that follows it saw nothing late any more."""
    return any(
        each.fixed is not None and each.fixed.corrections
        for each in ledger.of_subscription(*billed.key)
        if not _issued(each, by_us)
    )


def _billed_ahead(ledger: InvoiceLedger, billed: BilledSubscription) -> Iterable[PendingLate]:
    """Corrections of cycles whose own invoice is not among those issued: it comes yet, or is void."""
    for each in billed.invoices:
        if each.fixed is None or each.state == "void":
            continue
        for correction in each.fixed.corrections:
            if correction.cycle_start not in billed.bills:
                yield PendingLate(fixed_invoice_of(ledger, correction.corrects), -correction.difference_minor)


# --- What must be countable ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counted:
    """Quantities (meter id → number) that an invoice rests on, and where a count must find them. of: for people."""

    of: str
    need: Need
    watermark: Watermark
    quantities: Mapping[str, str]


def counted_for(ledger: InvoiceLedger, fixed: InvoiceFixed) -> list[Counted]:
    """Its own cycle; of each correction the cycle as it is now, and as it was billed before.

    The latter keeps what a store lost from being credited. Raises LookupError where the ledger lacks what is corrected.
    """
    found = [] if fixed.final else [Counted("", need_of(fixed), fixed.counted_to, fixed.quantities)]
    for each in fixed.corrections:
        need = need_of(fixed_invoice_of(ledger, each.corrects))
        before = counted_before(ledger, each)
        cycle = f"cycle {format_rfc3339(each.cycle_start)}"
        if not before.waived:
            found.append(Counted(f"{cycle}, ", need, fixed.counted_to, each.quantities))
        if before.quantities:
            found.append(Counted(f"{cycle} as it was billed, ", need, before.quantities_at, before.quantities))
    return found


# --- Looking back at a correction -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CountedBefore:
    """The invoices that had billed a cycle when it was corrected, without credit notes. Fields as of CycleBill."""

    billed_minor: int
    quantities: Mapping[str, str]
    quantities_at: Watermark
    waived: bool


def counted_before(ledger: InvoiceLedger, correction: Correction) -> CountedBefore:
    """As the correction counted it, whatever became of those invoices later. Raises LookupError."""
    counted = [fixed_invoice_of(ledger, each) for each in correction.counted]
    shares = [
        (fixed, share) for fixed in counted for share in shares_of(fixed) if share.cycle_start == correction.cycle_start
    ]
    if not shares:
        raise LookupError(f"nothing billed the cycle of {correction.corrects} before it was corrected")
    last, share = shares[-1]
    own = any(fixed.cycle_start == correction.cycle_start and not fixed.final for fixed in counted)
    billed_minor = sum(each.amount_minor for _, each in shares)
    return CountedBefore(billed_minor, share.quantities, last.counted_to, waived=not own)


def fixed_invoice_of(ledger: InvoiceLedger, invoice_id: str) -> InvoiceFixed:
    """Raises LookupError."""
    found = ledger.get(invoice_id)
    if found is None or found.fixed is None:
        raise LookupError(f"the ledger has no invoice {invoice_id}")
    return found.fixed


def corrected_again(ledger: InvoiceLedger, correction: Correction, quantities: Mapping[str, Decimal]) -> LateCorrection:
    """A correction computed again from the ledger and these quantities. Raises LookupError."""
    before = counted_before(ledger, correction)
    bill = CycleBill(
        fixed=fixed_invoice_of(ledger, correction.corrects),
        counted=correction.counted,
        billed_minor=before.billed_minor - correction.credited_minor,
        quantities=before.quantities,
        quantities_at=before.quantities_at,
        counted_to=before.quantities_at,
        waived=before.waived,
        credited_minor=correction.credited_minor,
        credit_notes=correction.credit_notes,
    )
    return correction_of(bill, quantities)


def last_hash(ledger: InvoiceLedger, key: SubscriptionKey) -> str | None:
    """Hash of the subscription's last invoice in the log."""
    invoices = ledger.of_subscription(*key)
    return invoices[-1].fixed_hash if invoices else None


def reissued_by(ledger: InvoiceLedger, due: DueCycle) -> Reissue | None:
    """What the revision of a cycle takes off; None: it is the first invoice of its cycle."""
    if due.revision == FIRST_REVISION:
        return None
    return reissue_of(
        ledger.of_subscription(due.organization_id, due.subscription_id), due.cycle.start_us, final=due.final
    )


def billed_again(ledger: InvoiceLedger, fixed: InvoiceFixed) -> int:
    """The amount that a revision takes off for other invoices, from their lines. Raises LookupError."""
    reissue = fixed.reissue
    if reissue is None:
        return 0
    shares = [share for each in reissue.billed_by for share in shares_of(fixed_invoice_of(ledger, each))]
    billed_minor = sum(share.amount_minor for share in shares if share.cycle_start == fixed.cycle_start)
    return billed_minor - reissue.credited_minor
