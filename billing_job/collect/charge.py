"""a fixed invoice → draft, items, gate, finalized, paid at Stripe; its order recorded. Each step at most once.

Which Stripe invoice belongs to an invoice is decided by the ledger: the first draft recorded. Only that one is ever
finalized, so whatever a run that was killed or overtaken leaves behind is a draft that nobody pays, and is removed.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from billing_job.collect.draft_items import has_other_items, put_items
from billing_job.collect.steps import (
    Billing,
    InvoiceStopped,
    Outcome,
    take,
)
from billing_job.invoice.checks import above_maximum, explain_differences, subtotal_differences
from billing_job.stripe.api import Json
from billing_job.stripe.errors import IdempotencyMisuse, StripeDeclined, StripeFailure, StripeRefused
from billing_job.stripe.objects import (
    invoice_key,
    invoice_params,
    of_invoice,
    seen_invoice,
)
from ledger.invoice import PAYABLE, Invoice, StepKey
from ledger.records import (
    ACTION_REQUIRED,
    NO_PAYMENT_METHOD,
    PAYMENT_PROCESSING,
    HoldCode,
    OrderRecorded,
    StripeInvoice,
)
from ledger.snapshot import InvoiceFixed, order_id
from schemas.currency import from_minor
from schemas.decimals import plain

log = structlog.get_logger(__name__)

_DRAFT: StepKey = ("draft", 0)
_FINALIZE: StepKey = ("finalize", 0)
_PAY: StepKey = ("pay", 0)
_VOID: StepKey = ("void", 0)
# Source: Stripe, "Error codes" and "Decline codes": what a payment without the customer at hand is answered with.
_CUSTOMER_MUST_ACT = frozenset(
    {"invoice_payment_intent_requires_action", "authentication_required", "authentication_not_handled"}
)
# Of several that a lost ledger left behind, the one that went furthest is the one.
_ADOPTED_FIRST = ("paid", "open", "uncollectible", "draft", "void")


def settle_zero(billing: Billing, fixed: InvoiceFixed) -> Invoice:
    """An invoice of 0 has nothing to charge: no Stripe invoice, paid, an order of 0. The counts agree already."""
    pass_gate(billing, fixed)
    now = billing.clock()
    _record_order(billing, fixed, amount_paid_minor=0, paid_at=now)
    return billing.invoice(fixed.invoice_id)


def settle(billing: Billing, fixed: InvoiceFixed, stripe_customer_id: str, listed: Callable[[], list[Json]]) -> Invoice:
    """Take the invoice as far as it goes: the counts agree already, Stripe's subtotal is still to.

    listed: the customer's invoices at Stripe as they were when its first invoice was looked at.
    Raises StripeFailure with the result recorded, InvoiceStopped, LedgerUnavailable.
    """
    account = fixed.seller.stripe_account_id
    seen, fresh = _draft(billing, fixed, stripe_customer_id, listed)
    if seen["status"] == "draft" and not fresh and has_other_items(billing, fixed, seen["id"]):
        billing.api.delete_invoice(seen["id"], account)
        _abandon(billing, fixed, seen["id"], "draft was begun with other items")
        seen, fresh = _draft(
            billing, fixed, stripe_customer_id, lambda: billing.api.invoices_of(stripe_customer_id, account)
        )
    if seen["status"] == "draft":
        put_items(billing, fixed, seen["id"], stripe_customer_id, fresh=fresh)
        seen = billing.api.invoice(seen["id"], account)
        if not _subtotal_agrees(billing, fixed, seen):
            return billing.invoice(fixed.invoice_id)
        # Only the draft shows the tax, and a finalized invoice is visible to the customer: check before finalizing.
        if reason := above_maximum(fixed, billing.digits_max, seen["total"]):
            hold(billing, fixed, "amount_above_maximum", reason)
            return billing.invoice(fixed.invoice_id)
        pass_gate(billing, fixed)
        seen = _finalize(billing, fixed, seen["id"])
    else:
        observe(billing, billing.invoice(fixed.invoice_id), seen)
    if seen["status"] in ("open", "paid") and not _subtotal_agrees(billing, fixed, seen):
        if seen["status"] == "open":  # Stripe would charge it automatically
            void_at_stripe(billing, fixed, seen["id"], "its subtotal is another than ours")
        return billing.invoice(fixed.invoice_id)
    if seen["status"] in PAYABLE and fixed.seller.collection_method == "charge_automatically":
        _pay(billing, fixed, seen["id"])
    return record_order_if_paid(billing, fixed.invoice_id)


def observe(billing: Billing, invoice: Invoice, seen: Json) -> Invoice:
    """Record Stripe's view of an invoice where it changed, and the order when it is paid."""
    assert invoice.fixed is not None
    failure: Json | None = seen.get("last_finalization_error") if seen["status"] == "draft" else None
    reason = f"not finalized: {failure.get('message')}" if failure else None
    record = billing.record(invoice.fixed, "observe", "done", seen=seen, reason=reason)
    if record.stripe is not None and record.stripe.status == "open" and record.stripe.payment_error:
        record = msgspec.structs.replace(record, reason=record.stripe.payment_error)
    if record.stripe is not None and is_news(record.stripe, invoice.stripe):
        billing.log.append(record)
    return record_order_if_paid(billing, invoice.id)


