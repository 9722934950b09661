"""a wrong invoice → void, replaced by its next revision, or credited: in the ledger and at Stripe.

Each begins with an intent in the ledger. After a crash the command, run again, or the poller continues from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import msgspec
import structlog

from billing_job.collect.charge import discard, observe, void_at_stripe
from billing_job.collect.steps import Billing, InvoiceStopped, Outcome, take
from billing_job.collect.stripe_events import record_adjustment, settle_second_payment
from billing_job.stripe.api import Json
from billing_job.stripe.errors import StripeRefused
from billing_job.stripe.objects import CREDIT, credit_note_params, metadata_of, of_invoice
from ledger.invoice import Attempt, Invoice, StepKey
from ledger.records import CreditFor, CreditTarget, InvoiceAdjusted
from ledger.snapshot import InvoiceFixed
from schemas.currency import NotMinorUnits, from_minor, to_minor
from schemas.decimals import plain

log = structlog.get_logger(__name__)

_ROUNDS_MAX = 4
_CREDITABLE = ("open", "paid", "uncollectible")


NotPossibleCode = Literal[
    "not_fixed",
    "paid",
    "not_void",
    "not_issued",
    "not_paid",
    "invalid_amount",
    "unfinished",
    "request_reused",
    "not_paid_twice",
]


class NotPossible(ValueError):
    """It can't be done with this invoice as it is, or with this amount: code says which, the message what could be."""

    def __init__(self, code: NotPossibleCode, message: str) -> None:
        super().__init__(message)
        self.code: NotPossibleCode = code


@dataclass(frozen=True, slots=True)
class Credit:
    """amount_minor: tax included. target: None where the invoice is not paid yet: it lowers what is still to pay."""

    amount_minor: int
    target: CreditTarget | None
    credit_for: CreditFor


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked for a credit note, why and for what, as the ledger keeps it. request: tells a wish from another one."""

    reason: str
    request: str | None
    by: str | None
    credit_for: CreditFor


def may_void(invoice: Invoice) -> bool:
    """Whether `void` could be tried, as far as is known. Pure."""
    is_paid = invoice.state == "paid" or (invoice.stripe is not None and invoice.stripe.status == "paid")
    return invoice.fixed is not None and invoice.state != "void" and not is_paid


def creditable_minor(invoice: Invoice) -> int:
    """How much `credit` could still be over, tax included; 0: nothing. Pure."""
    if invoice.fixed is None or invoice.stripe is None or invoice.stripe.status not in _CREDITABLE:
        return 0
    return max(0, invoice.stripe.total_minor - invoice.stripe.credited_minor)


# --- Void -------------------------------------------------------------------------------------------------------------


def void(billing: Billing, invoice: Invoice, reason: str, *, by: str | None = None) -> Invoice:
    """Make an invoice void that is not paid; one that is void already is left so. by: who asked.

    Raises NotPossible, StripeFailure, InvoiceStopped, LedgerUnavailable.
    """
    fixed = invoice.fixed
    if fixed is None:
        raise NotPossible("not_fixed", f"invoice {invoice.id} is not fixed yet: there is nothing to void")
    if invoice.state == "paid":
        raise NotPossible("paid", f"invoice {invoice.id} is paid: credit it instead")
    _begin_void(billing, invoice, fixed, reason, by)
    for _ in range(_ROUNDS_MAX):
        now = billing.invoice(invoice.id)
        if now.state == "void" or _void_once(billing, now, fixed):
            return billing.invoice(invoice.id)
    raise InvoiceStopped("it changes at Stripe while it is being voided; try again")


def _begin_void(billing: Billing, invoice: Invoice, fixed: InvoiceFixed, reason: str, by: str | None) -> None:
    """From its intent on nothing else begins on this invoice."""
    known = invoice.attempt("void")
    if invoice.state != "void" and (known is None or known.may_advance):
        attempt = known.number + 1 if known else 1
        intent = billing.record(fixed, "void", "intent", attempt=attempt)
        billing.log.append(msgspec.structs.replace(intent, memo=reason, by=by))


def _void_once(billing: Billing, invoice: Invoice, fixed: InvoiceFixed) -> bool:
    """Read Stripe's invoice once and act on its status; whether it is void now."""
    account, attempt = fixed.seller.stripe_account_id, invoice.attempt("void")
    assert attempt is not None
    if invoice.stripe_invoice_id is None:
        _discard_unrecorded(billing, fixed)
        billing.log.append(billing.record(fixed, "void", "done", attempt=attempt.number))
        return True
    try:
        seen = billing.api.invoice(invoice.stripe_invoice_id, account)
    except StripeRefused as refused:
        if refused.status != 404:
            raise
        _discarded(billing, fixed, invoice.stripe_invoice_id)
        return False
    if seen["status"] == "draft":
        try:
            billing.api.delete_invoice(seen["id"], account)
        except StripeRefused as refused:  # a run that had begun before has just finalized it
            log.warning("draft_not_deleted", invoice=invoice.id, reason=refused.reason)
            return False
        _discarded(billing, fixed, seen["id"])
        return False
    if seen["status"] == "paid":
        _paid_meanwhile(billing, invoice, fixed, attempt, seen)
    try:
        void_at_stripe(billing, fixed, seen["id"], attempt.memo)
    except StripeRefused:
        seen = billing.api.invoice(seen["id"], account)
        if seen["status"] == "paid":
            _paid_meanwhile(billing, invoice, fixed, attempt, seen)
        raise
    return True


