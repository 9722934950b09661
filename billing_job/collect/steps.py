"""A step of an invoice → ledger, Stripe, ledger: the intent before the call, the result after it.

An attempt that another run began, or that this one left behind when it was killed, is never repeated blindly: the
objects at Stripe are looked at first, and the call goes out under the same idempotency key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from billing_job.stripe.api import Json, StripeApi
from billing_job.stripe.errors import IdempotencyMisuse, StripeFailure, StripeRefused, StripeReplayed, StripeUnknown
from billing_job.stripe.objects import invoice_key, seen_invoice
from ledger.invoice import Invoice, StepKey
from ledger.records import InvoiceStep, Phase, StepName
from ledger.snapshot import InvoiceFixed
from ledger.store import LedgerLog
from schemas.currency import AMOUNT_DIGITS_MAX
from schemas.period import SECOND_US

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a step. thing: the object at Stripe. code, reason: of a refusal that is a result, not a failure."""

    thing: Json
    code: str | None = None
    reason: str | None = None


Find = Callable[[], Outcome | None]
Call = Callable[[str, bool], Outcome]
"""(idempotency key, whether an earlier call with it may have run) → what came of it."""

ATTEMPTS_MAX = 3  # in one run; only a kept 5xx lets the next one begin at once
_REST_SECONDS = 60
_REST_SECONDS_MAX = 6 * 3600
_MISMATCH_ATTEMPT = 3  # rests as long as after a third attempt: a person has to act


class InvoiceStopped(Exception):
    """This invoice is not finished in this run; the message says why. Others are."""


def system_clock() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Billing:
    """What every step needs. clock: µs since 1970. scheduled: what failed rests, longer after each attempt.

    digits_max: of an amount that can be charged, in minor units; see schemas.currency.
    """

    log: LedgerLog
    api: StripeApi
    clock: Callable[[], int] = system_clock
    scheduled: bool = False
    digits_max: int = AMOUNT_DIGITS_MAX

    def invoice(self, invoice_id: str) -> Invoice:
        """As the ledger has it now; it is there."""
        found = self.log.state.get(invoice_id)
        assert found is not None
        return found

    def record(
        self,
        fixed: InvoiceFixed,
        step: StepName,
        phase: Phase,
        *,
        attempt: int = 1,
        index: int = 0,
        object_id: str | None = None,
        code: str | None = None,
        reason: str | None = None,
        seen: Json | None = None,
    ) -> InvoiceStep:
        """A record of this run, not written yet. seen: an invoice as Stripe showed it."""
        now = self.clock()
        return InvoiceStep(
            invoice_id=fixed.invoice_id,
            organization_id=fixed.organization_id,
            customer_id=fixed.customer_id,
            step=step,
            phase=phase,
            at=now,
            attempt=attempt,
            index=index,
            object_id=object_id,
            code=code,
            reason=reason,
            stripe=None if seen is None else seen_invoice(seen, now),
            writer=self.log.writer,
        )


@dataclass(frozen=True, slots=True)
class Begun:
    """fresh: this run's intent is the one in the ledger, so no call with this attempt's key was made before."""

    attempt: int
    fresh: bool


def note_problem(billing: Billing, invoice_id: str, reason: str) -> None:
    """Have a fixed invoice say why it could not be handled; the same reason is not recorded twice."""
    invoice = billing.log.state.get(invoice_id)
    if invoice is not None and invoice.fixed is not None and invoice.state != "mismatch" and invoice.reason != reason:
        billing.log.append(billing.record(invoice.fixed, "problem", "failed", reason=reason))


def rests_until(begun_at_us: int, attempt: int) -> int:
    """When a scheduled run tries again what failed for certain: minutes first, hours later. µs."""
    return begun_at_us + min(_REST_SECONDS * 2 ** min(attempt, 20), _REST_SECONDS_MAX) * SECOND_US


def invoice_rests_until(invoice: Invoice) -> int:
    """When a scheduled run retries an invoice that is held or has a failed step. µs; 0: at once.

    Someone who asks for a retry ends the rest.
    """
    asked_at = invoice.retry_asked_at
    rests = [
        rests_until(attempt.begun_at, attempt.number)
        for (step, _), attempt in invoice.steps.items()
        # void and credit are of commands, not of a close
        if attempt.phase == "failed" and step not in ("void", "credit") and attempt.begun_at > asked_at
    ]
    if invoice.state == "mismatch" and invoice.updated_at > asked_at:
        rests.append(rests_until(invoice.updated_at, _MISMATCH_ATTEMPT))
    return max(rests, default=0)


