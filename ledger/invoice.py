"""One invoice after the ledger records applied so far, as a value. transitions.py: how a record changes it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from ledger.records import (
    IDEMPOTENCY_ERROR,
    CreditFor,
    CreditTarget,
    InvoiceAdjusted,
    OrderRecorded,
    Phase,
    State,
    StepName,
    StripeInvoice,
    StripeStatus,
)
from ledger.snapshot import FIRST_REVISION, Correction, InvoiceFixed
from schemas.currency import from_minor
from schemas.decimals import plain
from schemas.period import format_rfc3339

PAYABLE: frozenset[StripeStatus] = frozenset({"open", "uncollectible"})


@dataclass(frozen=True, slots=True)
class Attempt:
    """The latest attempt at a step.

    number: 1 for the first.
    phase: `intent` and `unknown`: it is not known whether Stripe did it.
    begun_at: µs.
    object_id: created at Stripe; None: nothing, or not known.
    amount_minor, target, request, credit_for: of a `credit`.
    memo, by: reason of a void or credit, and who asked for it.
    """

    number: int
    phase: Phase
    begun_at: int
    object_id: str | None = None
    code: str | None = None
    reason: str | None = None
    amount_minor: int | None = None
    target: CreditTarget | None = None
    memo: str | None = None
    by: str | None = None
    request: str | None = None
    credit_for: CreditFor = "goodwill"

    @property
    def may_advance(self) -> bool:
        """Whether another attempt may begin: this one certainly did nothing, and another one can succeed."""
        return self.phase == "failed" and self.code != IDEMPOTENCY_ERROR


StepKey = tuple[StepName, int]
"""(step, index)."""
NO_STEPS: Mapping[StepKey, Attempt] = MappingProxyType({})
NO_ADJUSTMENTS: Mapping[str, InvoiceAdjusted] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice after the records applied so far.

    cycle_start, cycle_end: µs, half-open.
    updated_at: µs.
    reason: of waiting, of a mismatch, or of the last failure; None: nothing to report.
    fixed: its content; None: it is waiting, and only subscription and cycle are known.
    stripe: the newest state at Stripe; None: not read yet, or nothing is at Stripe.
    stripe_invoice_id: the invoice in use at Stripe; None: none.
    order: None: not paid yet.
    gate: phase of the last comparison of the totals; None: not compared, or due again.
    code: kind of waiting or mismatch.
    approved_by: API key's id or user's name; None: not approved, or a record older than the field.
    retry_asked_at: µs; a step that failed before it may be retried without a pause.
    steps: (step, index) → its latest attempt.
    adjustments: Stripe's id → credit note, refund or dispute.
    reissued: it is void, and its cycle is invoiced by the next revision.
    paid_twice: ids of other Stripe invoices that were paid for the same cycle. They hold the invoice until each one is
        refunded or somebody settles it.
    settled: ids of those that are refunded or settled.
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
        """Whether it is void, or its void has begun: no other step may begin."""
        void = self.attempt("void")
        return self.state == "void" or (void is not None and void.phase != "failed")

    @property
    def finished(self) -> bool:
        """Whether no step of ours is left: paid with its order, or void. (Stripe retries a failed payment.)"""
        return self.state == "void" or (self.state == "paid" and self.order is not None)

    @property
    def held_by(self) -> str | None:
        """Kind of waiting or mismatch that holds it; None: nothing holds it."""
        return self.code if self.state in ("waiting", "mismatch") else None

    @property
    def fixed_hash(self) -> str | None:
        return None if self.fixed is None else self.fixed.hash

    @property
    def issued_at(self) -> int | None:
        """µs at which Stripe finalized it, or an invoice of 0 was settled; None: not yet."""
        if self.stripe is not None:
            return self.stripe.finalized_at
        return self.order.paid_at if self.order else None

    def attempt(self, step: StepName, index: int = 0) -> Attempt | None:
        return self.steps.get((step, index))

    def document(self) -> dict[str, Any]:
        """The invoice as the API returns it: amounts in major units, instants in RFC 3339; `total` is before tax."""
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
            "adjustments": [adjustment.document() for adjustment in self.adjustments.values()],
            "watermark": fixed.watermark if fixed else None,
            "hash": fixed.hash if fixed else None,
            "corrections": [_correction_document(part, fixed.currency) for part in fixed.corrections] if fixed else [],
            "revision": self.revision,
            "reissued": self.reissued,
            "order_id": self.order.order_id if self.order else None,
        }


def just_fixed(record: InvoiceFixed) -> Invoice:
    """A computed invoice with this content and no step yet."""
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


def _correction_document(correction: Correction, currency: str) -> dict[str, Any]:
    """A correction as the API returns it: amounts in major units."""
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


def may_pay_again(invoice: Invoice) -> bool:
    """Whether another payment attempt may begin: the invoice is open or uncollectible, and the last attempt failed.

    Stripe allows an uncollectible invoice to be paid or voided.
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