def is_news(seen: StripeInvoice, known: StripeInvoice | None) -> bool:
    """Whether the facts say anything that the ledger does not have."""
    return known is None or msgspec.structs.replace(seen, seen_at=known.seen_at) != known


def record_order_if_paid(billing: Billing, invoice_id: str) -> Invoice:
    """The order of an invoice that Stripe shows as paid, once."""
    invoice = billing.invoice(invoice_id)
    if invoice.state == "paid" and invoice.order is None:
        assert invoice.fixed is not None
        assert invoice.stripe is not None
        _record_order(
            billing,
            invoice.fixed,
            amount_paid_minor=invoice.stripe.amount_paid_minor,
            paid_at=invoice.stripe.paid_at or invoice.stripe.seen_at,
        )
    return billing.invoice(invoice_id)


def _record_order(billing: Billing, fixed: InvoiceFixed, *, amount_paid_minor: int, paid_at: int) -> None:
    if billing.invoice(fixed.invoice_id).order is not None:
        return
    billing.log.append(
        OrderRecorded(
            order_id=order_id(fixed.invoice_id),
            invoice_id=fixed.invoice_id,
            organization_id=fixed.organization_id,
            customer_id=fixed.customer_id,
            subscription_id=fixed.subscription_id,
            currency=fixed.currency,
            amount_paid=plain(from_minor(amount_paid_minor, fixed.currency)),
            amount_paid_minor=amount_paid_minor,
            paid_at=paid_at,
            recorded_at=billing.clock(),
            writer=billing.log.writer,
        )
    )


# --- Gate -------------------------------------------------------------------------------------------------------------


def pass_gate(billing: Billing, fixed: InvoiceFixed) -> None:
    if billing.invoice(fixed.invoice_id).gate != "done":
        billing.log.append(billing.record(fixed, "gate", "done"))


def hold(billing: Billing, fixed: InvoiceFixed, code: HoldCode, reason: str) -> None:
    """Record that the totals differ; the same reason is not recorded twice."""
    invoice = billing.invoice(fixed.invoice_id)
    if invoice.gate != "failed" or invoice.reason != reason:
        billing.log.append(billing.record(fixed, "gate", "failed", code=code, reason=reason))


def _subtotal_agrees(billing: Billing, fixed: InvoiceFixed, seen: Json) -> bool:
    differences = subtotal_differences(fixed, seen["subtotal"])
    if differences:
        reason = explain_differences(differences)
        log.error("invoice_held", invoice=fixed.invoice_id, stripe_invoice=seen["id"], reason=reason)
        hold(billing, fixed, "subtotal", reason)
    return not differences


# --- Draft ------------------------------------------------------------------------------------------------------------