def _discarded(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str) -> None:
    billing.log.append(billing.record(fixed, "discard", "done", object_id=stripe_invoice_id, reason="voided"))


def _discard_unrecorded(billing: Billing, fixed: InvoiceFixed) -> None:
    """A run that was killed may have left a draft that the ledger does not know."""
    account = fixed.seller.stripe_account_id
    for customer in billing.log.state.links(fixed.organization_id, fixed.customer_id, account):
        if customer.stripe_customer_id is None or customer.owner not in (None, billing.api.owner):
            continue
        for stray in of_invoice(billing.api.invoices_of(customer.stripe_customer_id, account), fixed.invoice_id):
            if stray["status"] != "void":
                discard(billing, fixed, stray)


def _paid_meanwhile(billing: Billing, invoice: Invoice, fixed: InvoiceFixed, attempt: Attempt, seen: Json) -> None:
    known = billing.invoice(invoice.id).attempt("void")
    if known is not None and known.phase != "failed":
        failed = billing.record(fixed, "void", "failed", attempt=attempt.number, code="paid", reason="it was paid")
        billing.log.append(failed)
    observe(billing, billing.invoice(invoice.id), seen)
    raise NotPossible("paid", f"invoice {invoice.id} was paid meanwhile: credit it instead")


def reissue(billing: Billing, invoice: Invoice) -> str:
    """Have the next close invoice the cycle of a void invoice again. Returns the id of the next revision."""
    if invoice.state != "void" or invoice.fixed is None:
        raise NotPossible("not_void", f"invoice {invoice.id} is {invoice.state}: only a void one is invoiced anew")
    if not invoice.reissued:
        billing.log.append(billing.record(invoice.fixed, "reissue", "done"))
    return billing.log.state.in_force(invoice.organization_id, invoice.subscription_id, invoice.cycle_start)[0]


# --- Paid twice -------------------------------------------------------------------------------------------------------


def settle_paid_twice(billing: Billing, invoice: Invoice, reason: str, *, by: str) -> Invoice:
    """End the hold of an invoice for which a second Stripe invoice was paid: someone has dealt with the money.

    reason, by: how and who, for the ledger. Raises NotPossible, LedgerUnavailable.
    """
    if not invoice.paid_twice:
        raise NotPossible("not_paid_twice", f"invoice {invoice.id} was not paid twice: there is nothing to settle")
    for stray in invoice.paid_twice:
        settle_second_payment(billing, invoice, stray, reason, by=by)
    return billing.invoice(invoice.id)


# --- Credit -----------------------------------------------------------------------------------------------------------


def credit(
    billing: Billing,
    invoice: Invoice,
    amount_minor: int,
    *,
    refund: bool,
    reason: str,
    credit_for: CreditFor = "goodwill",
    request: str | None = None,
    by: str | None = None,
) -> Invoice:
    """Have Stripe issue a credit note over an amount, tax included; one that was begun and not finished goes first.

    refund: of a paid invoice, back to how it was paid; otherwise to the customer's balance, which the next invoices
    use. Of one that is not paid it lowers what is still to pay. credit_for: `usage` counts as billed less, so that the
    next invoice bills it again unless it is voided too; `goodwill` changes nothing about what was billed. request:
    the same request gives the same credit note. by: who asked. Raises as `void`.
    """
    key = None if request is None else _asked_before(invoice, request)
    if key is not None:
        begun = invoice.steps[key]
        known = (begun.amount_minor, begun.target == "refund", begun.memo, begun.credit_for)
        if known != (amount_minor, refund, reason, credit_for):
            raise NotPossible("request_reused", "this request asked for another credit note before")
    else:
        key = _begin_credit(billing, invoice, amount_minor, Asked(reason, request, by, credit_for), refund=refund)
    now = billing.invoice(invoice.id)
    assert now.fixed is not None
    _issue(billing, now, now.fixed, key)
    return billing.invoice(invoice.id)


