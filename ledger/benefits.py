"""unpaid invoices → benefits of a subscription: active, suspended or ended. Pure.

Stripe collects payments and decides when to give up. An unpaid invoice suspends its own subscription only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ledger.invoice import Invoice
from ledger.records import ACTION_REQUIRED, NO_PAYMENT_METHOD

BenefitsState = Literal["active", "suspended", "ended"]
UnpaidReason = Literal["retries_exhausted", "uncollectible", "overdue", "no_payment_method", "action_required"]

# Only the customer can resolve these, no retry of Stripe's: benefits stay active for a set grace.
_WITH_GRACE = frozenset({"no_payment_method", "action_required"})


@dataclass(frozen=True, slots=True)
class Unpaid:
    """Reason why Stripe will not retry the payment. since: µs; in the future for an invoice that is not due yet."""

    reason: UnpaidReason
    since: int

    def suspends_from(self, grace_us: int) -> int:
        """µs from which benefits are suspended."""
        return self.since + (grace_us if self.reason in _WITH_GRACE else 0)


def unpaid(invoice: Invoice) -> Unpaid | None:
    """Why the invoice stays unpaid; None while Stripe still collects, and when nothing is owed."""
    fixed, seen = invoice.fixed, invoice.stripe
    if fixed is None or seen is None or seen.status not in ("open", "uncollectible"):
        return None
    if seen.status == "uncollectible":
        return Unpaid("uncollectible", seen.seen_at)
    if seen.processing:
        return None
    if fixed.seller.collection_method == "send_invoice":
        return None if seen.due_date is None else Unpaid("overdue", seen.due_date)
    pay = invoice.attempt("pay")
    if seen.next_payment_attempt is not None or (pay is not None and pay.phase in ("intent", "unknown")):
        return None
    asked_since = fixed.fixed_at if seen.finalized_at is None else seen.finalized_at
    if pay is not None and seen.attempt_count <= 1:
        if pay.code == NO_PAYMENT_METHOD:
            return Unpaid("no_payment_method", asked_since)
        if pay.code == ACTION_REQUIRED:
            return Unpaid("action_required", asked_since)
    return Unpaid("retries_exhausted", seen.seen_at) if seen.attempted and seen.attempt_count > 0 else None


def suspending(owed: Iterable[Unpaid], now_us: int, grace_us: int) -> Unpaid | None:
    """The earliest that suspends benefits now; None: benefits are not suspended."""
    in_force = [reason for reason in owed if reason.suspends_from(grace_us) <= now_us]
    return min(in_force, key=lambda reason: reason.suspends_from(grace_us), default=None)


def benefits_state(owed: Iterable[Unpaid], ends_at_us: int | None, now_us: int, grace_us: int) -> BenefitsState:
    """State of one subscription's benefits. owed: of unpaid invoices. ends_at_us: the subscription's end, or None."""
    if ends_at_us is not None and ends_at_us <= now_us:
        return "ended"
    return "suspended" if suspending(owed, now_us, grace_us) else "active"
