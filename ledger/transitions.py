"""(invoice, ledger record) → the invoice after it, or None where the record lost and changes nothing. Pure.

A record loses when another writer was first: an attempt that another run began, a comparison that is known already, a
state of Stripe older than the known one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import msgspec

from ledger.invoice import PAYABLE, Attempt, Invoice, StepKey, may_pay_again
from ledger.records import (
    PAYMENT_PROCESSING,
    InvoiceAdjusted,
    InvoiceStep,
    OrderRecorded,
    State,
    StripeInvoice,
    StripeStatus,
)
from ledger.snapshot import with_hash

# How far an invoice has come at Stripe: a state of a lower rank is older. uncollectible may still be paid or voided.
_RANK: dict[StripeStatus, int] = {"draft": 0, "open": 1, "uncollectible": 2, "void": 3, "paid": 3}
_STRIPE_INVOICE = re.compile(r"\bin_[A-Za-z0-9]+")


def apply_step(record: InvoiceStep, known: Invoice | None) -> Invoice | None:
    """known None: the first record of its id."""
    if record.step == "wait":
        return _wait(record, known)
    if known is None or known.fixed is None:
        return None
    match record.step:
        case "gate":
            return _gate(record, known)
        case "approve":
            return _approve(record, known)
        case "retry":
            return _retry(record, known)
        case "observe":
            return _observe(record, known)
        case "discard":
            return _discard(record, known)
        case "problem":
            changed = replace(known, reason=record.reason, updated_at=record.at)
            return None if known.reason == record.reason else changed
        case "seller":
            return _replace_seller(record, known)
        case "customer":
            return _wait_for_customer(record, known)
        case "settle":
            return _settle(record, known)
        case "reissue":
            return replace(known, reissued=True) if known.state == "void" and not known.reissued else None
        case _:
            return _call_stripe(record, known)


def apply_order(record: OrderRecorded, known: Invoice | None) -> Invoice | None:
    if known is None or known.fixed is None or known.order is not None:
        return None
    # An invoice of 0 has no counterpart at Stripe: its order alone says that it is paid.
    if known.stripe:
        return replace(known, order=record, updated_at=record.recorded_at)
    return replace(known, order=record, state="paid", reason=None, updated_at=record.recorded_at)


def apply_adjustment(record: InvoiceAdjusted, known: Invoice | None) -> Invoice | None:
    if known is None or known.fixed is None:
        return None
    before = known.adjustments.get(record.object_id)
    if before is not None and not is_newer(record, before):
        return None
    adjustments = MappingProxyType({**known.adjustments, record.object_id: record})
    return replace(known, adjustments=adjustments, updated_at=max(known.updated_at, record.seen_at))


def is_newer(seen: InvoiceAdjusted, known: InvoiceAdjusted) -> bool:
    """Whether `seen` was read later and differs in more than the time."""
    same = msgspec.structs.replace(seen, seen_at=known.seen_at, writer=known.writer) == known
    return seen.seen_at >= known.seen_at and not same


def hold_if_paid_twice(invoice: Invoice) -> Invoice:
    """An invoice with a second payment is a mismatch until that payment is settled.

    Neither a gate that agrees nor an event from Stripe ends the hold, because the customer's money was taken twice.
    """
    if not invoice.paid_twice or invoice.state == "void":
        return invoice
    reason = f"Stripe invoice {', '.join(invoice.paid_twice)} was paid for the same cycle: refund it"
    return replace(invoice, state="mismatch", code="charged_twice", reason=reason)


# --- Decisions --------------------------------------------------------------------------------------------------------


def _wait(record: InvoiceStep, known: Invoice | None) -> Invoice | None:
    if record.subscription_id is None or record.cycle_start is None or record.cycle_end is None:
        return None
    if known is not None and (known.fixed is not None or known.reason == record.reason):
        return None
    return Invoice(
        id=record.invoice_id,
        organization_id=record.organization_id,
        customer_id=record.customer_id,
        subscription_id=record.subscription_id,
        cycle_start=record.cycle_start,
        cycle_end=record.cycle_end,
        state="waiting",
        updated_at=record.at,
        reason=record.reason,
        code=record.code,
    )


def _gate(record: InvoiceStep, known: Invoice) -> Invoice | None:
    if record.code == "charged_twice" and record.phase == "failed":
        second_payment = record.object_id or _stripe_invoice_in(record.reason)
        if second_payment in (*known.paid_twice, *known.settled):
            return None
        known = replace(known, paid_twice=(*known.paid_twice, second_payment))
    elif known.gate == record.phase and known.reason == record.reason:
        return None
    gated = replace(known, gate=record.phase, updated_at=record.at)
    if record.phase == "failed":
        return replace(gated, state="mismatch", reason=record.reason, code=record.code)
    reason = None if known.state == "mismatch" else known.reason
    return replace(gated, state=_state_at_stripe(replace(gated, state="computed")), reason=reason)


def _stripe_invoice_in(reason: str | None) -> str:
    """Id of the Stripe invoice in a reason: records older than object_id have it nowhere else."""
    found = _STRIPE_INVOICE.search(reason or "")
    return found.group() if found else "unknown"


def _approve(record: InvoiceStep, known: Invoice) -> Invoice | None:
    if known.approved:
        return None
    # gate=None: usage is counted again before the charge.
    return replace(known, approved=True, approved_by=record.by, gate=None, updated_at=record.at)


def _settle(record: InvoiceStep, known: Invoice) -> Invoice | None:
    """A second payment is resolved; the state is that of the invoice in use at Stripe again."""
    if record.object_id is None or record.object_id not in known.paid_twice:
        return None
    left = tuple(payment for payment in known.paid_twice if payment != record.object_id)
    settled = replace(known, paid_twice=left, settled=(*known.settled, record.object_id), updated_at=record.at)
    state = "void" if known.state == "void" else _state_at_stripe(replace(settled, state="computed"))
    return replace(settled, state=state, gate=None, code=None, reason=record.memo)


def _retry(record: InvoiceStep, known: Invoice) -> Invoice:
    """A failed step may be retried under a new idempotency key, whatever its code."""
    steps = {
        key: replace(attempt, code=None) if attempt.phase == "failed" else attempt
        for key, attempt in known.steps.items()
    }
    pay = known.attempt("pay")
    if pay is not None and may_pay_again(known):
        steps["pay", 0] = replace(pay, phase="failed")  # with its code, because benefits depend on it until the result
    gate = None if known.gate == "failed" else known.gate
    return replace(known, steps=MappingProxyType(steps), gate=gate, retry_asked_at=record.at, updated_at=record.at)


def _replace_seller(record: InvoiceStep, known: Invoice) -> Invoice | None:
    """Corrected settings are valid only while nothing of the invoice is at Stripe, and no draft has begun."""
    draft = known.attempt("draft")
    begun = known.stripe_invoice_id is not None or (draft is not None and draft.phase != "failed")
    if known.fixed is None or record.seller is None or begun or known.voiding or known.finished:
        return None
    fixed = with_hash(msgspec.structs.replace(known.fixed, seller=record.seller))
    return replace(known, fixed=fixed, retry_asked_at=record.at, updated_at=record.at)


def _wait_for_customer(record: InvoiceStep, known: Invoice) -> Invoice | None:
    """Nothing can be created at Stripe until its customer exists there."""
    if known.stripe_invoice_id is not None or known.voiding or known.finished:
        return None
    attempt = Attempt(record.attempt, record.phase, record.at, code=record.code, reason=record.reason)
    reason = known.reason if known.state == "mismatch" else record.reason
    return replace(known, steps=_with(known.steps, ("customer", 0), attempt), reason=reason, updated_at=record.at)


# --- Calls to Stripe and their results --------------------------------------------------------------------------------


def _call_stripe(record: InvoiceStep, known: Invoice) -> Invoice | None:
    """An intent or result of draft, item, finalize, pay, void, credit."""
    key: StepKey = (record.step, record.index)
    before = known.steps.get(key)
    if record.phase == "intent":
        expected = 1 if before is None else before.number + 1
        if record.attempt != expected or (before is not None and not before.may_advance):
            return None
        if known.voiding and record.step != "credit":
            return None
        return replace(known, steps=_with(known.steps, key, _next_attempt(record, before)), updated_at=record.at)
    if before is None or before.number != record.attempt or before.phase in ("done", "failed"):
        return None
    attempt = replace(before, phase=record.phase, object_id=record.object_id, code=record.code, reason=record.reason)
    changed = replace(known, steps=_with(known.steps, key, attempt), updated_at=record.at)
    if record.step == "draft" and record.phase == "done":
        assert record.object_id is not None
        steps = MappingProxyType({k: step for k, step in changed.steps.items() if k[0] != "customer"})
        changed = replace(changed, stripe_invoice_id=record.object_id, steps=steps)
    if record.step == "void" and record.phase == "done" and record.stripe is None:  # it never was at Stripe
        return replace(changed, state="void", reason=attempt.memo)
    # A hold keeps its reason, and a failure keeps it while the invoice is credited.
    keeps = known.state == "mismatch" or record.step == "credit"
    changed = changed if keeps else replace(changed, reason=record.reason)
    return _with_processing(_with_stripe(changed, record.stripe))


def _next_attempt(record: InvoiceStep, before: Attempt | None) -> Attempt:
    """A new attempt. A repeated intent without amount and memo takes them from the one before."""
    if before is not None and record.amount_minor is None and record.memo is None:
        return replace(
            before, number=record.attempt, phase="intent", begun_at=record.at, object_id=None, code=None, reason=None
        )
    return Attempt(
        record.attempt,
        "intent",
        record.at,
        amount_minor=record.amount_minor,
        target=record.target,
        memo=record.memo,
        by=record.by,
        request=record.request,
        credit_for=record.credit_for,
    )


def _discard(record: InvoiceStep, known: Invoice) -> Invoice | None:
    """A draft is deleted. If it was the draft in use, every step is due again, under new idempotency keys."""
    if record.object_id is None or record.object_id != known.stripe_invoice_id:
        return known
    if known.stripe is not None and known.stripe.status != "draft":
        return None
    steps = {
        key: attempt if key[0] == "void" else replace(attempt, phase="failed") for key, attempt in known.steps.items()
    }
    return replace(
        known,
        state=known.state if known.state in ("mismatch", "void") else "computed",
        stripe=None,
        stripe_invoice_id=None,
        steps=MappingProxyType(steps),
        updated_at=record.at,
        reason=record.reason if known.state != "mismatch" else known.reason,
    )


def _observe(record: InvoiceStep, known: Invoice) -> Invoice | None:
    if record.stripe is None or record.stripe.id != known.stripe_invoice_id:
        return None
    seen = _with_stripe(known, record.stripe)
    if seen is known:
        return None
    over = seen.state in ("paid", "void")
    before = None if over or known.reason == PAYMENT_PROCESSING else known.reason
    return _with_processing(replace(seen, reason=record.reason or before, updated_at=record.at))


def _with(steps: Mapping[StepKey, Attempt], key: StepKey, attempt: Attempt) -> Mapping[StepKey, Attempt]:
    return MappingProxyType({**steps, key: attempt})


def _with_stripe(invoice: Invoice, seen: StripeInvoice | None) -> Invoice:
    """The invoice with a newer state at Stripe; the same object when `seen` is not newer."""
    if seen is None or seen.id != invoice.stripe_invoice_id:
        return invoice
    before = invoice.stripe
    if before is not None and (
        (_RANK[before.status] == 3 and seen.status != before.status)
        or _progress(seen) < _progress(before)
        or msgspec.structs.replace(seen, seen_at=before.seen_at) == before
    ):
        return invoice
    changed = replace(invoice, stripe=seen)
    # A held invoice stays held until the gate agrees, or Stripe says that it is over. A draft of a void invoice that is
    # found later does not make the invoice a draft.
    if invoice.state == "void" or (invoice.state == "mismatch" and _RANK[seen.status] < 3):
        return changed
    return replace(changed, state=_state_at_stripe(changed))


def _with_processing(invoice: Invoice) -> Invoice:
    """A debit under way is the reason why an invoice is open."""
    seen = invoice.stripe
    if invoice.state not in PAYABLE or seen is None or not seen.processing:
        return invoice
    return replace(invoice, reason=PAYMENT_PROCESSING)


def _progress(seen: StripeInvoice) -> tuple[int, int, int]:
    """Order of two reads: by progress at Stripe; only among equals by the clock of the process that read."""
    return _RANK[seen.status], seen.attempt_count, seen.seen_at


def _state_at_stripe(invoice: Invoice) -> State:
    """The state that Stripe's invoice implies; without one, the state before."""
    seen = invoice.stripe
    if seen is None:
        return invoice.state
    # A bank debit counts as attempted while the invoice stays open for days: only one that failed counts here.
    if seen.status == "open" and seen.attempted and seen.attempt_count > 0 and not seen.processing:
        return "payment_failed"
    return seen.status
