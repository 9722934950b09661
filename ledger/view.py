"""billing.ledger records in log order → the state of every invoice. Pure. What billed each cycle: cycle_bills.py.

The first record of an invoice id fixes the invoice; intents and results of the calls to Stripe follow it. A record that
lost (a second fixing, an attempt that another writer began, facts older than those known) changes nothing, for every
reader alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import msgspec

from ledger.cycle_bills import cycle_bills, reissue_of
from ledger.records import (
    FIRST_REVISION,
    IDEMPOTENCY_ERROR,
    PAYMENT_PROCESSING,
    Correction,
    CreditFor,
    CreditTarget,
    InvoiceAdjusted,
    InvoiceFixed,
    InvoiceStep,
    LedgerRecord,
    OrderRecorded,
    Phase,
    State,
    StepName,
    StripeCustomer,
    StripeInvoice,
    StripeStatus,
    invoice_id,
    with_hash,
)
from schemas.currency import from_minor
from schemas.decimals import plain
from schemas.period import format_rfc3339


@dataclass(frozen=True, slots=True)
class Attempt:
    """The latest attempt at a step. phase `intent` or `unknown`: whether it happened is not known."""

    number: int
    phase: Phase
    begun_at: int
    object_id: str | None = None
    code: str | None = None
    reason: str | None = None
    amount_minor: int | None = None  # of `credit`, with target
    target: CreditTarget | None = None
    memo: str | None = None
    by: str | None = None
    request: str | None = None
    credit_for: CreditFor = "goodwill"

    @property
    def may_advance(self) -> bool:
        """Whether another attempt may begin: this one certainly did nothing, and trying again can help."""
        return self.phase == "failed" and self.code != IDEMPOTENCY_ERROR


StepKey = tuple[StepName, int]
NO_STEPS: Mapping[StepKey, Attempt] = MappingProxyType({})
NO_ADJUSTMENTS: Mapping[str, InvoiceAdjusted] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice after the records applied so far.

    fixed None: it is waiting, and only subscription_id and cycle are known. reason: of waiting, mismatch, or the last
    failure. code: what kind of waiting or mismatch. retry_asked_at: µs; what failed before it need not rest. stripe:
    the newest facts known. steps: (step, index) → its latest attempt. adjustments: Stripe's id → credit note, refund or
    dispute. reissued: void, and its cycle is invoiced by the next revision. paid_twice: other Stripe invoices that were
    paid for it, too: it is held until each is refunded or someone settles it. settled: those of which that is so.
    approved_by: a key or user; None: an older record doesn't say.
    """

    id: str
    organization_id: str
    customer_id: str
    subscription_id: str
    cycle_start: int
    cycle_end: int
    state: State
    updated_at: int
    reason: str | None = None
    fixed: InvoiceFixed | None = None
    stripe: StripeInvoice | None = None
    stripe_invoice_id: str | None = None
    order: OrderRecorded | None = None
    gate: Phase | None = None
    code: str | None = None
    approved: bool = False
    approved_by: str | None = None
    retry_asked_at: int = 0
    steps: Mapping[StepKey, Attempt] = field(default_factory=lambda: NO_STEPS)
    adjustments: Mapping[str, InvoiceAdjusted] = field(default_factory=lambda: NO_ADJUSTMENTS)
    reissued: bool = False
    paid_twice: tuple[str, ...] = ()
    settled: tuple[str, ...] = ()

    @property
    def revision(self) -> int:
        return self.fixed.revision if self.fixed else FIRST_REVISION

    @property
    def voiding(self) -> bool:
        """Whether it is void, or about to be: nothing else may begin."""
        void = self.attempt("void")
        return self.state == "void" or (void is not None and void.phase != "failed")

    @property
    def finished(self) -> bool:
        """Nothing is left to do for us: paid with its order, or void. (payment_failed is Stripe's to retry.)"""
        return self.state == "void" or (self.state == "paid" and self.order is not None)

    @property
    def held_by(self) -> str | None:
        """What kind of waiting or mismatch holds it; None: nothing does."""
        return self.code if self.state in ("waiting", "mismatch") else None

    @property
    def fixed_hash(self) -> str | None:
        return None if self.fixed is None else self.fixed.hash

    @property
    def issued_at(self) -> int | None:
        """When it became a legal document at Stripe, or was settled at 0; µs. None: not yet."""
        if self.stripe is not None:
            return self.stripe.finalized_at
        return self.order.paid_at if self.order else None

    def attempt(self, step: StepName, index: int = 0) -> Attempt | None:
        return self.steps.get((step, index))

    def document(self) -> dict[str, Any]:
        """The invoice as the API shows it: amounts in major units, instants in RFC 3339; `total` is before tax."""
        fixed, seen = self.fixed, self.stripe

        def major(minor: int | None) -> str | None:
            return None if minor is None or fixed is None else plain(from_minor(minor, fixed.currency))

        return {
            "id": self.id,
            "organization_id": self.organization_id,
            "customer_id": self.customer_id,
            "subscription_id": self.subscription_id,
            "cycle": {"start": format_rfc3339(self.cycle_start), "end": format_rfc3339(self.cycle_end)},
            "currency": fixed.currency if fixed else None,
            "lines": [msgspec.to_builtins(line) for line in fixed.lines] if fixed else [],
            "total": fixed.total if fixed else None,
            "state": self.state,
            "reason": self.reason,
            "reason_code": self.held_by,
            "approved": self.approved,
            "stripe_invoice_id": self.stripe_invoice_id,
            "number": seen.number if seen else None,
            "hosted_invoice_url": seen.hosted_invoice_url if seen else None,
            "invoice_pdf": seen.invoice_pdf if seen else None,
            "tax": major(seen.tax_minor) if seen else None,
            "amount_due": major(seen.amount_due_minor) if seen else major(0 if self.state == "paid" else None),
            "amount_paid": major(seen.amount_paid_minor) if seen else (self.order.amount_paid if self.order else None),
            "amount_remaining": major(seen.amount_remaining_minor) if seen else None,
            "issued_at": _instant(seen.finalized_at if seen else None),
            "due_date": _instant(seen.due_date if seen else None),
            "next_payment_attempt": _instant(seen.next_payment_attempt if seen else None),
            "adjustments": [each.document() for each in self.adjustments.values()],
            "watermark": fixed.watermark if fixed else None,
            "hash": fixed.hash if fixed else None,
            "corrections": [correction_document(each, fixed.currency) for each in fixed.corrections] if fixed else [],
            "revision": self.revision,
            "reissued": self.reissued,
            "order_id": self.order.order_id if self.order else None,
        }