def _draft(
    billing: Billing, fixed: InvoiceFixed, stripe_customer_id: str, listed: Callable[[], list[Json]]
) -> tuple[Json, bool]:
    """The Stripe invoice in use, and whether this run has just made it, empty."""
    account = fixed.seller.stripe_account_id
    invoice = billing.invoice(fixed.invoice_id)
    if invoice.stripe_invoice_id is not None:
        seen = _in_use(billing, fixed, invoice.stripe_invoice_id, stripe_customer_id)
        if seen is not None:
            return seen, False
    made_here = False

    def find() -> Outcome | None:
        return _adopted(of_invoice(billing.api.invoices_of(stripe_customer_id, account), fixed.invoice_id))

    def make(key: str, may_have_run: bool) -> Outcome:
        nonlocal made_here
        # The ledger has no draft, but Stripe may: after the ledger was lost and recreated.
        known = None if may_have_run else _adopted(of_invoice(listed(), fixed.invoice_id))
        if known is not None:
            return known
        now = billing.invoice(fixed.invoice_id).fixed
        if now is None or now.seller != fixed.seller:  # corrected by another run, a moment before this one's intent
            raise InvoiceStopped("its settings changed meanwhile; the next run makes it with the new ones")
        made = billing.api.create_invoice(
            invoice_params(fixed, stripe_customer_id), account, key, may_have_run=may_have_run
        )
        made_here = not may_have_run
        return Outcome(made)

    found = take(billing, fixed, _DRAFT, find=find, call=make)
    in_use = billing.invoice(fixed.invoice_id).stripe_invoice_id
    if in_use is None:
        raise InvoiceStopped("another run has begun the draft anew")
    if in_use != found["id"]:
        discard(billing, fixed, found)
        return billing.api.invoice(in_use, account), False
    if found["status"] == "open":  # out of a listing, which does not show how its payment stands
        found = billing.api.invoice(in_use, account)
    return found, made_here


def _in_use(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str, stripe_customer_id: str) -> Json | None:
    """The Stripe invoice that the ledger names; None: it is discarded, and another one is to be made."""
    account = fixed.seller.stripe_account_id
    # Stripe deletes drafts only; another Stripe account does not know the draft.
    why = "draft was deleted"
    try:
        seen = billing.api.invoice(stripe_invoice_id, account)
        if seen["status"] != "draft" or seen["customer"] == stripe_customer_id:
            return seen
        why = "draft was of another customer at Stripe"
        billing.api.delete_invoice(stripe_invoice_id, account)
    except StripeRefused as refused:
        if refused.status != 404:
            raise
    _abandon(billing, fixed, stripe_invoice_id, why)
    return None


def _abandon(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str, reason: str) -> None:
    """Record that the draft in use is deleted: the next one and its items are made under new keys."""
    if not billing.log.append(billing.record(fixed, "discard", "done", object_id=stripe_invoice_id, reason=reason)):
        raise InvoiceStopped(f"Stripe does not know its finalized invoice {stripe_invoice_id}")


def _adopted(found: list[Json]) -> Outcome | None:
    """Of the Stripe invoices made for one of ours, oldest first, the one to use."""
    for status in _ADOPTED_FIRST:
        for thing in found:
            if thing["status"] == status:
                return Outcome(thing)
    return None


def discard(billing: Billing, fixed: InvoiceFixed, stray: Json) -> None:
    """Remove a Stripe invoice that is not the one in use: a draft is deleted, an open one voided."""
    account = fixed.seller.stripe_account_id
    log.warning("second_stripe_invoice", invoice=fixed.invoice_id, stray=stray["id"], status=stray["status"])
    match stray["status"]:
        case "draft":
            billing.api.delete_invoice(stray["id"], account)
        case "open" | "uncollectible":
            billing.api.void(stray["id"], account, invoice_key(stray["id"], "void", 0, 1), may_have_run=True)
        case "paid":
            known = billing.invoice(fixed.invoice_id)
            if stray["id"] in (*known.paid_twice, *known.settled):
                return
            log.critical("charged_twice", invoice=fixed.invoice_id, stray=stray["id"])
            reason = f"Stripe invoice {stray['id']} was paid for the same cycle: refund it"
            record = billing.record(fixed, "gate", "failed", code="charged_twice", reason=reason, object_id=stray["id"])
            billing.log.append(record)
            return
        case _:
            return
    billing.log.append(
        billing.record(fixed, "discard", "done", object_id=stray["id"], reason=f"a second one, {stray['status']}")
    )


