"""stripe_customer records in log order → the current Stripe customer of each customer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ledger.invoice import Attempt
from ledger.records import StripeCustomer


@dataclass(frozen=True, slots=True)
class StripeCustomerState:
    """A customer at one Stripe.

    attempt: the latest attempt at creating it.
    stripe_customer_id: None: it does not exist, or it is not known whether it does.
    payment_method: the last one handled, as the catalog names it.
    default_payment_method: its id at Stripe; None: not attached, reason says why.
    details: digest of the details as they were sent last; None: Stripe's own are kept.
    owner: account and mode of the Stripe key; None: the record is older than the field.
    """

    attempt: Attempt
    stripe_customer_id: str | None = None
    payment_method: str | None = None
    default_payment_method: str | None = None
    details: str | None = None
    reason: str | None = None
    owner: str | None = None


LinkKey = tuple[str, str, str | None, str | None]
"""(organization, customer, connected Stripe account, owner of the Stripe key)."""


class CustomerLinks:
    """Customers at every Stripe that they were created at: the stand-in, test mode, another account."""

    def __init__(self) -> None:
        self._states: dict[LinkKey, StripeCustomerState] = {}
        self._keys: dict[tuple[str, str, str | None], list[LinkKey]] = {}  # the last written one last

    def link(
        self, organization_id: str, customer_id: str, stripe_account_id: str | None, owner: str | None
    ) -> StripeCustomerState | None:
        """The customer at one Stripe."""
        return self._states.get((organization_id, customer_id, stripe_account_id, owner))

    def links(self, organization_id: str, customer_id: str, stripe_account_id: str | None) -> list[StripeCustomerState]:
        """The customer at every Stripe; the one of the newest record last."""
        return [self._states[key] for key in self._keys.get((organization_id, customer_id, stripe_account_id), ())]

    def apply(self, record: StripeCustomer) -> bool:
        """Fold the next record in; False when it lost and changed nothing."""
        key = (record.organization_id, record.customer_id, record.stripe_account_id, record.owner)
        state = _apply(record, self._states.get(key))
        if state is None:
            return False
        self._states[key] = state
        keys = self._keys.setdefault(key[:3], [])
        if key in keys:
            keys.remove(key)
        keys.append(key)
        return True


def _apply(record: StripeCustomer, known: StripeCustomerState | None) -> StripeCustomerState | None:
    if record.phase == "intent":
        expected = 1 if known is None else known.attempt.number + 1
        if record.attempt != expected or (known is not None and not known.attempt.may_advance):
            return None
        return StripeCustomerState(Attempt(record.attempt, "intent", record.at), owner=record.owner)
    if record.phase == "failed" and record.stripe_customer_id is not None:
        if known is None or known.stripe_customer_id != record.stripe_customer_id:
            return None
        gone = Attempt(record.attempt, "failed", record.at, code=record.code, reason=record.reason)
        return StripeCustomerState(gone, reason=record.reason, owner=record.owner)
    if record.phase != "done":
        if known is None or known.stripe_customer_id or known.attempt.number != record.attempt:
            return None
        attempt = replace(known.attempt, phase=record.phase, code=record.code, reason=record.reason)
        return replace(known, attempt=attempt, reason=record.reason)
    if record.stripe_customer_id is None:
        return None
    if known is not None and known.stripe_customer_id not in (None, record.stripe_customer_id, record.replaces):
        return None  # another writer's customer is the current one
    return StripeCustomerState(
        attempt=Attempt(record.attempt, "done", record.at, record.stripe_customer_id),
        stripe_customer_id=record.stripe_customer_id,
        payment_method=record.payment_method,
        default_payment_method=record.default_payment_method,
        details=record.details,
        reason=record.reason,
        owner=record.owner,
    )