def just_fixed(record: InvoiceFixed) -> Invoice:
    """The invoice that a record makes, before anything else is known of it."""
    return Invoice(
        id=record.invoice_id,
        organization_id=record.organization_id,
        customer_id=record.customer_id,
        subscription_id=record.subscription_id,
        cycle_start=record.cycle_start,
        cycle_end=record.cycle_end,
        state="computed",
        updated_at=record.fixed_at,
        fixed=record,
    )


def correction_document(correction: Correction, currency: str) -> dict[str, Any]:
    """A correction as the API shows it: amounts in major units."""
    return {
        "invoice_id": correction.corrects,
        "cycle": {"start": format_rfc3339(correction.cycle_start), "end": format_rfc3339(correction.cycle_end)},
        "quantities": correction.quantities,
        "billed_before": plain(from_minor(correction.before_minor, currency)),
        "total": plain(from_minor(correction.total_minor, currency)),
        "amount": plain(from_minor(correction.difference_minor, currency)),
    }


def _instant(us: int | None) -> str | None:
    return None if us is None else format_rfc3339(us)


@dataclass(frozen=True, slots=True)
class StripeCustomerState:
    """stripe_customer_id None: an attempt at making one was begun. payment_method: the catalog's last dealt with."""

    attempt: Attempt
    stripe_customer_id: str | None = None
    payment_method: str | None = None
    default_payment_method: str | None = None
    details: str | None = None
    reason: str | None = None
    owner: str | None = None