def begin(billing: Billing, fixed: InvoiceFixed, keys: Iterable[StepKey]) -> dict[StepKey, Begun]:
    """The attempt to make of each step; new ones are in the ledger when this returns. Raises InvoiceStopped."""
    begun: dict[StepKey, Begun] = {}
    intents: list[InvoiceStep] = []
    keys = list(keys)
    _require_going(billing, fixed, keys)
    steps = billing.invoice(fixed.invoice_id).steps
    for key in keys:
        known = steps.get(key)
        if known is None:
            intents.append(billing.record(fixed, key[0], "intent", index=key[1]))
        elif known.may_advance:
            intents.append(billing.record(fixed, key[0], "intent", attempt=known.number + 1, index=key[1]))
        elif known.phase == "failed":
            raise InvoiceStopped(f"{key[0]} can't be tried again: {known.reason}")
        else:  # not known whether it was made, or made by another run a moment ago
            begun[key] = Begun(known.number, fresh=False)
    won = billing.log.append_all(intents)
    _require_going(billing, fixed, keys)
    for intent, is_won in zip(intents, won, strict=True):
        begun[intent.step, intent.index] = Begun(intent.attempt, fresh=is_won)
    return begun


def _require_going(billing: Billing, fixed: InvoiceFixed, keys: Iterable[StepKey]) -> None:
    if billing.invoice(fixed.invoice_id).voiding and any(name not in ("void", "credit") for name, _ in keys):
        raise InvoiceStopped("it is void, or about to be")


def take(billing: Billing, fixed: InvoiceFixed, key: StepKey, *, find: Find, call: Call) -> Json:
    """Make the step's call once, whatever happened before, and record what came of it.

    find: looks whether what the call is for is there already. Returns the object; raises StripeFailure, with the
    result recorded, or InvoiceStopped.
    """
    for _ in range(ATTEMPTS_MAX):
        begun = begin(billing, fixed, [key])[key]
        outcome = None if begun.fresh else find()
        if outcome is None:
            try:
                outcome = call(invoice_key(fixed.invoice_id, *key, begun.attempt), not begun.fresh)
            except StripeFailure as failure:
                # A call may be refused because another run has done it: finalized, or paid.
                outcome = _found(find) if may_be_done(failure) else None
                if outcome is None:
                    failed(billing, fixed, key, begun, failure)
                    if isinstance(failure, StripeReplayed):
                        continue
                    raise
        billing.log.append(done(billing, fixed, key, begun.attempt, outcome))
        return outcome.thing
    raise InvoiceStopped(f"{key[0]}: Stripe keeps answering with an error of its own")


def _found(find: Find) -> Outcome | None:
    """The object that a refused call was for, if it exists; None, too, where reading it is refused."""
    try:
        return find()
    except StripeRefused as refused:
        log.warning("stripe_look_refused", reason=refused.reason)
        return None


def may_be_done(failure: StripeFailure) -> bool:
    """Whether reading the objects can say more than this failure does."""
    if isinstance(failure, StripeReplayed):
        return True
    certain = isinstance(failure, StripeRefused) and not isinstance(failure, IdempotencyMisuse)
    return certain and failure.status not in (401, 403, 429)


def failed(billing: Billing, fixed: InvoiceFixed, key: StepKey, begun: Begun, failure: StripeFailure) -> None:
    """Record a failure: certain ones let the next attempt begin."""
    certain = isinstance(failure, StripeRefused | StripeReplayed)
    log.warning(
        "stripe_call_failed",
        invoice=fixed.invoice_id,
        step=key[0],
        certain=certain,
        reason=failure.reason,
        request=failure.request_id,
    )
    known = billing.invoice(fixed.invoice_id).steps.get(key)
    if isinstance(failure, StripeUnknown) and not certain and known is not None and known.reason == failure.reason:
        return  # recorded already
    billing.log.append(
        billing.record(
            fixed,
            key[0],
            "failed" if certain else "unknown",
            attempt=begun.attempt,
            index=key[1],
            code=failure.code,
            reason=failure.reason,
        )
    )


def done(billing: Billing, fixed: InvoiceFixed, key: StepKey, attempt: int, outcome: Outcome) -> InvoiceStep:
    """The record of a step that was made, not written yet."""
    return billing.record(
        fixed,
        key[0],
        "done",
        attempt=attempt,
        index=key[1],
        object_id=outcome.thing["id"],
        code=outcome.code,
        reason=outcome.reason,
        seen=outcome.thing if outcome.thing["object"] == "invoice" else None,
    )