def discard_strays(billing: Billing, invoice: Invoice, listed: list[Json]) -> None:
    """Remove what the listing holds for an invoice besides the one in use."""
    if invoice.fixed is None or invoice.stripe_invoice_id is None:
        return
    for thing in of_invoice(listed, invoice.id):
        if thing["id"] != invoice.stripe_invoice_id and thing["status"] != "void":
            discard(billing, invoice.fixed, thing)


# --- Finalize, pay ----------------------------------------------------------------------------------------------------


def _finalize(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str) -> Json:
    account = fixed.seller.stripe_account_id

    def find() -> Outcome | None:
        seen = billing.api.invoice(stripe_invoice_id, account)
        return None if seen["status"] == "draft" else Outcome(seen)

    def call(key: str, may_have_run: bool) -> Outcome:
        return Outcome(billing.api.finalize(stripe_invoice_id, account, key, may_have_run=may_have_run))

    return take(billing, fixed, _FINALIZE, find=find, call=call)


def _pay(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str) -> None:
    """One attempt of ours at the payment. Whatever it brings, what follows is Stripe's schedule."""
    account = fixed.seller.stripe_account_id
    known = billing.invoice(fixed.invoice_id).attempt("pay")
    if known is not None and known.phase == "done":
        return

    def find() -> Outcome | None:
        seen = billing.api.invoice(stripe_invoice_id, account)
        attempt = billing.invoice(fixed.invoice_id).attempt("pay")
        if seen["status"] not in PAYABLE:
            return Outcome(seen)
        if seen_invoice(seen, billing.clock()).processing:
            return _processing(seen)
        # Stripe's invoice does not show which attempt failed: repeat the call with the same key.
        is_first = attempt is None or attempt.number == 1
        failed = Outcome(seen, code="payment_failed", reason="the payment failed")
        return failed if seen["attempted"] and is_first else None

    def call(key: str, may_have_run: bool) -> Outcome:
        try:
            paid = billing.api.pay(stripe_invoice_id, account, key, may_have_run=may_have_run)
            if paid["status"] not in PAYABLE:
                return Outcome(paid)
            # A bank debit is answered in days. How it stands only the payment says, which this answer leaves out.
            return _processing(billing.api.invoice(stripe_invoice_id, account))
        except StripeDeclined as declined:
            refusal: StripeFailure = declined
            code = ACTION_REQUIRED if declined.code in _CUSTOMER_MUST_ACT else declined.code
        except StripeRefused as refused:
            # 400: there is nothing to pay with, or it is paid already. To ask again would bring the same.
            if refused.status != 400 or isinstance(refused, IdempotencyMisuse):
                raise
            refusal, code = refused, NO_PAYMENT_METHOD
        seen = billing.api.invoice(stripe_invoice_id, account)
        if seen["status"] == "paid":
            return Outcome(seen)
        if seen_invoice(seen, billing.clock()).processing:  # it was refused because one is under way
            return _processing(seen)
        return Outcome(seen, code, refusal.reason)

    take(billing, fixed, _PAY, find=find, call=call)


def _processing(seen: Json) -> Outcome:
    return Outcome(seen, PAYMENT_PROCESSING, PAYMENT_PROCESSING) if seen["status"] in PAYABLE else Outcome(seen)


def void_at_stripe(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str, reason: str | None) -> None:
    """Void what is open or uncollectible. Raises as `settle`."""
    account = fixed.seller.stripe_account_id

    def find() -> Outcome | None:
        seen = billing.api.invoice(stripe_invoice_id, account)
        return Outcome(seen, reason=reason) if seen["status"] == "void" else None

    def call(key: str, may_have_run: bool) -> Outcome:
        return Outcome(billing.api.void(stripe_invoice_id, account, key, may_have_run=may_have_run), reason=reason)

    take(billing, fixed, _VOID, find=find, call=call)