LinkKey = tuple[str, str, str | None, str | None]
"""(organization, customer, Stripe account that is sold in, owner of the key)."""

_STRIPE_INVOICE = re.compile(r"\bin_[A-Za-z0-9]+")

# How far an invoice has come at Stripe; facts of a lesser rank are older. uncollectible may still be paid or voided.
PAYABLE: frozenset[StripeStatus] = frozenset({"open", "uncollectible"})
_RANK: dict[StripeStatus, int] = {"draft": 0, "open": 1, "uncollectible": 2, "void": 3, "paid": 3}


class InvoiceLedger:
    """Every invoice, order and Stripe customer, after the records applied so far, each partition's in its order.

    Not locked: one thread applies; what readers get is never changed, only replaced.
    """

    def __init__(self) -> None:
        self.invoices: dict[str, Invoice] = {}
        self.customers: dict[LinkKey, StripeCustomerState] = {}
        self._links: dict[tuple[str, str, str | None], list[LinkKey]] = {}
        self._by_stripe_id: dict[str, str] = {}
        self._by_second_payment: dict[str, str] = {}
        self._by_subscription: dict[tuple[str, str], list[str]] = {}
        self._snapshots: dict[bytes, dict[str, Any]] = {}
        self._adjustments: dict[str, InvoiceAdjusted] = {}

    def get(self, invoice: str) -> Invoice | None:
        return self.invoices.get(invoice)

    def by_stripe_id(self, stripe_invoice_id: str) -> Invoice | None:
        found = self._by_stripe_id.get(stripe_invoice_id)
        return None if found is None else self.invoices.get(found)

    def by_second_payment(self, stripe_invoice_id: str) -> Invoice | None:
        """The invoice for which that Stripe invoice was paid, besides its own."""
        found = self._by_second_payment.get(stripe_invoice_id)
        return None if found is None else self.invoices.get(found)

    def adjustment(self, object_id: str) -> InvoiceAdjusted | None:
        """A credit note, refund or dispute by Stripe's id."""
        return self._adjustments.get(object_id)

    def customer(
        self, organization_id: str, customer_id: str, stripe_account_id: str | None = None
    ) -> StripeCustomerState | None:
        """The customer at the Stripe that was written of last."""
        known = self.links(organization_id, customer_id, stripe_account_id)
        return known[-1] if known else None

    def links(self, organization_id: str, customer_id: str, stripe_account_id: str | None) -> list[StripeCustomerState]:
        """A customer at every Stripe there was (the stand-in, test mode, another account), the last one last."""
        keys = self._links.get((organization_id, customer_id, stripe_account_id), ())
        return [self.customers[key] for key in keys]

    def link(
        self, organization_id: str, customer_id: str, stripe_account_id: str | None, owner: str | None
    ) -> StripeCustomerState | None:
        """The customer at one Stripe."""
        return self.customers.get((organization_id, customer_id, stripe_account_id, owner))

    def in_force(self, organization_id: str, subscription_id: str, cycle_start: int) -> tuple[str, int]:
        """(id, revision) of the invoice that a cycle is billed by: the first, or the one after those reissued."""
        revision = FIRST_REVISION
        while True:
            found = invoice_id(organization_id, subscription_id, cycle_start, revision)
            known = self.invoices.get(found)
            if known is None or not known.reissued:
                return found, revision
            revision += 1

    def of_customer(self, organization_id: str, customer_id: str) -> list[Invoice]:
        """A customer's invoices, oldest cycle first."""
        found = [
            invoice
            for invoice in list(self.invoices.values())  # a close may add to them meanwhile
            if (invoice.organization_id, invoice.customer_id) == (organization_id, customer_id)
        ]
        return sorted(found, key=lambda invoice: (invoice.cycle_start, invoice.id))

    def of_subscription(self, organization_id: str, subscription_id: str) -> list[Invoice]:
        """A subscription's fixed invoices, in the order of the log."""
        return [self.invoices[each] for each in self._by_subscription.get((organization_id, subscription_id), ())]

    @property
    def orders(self) -> list[OrderRecorded]:
        return [invoice.order for invoice in list(self.invoices.values()) if invoice.order]

    def apply(self, record: LedgerRecord) -> bool:
        """Fold the partition's next record in; False when it lost and changed nothing."""
        match record:
            case InvoiceFixed():
                return self._fix(record)
            case InvoiceStep():
                return self._step(record)
            case OrderRecorded():
                return self._order(record)
            case StripeCustomer():
                return self._customer(record)
            case InvoiceAdjusted():
                return self._adjust(record)

    def _put(self, invoice: Invoice) -> bool:
        # Neither a gate that agrees nor an event from Stripe ends this hold: somebody's money is with us twice.
        if invoice.paid_twice and invoice.state != "void":
            reason = f"Stripe invoice {', '.join(invoice.paid_twice)} was paid for the same cycle: refund it"
            invoice = replace(invoice, state="mismatch", code="charged_twice", reason=reason)
            for stray in invoice.paid_twice:
                self._by_second_payment[stray] = invoice.id
        self.invoices[invoice.id] = invoice
        return True

    def _fix(self, record: InvoiceFixed) -> bool:
        known = self.invoices.get(record.invoice_id)
        if (known is not None and known.fixed is not None) or not self._continues(record):
            return False
        of_subscription = self._by_subscription.setdefault((record.organization_id, record.subscription_id), [])
        of_subscription.append(record.invoice_id)
        return self._put(just_fixed(self._shared(record)))

    def _shared(self, record: InvoiceFixed) -> InvoiceFixed:
        """The record with parts that many have in common held once: they are most of what an invoice weighs."""

        def share(part: dict[str, Any]) -> dict[str, Any]:
            return self._snapshots.setdefault(msgspec.json.encode(part), part)

        return msgspec.structs.replace(
            record,
            product=share(record.product),
            meters=tuple(map(share, record.meters)),
            watermark=share(record.watermark),
        )

    def _continues(self, record: InvoiceFixed) -> bool:
        """Whether what it corrects was billed as its writer believed: two runs must not true up the same events."""
        if not record.trued_up and record.corrections:
            return False
        if not record.trued_up and record.reissue is None:
            return True
        before = self.of_subscription(record.organization_id, record.subscription_id)
        if record.follows != (before[-1].fixed_hash if before else None):
            return False
        if record.reissue is not None and record.reissue != reissue_of(before, record.cycle_start, final=record.final):
            return False
        bills = cycle_bills(before) if record.corrections else {}
        return all(
            (bill := bills.get(each.cycle_start)) is not None
            and (bill.counted, bill.billed_minor) == (each.counted, each.before_minor)
            for each in record.corrections
        )

    def _order(self, record: OrderRecorded) -> bool:
        known = self.invoices.get(record.invoice_id)
        if known is None or known.fixed is None or known.order is not None:
            return False
        # An invoice of 0 has no counterpart at Stripe: its order is what says that it is paid.
        if known.stripe:
            return self._put(replace(known, order=record, updated_at=record.recorded_at))
        return self._put(replace(known, order=record, state="paid", reason=None, updated_at=record.recorded_at))

    def _step(self, record: InvoiceStep) -> bool:
        known = self.invoices.get(record.invoice_id)
        if record.step == "wait":
            return self._wait(record, known)
        if known is None or known.fixed is None:
            return False
        match record.step:
            case "gate":
                return self._gate(record, known)
            case "approve":
                # Usage that was counted when the invoice was fixed is counted again before it is charged.
                approved = replace(known, approved=True, approved_by=record.by, gate=None, updated_at=record.at)
                return not known.approved and self._put(approved)
            case "retry":
                return self._retry(record, known)
            case "observe":
                return self._observe(record, known)
            case "discard":
                return self._discard(record, known)
            case "problem":
                return known.reason != record.reason and self._put(
                    replace(known, reason=record.reason, updated_at=record.at)
                )
            case "seller":
                return self._sell(record, known)
            case "customer":
                return self._without_customer(record, known)
            case "settle":
                return self._settle(record, known)
            case "reissue":
                return known.state == "void" and not known.reissued and self._put(replace(known, reissued=True))
            case _:
                return self._call(record, known)

    def _wait(self, record: InvoiceStep, known: Invoice | None) -> bool:
        if record.subscription_id is None or record.cycle_start is None or record.cycle_end is None:
            return False
        if known is not None and (known.fixed is not None or known.reason == record.reason):
            return False
        return self._put(
            Invoice(
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
        )

    def _gate(self, record: InvoiceStep, known: Invoice) -> bool:
        if record.code == "charged_twice" and record.phase == "failed":
            stray = record.object_id or _named(record.reason)
            if stray in (*known.paid_twice, *known.settled):
                return False
            known = replace(known, paid_twice=(*known.paid_twice, stray))
        elif known.gate == record.phase and known.reason == record.reason:
            return False
        gated = replace(known, gate=record.phase, updated_at=record.at)
        if record.phase == "failed":
            return self._put(replace(gated, state="mismatch", reason=record.reason, code=record.code))
        reason = None if known.state == "mismatch" else known.reason
        return self._put(replace(gated, state=_state(replace(gated, state="computed")), reason=reason))

    def _settle(self, record: InvoiceStep, known: Invoice) -> bool:
        """A second payment was dealt with; what is left of it is what Stripe says of the invoice in use."""
        if record.object_id is None or record.object_id not in known.paid_twice:
            return False
        left = tuple(each for each in known.paid_twice if each != record.object_id)
        settled = replace(known, paid_twice=left, settled=(*known.settled, record.object_id), updated_at=record.at)
        state = "void" if known.state == "void" else _state(replace(settled, state="computed"))
        return self._put(replace(settled, state=state, gate=None, code=None, reason=record.memo))

    def _retry(self, record: InvoiceStep, known: Invoice) -> bool:
        """A step that failed for good may be retried under a new key."""
        steps = {
            key: replace(attempt, code=None) if attempt.phase == "failed" else attempt
            for key, attempt in known.steps.items()
        }
        pay = known.attempt("pay")
        if pay is not None and may_pay_again(known):
            steps["pay", 0] = replace(pay, phase="failed")  # keeps its code: benefits wait for what comes of it
        gate = None if known.gate == "failed" else known.gate
        return self._put(
            replace(known, steps=MappingProxyType(steps), gate=gate, retry_asked_at=record.at, updated_at=record.at)
        )

    def _sell(self, record: InvoiceStep, known: Invoice) -> bool:
        """Corrected settings reach an invoice of which nothing is at Stripe, or about to be."""
        draft = known.attempt("draft")
        begun = known.stripe_invoice_id is not None or (draft is not None and draft.phase != "failed")
        if known.fixed is None or record.seller is None or begun or known.voiding or known.finished:
            return False
        fixed = with_hash(msgspec.structs.replace(known.fixed, seller=record.seller))
        return self._put(replace(known, fixed=fixed, retry_asked_at=record.at, updated_at=record.at))

    def _without_customer(self, record: InvoiceStep, known: Invoice) -> bool:
        """Nothing can be made at Stripe until its customer is there."""
        if known.stripe_invoice_id is not None or known.voiding or known.finished:
            return False
        attempt = Attempt(record.attempt, record.phase, record.at, code=record.code, reason=record.reason)
        reason = known.reason if known.state == "mismatch" else record.reason
        steps = _with(known.steps, ("customer", 0), attempt)
        return self._put(replace(known, steps=steps, reason=reason, updated_at=record.at))

    def _call(self, record: InvoiceStep, known: Invoice) -> bool:
        """An intent or result of draft, item, finalize, pay, void, credit."""
        key: StepKey = (record.step, record.index)
        before = known.steps.get(key)
        if record.phase == "intent":
            expected = 1 if before is None else before.number + 1
            if record.attempt != expected or (before is not None and not before.may_advance):
                return False
            if known.voiding and record.step != "credit":
                return False
            attempt = _begun(record, before)
            return self._put(replace(known, steps=_with(known.steps, key, attempt), updated_at=record.at))
        if before is None or before.number != record.attempt or before.phase in ("done", "failed"):
            return False
        attempt = replace(
            before, phase=record.phase, object_id=record.object_id, code=record.code, reason=record.reason
        )
        changed = replace(known, steps=_with(known.steps, key, attempt), updated_at=record.at)
        if record.step == "draft" and record.phase == "done":
            assert record.object_id is not None
            left = MappingProxyType({k: each for k, each in changed.steps.items() if k[0] != "customer"})
            changed = replace(changed, stripe_invoice_id=record.object_id, steps=left)
            self._by_stripe_id[record.object_id] = known.id
        if record.step == "void" and record.phase == "done" and record.stripe is None:  # it never was one of Stripe's
            return self._put(replace(changed, state="void", reason=attempt.memo))
        # What is held keeps saying why, and so does what failed when it is credited.
        keeps = known.state == "mismatch" or record.step == "credit"
        changed = changed if keeps else replace(changed, reason=record.reason)
        return self._put(_with_processing(_seen(changed, record.stripe)))

    def _discard(self, record: InvoiceStep, known: Invoice) -> bool:
        """A draft is gone. Where it was the one in use, all is to be done again, under new keys."""
        if record.object_id is None or record.object_id != known.stripe_invoice_id:
            return True
        if known.stripe is not None and known.stripe.status != "draft":
            return False
        steps = {
            key: attempt if key[0] == "void" else replace(attempt, phase="failed")
            for key, attempt in known.steps.items()
        }
        del self._by_stripe_id[record.object_id]
        return self._put(
            replace(
                known,
                state=known.state if known.state in ("mismatch", "void") else "computed",
                stripe=None,
                stripe_invoice_id=None,
                steps=MappingProxyType(steps),
                updated_at=record.at,
                reason=record.reason if known.state != "mismatch" else known.reason,
            )
        )

    def _observe(self, record: InvoiceStep, known: Invoice) -> bool:
        if record.stripe is None or record.stripe.id != known.stripe_invoice_id:
            return False
        seen = _seen(known, record.stripe)
        if seen is known:
            return False
        over = seen.state in ("paid", "void")
        before = None if over or known.reason == PAYMENT_PROCESSING else known.reason
        return self._put(
            _with_processing(replace(seen, reason=record.reason or before, updated_at=record.at)),
        )

    def _adjust(self, record: InvoiceAdjusted) -> bool:
        known = self.invoices.get(record.invoice_id)
        if known is None or known.fixed is None:
            return False
        before = known.adjustments.get(record.object_id)
        if before is not None and not is_newer(record, before):
            return False
        self._adjustments[record.object_id] = record
        adjustments = MappingProxyType({**known.adjustments, record.object_id: record})
        return self._put(replace(known, adjustments=adjustments, updated_at=max(known.updated_at, record.seen_at)))

    def _customer(self, record: StripeCustomer) -> bool:
        key = (record.organization_id, record.customer_id, record.stripe_account_id, record.owner)
        known = self.customers.get(key)
        if not self._links_customer(record, key, known):
            return False
        keys = self._links.setdefault(key[:3], [])
        if key in keys:
            keys.remove(key)
        keys.append(key)
        return True

    def _links_customer(self, record: StripeCustomer, key: LinkKey, known: StripeCustomerState | None) -> bool:
        if record.phase == "intent":
            expected = 1 if known is None else known.attempt.number + 1
            if record.attempt != expected or (known is not None and not known.attempt.may_advance):
                return False
            self.customers[key] = StripeCustomerState(Attempt(record.attempt, "intent", record.at), owner=record.owner)
            return True
        if record.phase == "failed" and record.stripe_customer_id is not None:
            if known is None or known.stripe_customer_id != record.stripe_customer_id:
                return False
            gone = Attempt(record.attempt, "failed", record.at, code=record.code, reason=record.reason)
            self.customers[key] = StripeCustomerState(gone, reason=record.reason, owner=record.owner)
            return True
        if record.phase != "done":
            if known is None or known.stripe_customer_id or known.attempt.number != record.attempt:
                return False
            attempt = replace(known.attempt, phase=record.phase, code=record.code, reason=record.reason)
            self.customers[key] = replace(known, attempt=attempt, reason=record.reason)
            return True
        if record.stripe_customer_id is None:
            return False
        if known is not None and known.stripe_customer_id not in (None, record.stripe_customer_id, record.replaces):
            return False  # another writer's customer is the valid one
        self.customers[key] = StripeCustomerState(
            attempt=Attempt(record.attempt, "done", record.at, record.stripe_customer_id),
            stripe_customer_id=record.stripe_customer_id,
            payment_method=record.payment_method,
            default_payment_method=record.default_payment_method,
            details=record.details,
            reason=record.reason,
            owner=record.owner,
        )
        return True


def _named(reason: str | None) -> str:
    """The Stripe invoice of a hold from before its id was in the record."""
    found = _STRIPE_INVOICE.search(reason or "")
    return found.group() if found else "unknown"


def _begun(record: InvoiceStep, before: Attempt | None) -> Attempt:
    """A new attempt; what is asked for was said with the first one."""
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


def is_newer(seen: InvoiceAdjusted, known: InvoiceAdjusted) -> bool:
    """Whether it was read later, and says anything else."""
    same = msgspec.structs.replace(seen, seen_at=known.seen_at, writer=known.writer) == known
    return seen.seen_at >= known.seen_at and not same


def _with(steps: Mapping[StepKey, Attempt], key: StepKey, attempt: Attempt) -> Mapping[StepKey, Attempt]:
    return MappingProxyType({**steps, key: attempt})


def _seen(invoice: Invoice, seen: StripeInvoice | None) -> Invoice:
    """The invoice with newer facts, and the state that they mean; the same object when they are not newer."""
    if seen is None or seen.id != invoice.stripe_invoice_id:
        return invoice
    before = invoice.stripe
    if before is not None and (
        (_RANK[before.status] == 3 and seen.status != before.status)
        or _place(seen) < _place(before)
        or msgspec.structs.replace(seen, seen_at=before.seen_at) == before
    ):
        return invoice
    changed = replace(invoice, stripe=seen)
    # A held invoice stays held until the gate agrees, or Stripe says that it is over; a draft found later is void too.
    if invoice.state == "void" or (invoice.state == "mismatch" and _RANK[seen.status] < 3):
        return changed
    return replace(changed, state=_state(changed))


def _with_processing(invoice: Invoice) -> Invoice:
    """A debit under way is the reason why an invoice is open."""
    seen = invoice.stripe
    if invoice.state not in PAYABLE or seen is None or not seen.processing:
        return invoice
    return replace(invoice, reason=PAYMENT_PROCESSING)


def may_pay_again(invoice: Invoice) -> bool:
    """Whether another attempt at its payment may be asked for: the last one brought nothing.

    Of an open invoice, and of an uncollectible one, which Stripe lets be paid or voided.
    """
    seen, pay = invoice.stripe, invoice.attempt("pay")
    return (
        seen is not None
        and seen.status in PAYABLE
        and not seen.processing
        and not invoice.voiding
        and invoice.state != "mismatch"
        and invoice.fixed is not None
        and invoice.fixed.seller.collection_method == "charge_automatically"
        and pay is not None
        and pay.phase == "done"
    )


def _place(seen: StripeInvoice) -> tuple[int, int, int]:
    """Which of two facts is the newer: by how far it came, and only among equals by the clock of who read it."""
    return _RANK[seen.status], seen.attempt_count, seen.seen_at


def _state(invoice: Invoice) -> State:
    """The state that the facts from Stripe mean; without any, the one before."""
    seen = invoice.stripe
    if seen is None:
        return invoice.state
    # A bank debit is attempted, and open for days: only one that failed counts.
    if seen.status == "open" and seen.attempted and seen.attempt_count > 0 and not seen.processing:
        return "payment_failed"
    return seen.status