def _begin_credit(billing: Billing, invoice: Invoice, amount_minor: int, asked: Asked, *, refund: bool) -> StepKey:
    fixed, seen = invoice.fixed, invoice.stripe
    if fixed is None or seen is None or seen.status not in _CREDITABLE:
        raise _not_issued(invoice)
    if amount_minor <= 0:
        raise NotPossible("invalid_amount", "the amount of a credit note is positive")
    target: CreditTarget | None = None if seen.status != "paid" else ("refund" if refund else "balance")
    if refund and target is None:
        raise NotPossible("not_paid", f"invoice {invoice.id} is not paid: there is nothing to refund")
    return _begun_credit(billing, invoice, fixed, Credit(amount_minor, target, asked.credit_for), asked)


def _asked_before(invoice: Invoice, request: str) -> StepKey | None:
    return next((key for key, each in invoice.steps.items() if key[0] == "credit" and each.request == request), None)


def credit_note_of(invoice: Invoice, request: str) -> InvoiceAdjusted:
    """The credit note that a request made, which is done."""
    key = _asked_before(invoice, request)
    assert key is not None
    made = invoice.steps[key].object_id
    assert made is not None
    return invoice.adjustments[made]


def credit_amount(invoice: Invoice, amount: Decimal) -> int:
    """Minor units of the invoice's currency. Raises NotPossible."""
    if invoice.fixed is None:
        raise _not_issued(invoice)
    try:
        return to_minor(amount, invoice.fixed.currency)
    except NotMinorUnits as error:
        raise NotPossible("invalid_amount", str(error)) from error


def _not_issued(invoice: Invoice) -> NotPossible:
    return NotPossible("not_issued", f"invoice {invoice.id} is {invoice.state}: only what was issued can be credited")


def unfinished_credits(invoice: Invoice) -> list[StepKey]:
    """Credit notes of which it is not known whether Stripe has issued them."""
    return [
        key for key, attempt in invoice.steps.items() if key[0] == "credit" and attempt.phase in ("intent", "unknown")
    ]


def finish_credits(billing: Billing, invoice: Invoice) -> None:
    """Issue what was begun. Raises StripeFailure, InvoiceStopped, LedgerUnavailable."""
    assert invoice.fixed is not None
    for key in unfinished_credits(invoice):
        _issue(billing, invoice, invoice.fixed, key)


def _begun_credit(billing: Billing, invoice: Invoice, fixed: InvoiceFixed, wanted: Credit, asked: Asked) -> StepKey:
    """The credit note to issue: one that was begun, or a new one whose intent is in the ledger."""
    for key in unfinished_credits(invoice):
        attempt = invoice.steps[key]
        begun = Credit(attempt.amount_minor or 0, attempt.target, attempt.credit_for)
        # Another request is another wish, even over the same amount.
        if asked.request is None and begun == wanted:
            return key
        amount = plain(from_minor(begun.amount_minor, fixed.currency))
        raise NotPossible(
            "unfinished", f"a credit note over {amount} was begun and is not finished: ask for that one again first"
        )
    index = 1 + sum(key[0] == "credit" for key in invoice.steps)
    intent = msgspec.structs.replace(
        billing.record(fixed, "credit", "intent", index=index),
        amount_minor=wanted.amount_minor,
        target=wanted.target,
        memo=asked.reason,
        by=asked.by,
        request=asked.request,
        credit_for=asked.credit_for,
    )
    if not billing.log.append(intent):
        raise InvoiceStopped("another credit note was begun at the same time; look at the invoice and try again")
    return ("credit", index)


def _issue(billing: Billing, invoice: Invoice, fixed: InvoiceFixed, key: StepKey) -> None:
    account, stripe_invoice_id = fixed.seller.stripe_account_id, invoice.stripe_invoice_id
    assert stripe_invoice_id is not None
    begun = billing.invoice(invoice.id).steps[key]

    def find() -> Outcome | None:
        for note in billing.api.credit_notes_of(stripe_invoice_id, account):
            if metadata_of(note).get(CREDIT) == str(key[1]):
                return Outcome(note)
        return None

    def call(idempotency_key: str, may_have_run: bool) -> Outcome:
        params = credit_note_params(stripe_invoice_id, key[1], begun)
        return Outcome(billing.api.create_credit_note(params, account, idempotency_key, may_have_run=may_have_run))

    note = take(billing, fixed, key, find=find, call=call)
    record_adjustment(billing, invoice, note)
    for refunded in note.get("refunds") or ():
        record_adjustment(billing, invoice, billing.api.refund(refunded["refund"], account))
    observe(billing, billing.invoice(invoice.id), billing.api.invoice(stripe_invoice_id, account))
