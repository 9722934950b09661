"""events of Stripe → ledger: an event is a hint. The object that it names is read again, and recorded as it is.

Webhooks bring events, and the poller lists those that never came: both end here, so that it makes no difference in
which order, how often, or how late an event comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec
import structlog

from billing_job.collect.charge import is_news, observe
from billing_job.collect.steps import Billing
from billing_job.stripe.api import Json
from billing_job.stripe.errors import StripeRefused
from billing_job.stripe.objects import seen_adjustment, seen_invoice
from ledger.invoice import Invoice
from ledger.records import AdjustmentKind, InvoiceAdjusted, StripeInvoice
from ledger.transitions import is_newer

log = structlog.get_logger(__name__)

# What changes an invoice without us. Other events, also of later versions, are answered and left alone.
OF_AN_INVOICE = (
    "invoice.finalization_failed",
    "invoice.marked_uncollectible",
    "invoice.overdue",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_failed",
    "invoice.voided",
)
OF_AN_ADJUSTMENT: Mapping[str, AdjustmentKind] = {
    "credit_note.created": "credit_note",
    "credit_note.updated": "credit_note",
    "credit_note.voided": "credit_note",
    "refund.created": "refund",
    "refund.updated": "refund",
    "refund.failed": "refund",
    "charge.refund.updated": "refund",
    "charge.dispute.created": "dispute",
    "charge.dispute.updated": "dispute",
    "charge.dispute.closed": "dispute",
    "charge.dispute.funds_reinstated": "dispute",
    "charge.dispute.funds_withdrawn": "dispute",
}

Outcome = Literal["ignored", "known", "applied"]


@dataclass(frozen=True, slots=True)
class Hint:
    """The object that an event names. account: the connected account that it is of; None: the owner's, or not said."""

    type: str
    thing: Json
    account: str | None

    @property
    def id(self) -> str:
        return self.thing["id"]


def hint_of(event: Mapping[str, Any]) -> Hint | None:
    """None: nothing that could be of ours to act on. Pure."""
    kind, data, account = event.get("type"), event.get("data"), event.get("account")
    thing: object = cast("dict[str, Any]", data).get("object") if isinstance(data, dict) else None
    if not isinstance(kind, str) or (kind not in OF_AN_INVOICE and kind not in OF_AN_ADJUSTMENT):
        return None
    if not isinstance(thing, dict) or not isinstance(cast("dict[str, Any]", thing).get("id"), str):
        return None
    return Hint(kind, cast("dict[str, Any]", thing), account if isinstance(account, str) else None)


def apply_event(billing: Billing, event: Mapping[str, Any]) -> Outcome:
    """Raises StripeFailure, LedgerUnavailable."""
    hint = hint_of(event)
    if hint is None:
        return "ignored"
    try:
        if hint.type in OF_AN_INVOICE:
            return _apply_to_invoice(billing, hint)
        return _apply_adjustment(billing, hint, OF_AN_ADJUSTMENT[hint.type])
    except StripeRefused as refused:
        if refused.status == 404:  # what was named is not there: made up, or of an account that is not ours
            return "ignored"
        raise


def _apply_to_invoice(billing: Billing, hint: Hint) -> Outcome:
    invoice = _invoice_of(billing, hint.id, hint.account)
    if invoice is None:
        return "ignored"  # of nobody, or of a draft that its run is about to record
    if not is_news(_hinted(billing, hint, invoice), invoice.stripe):
        return "known"
    after = _read_again(billing, invoice)
    log.info("stripe_news", type=hint.type, invoice=invoice.id, before=invoice.state, after=after.state)
    return "applied"


def _hinted(billing: Billing, hint: Hint, invoice: Invoice) -> StripeInvoice:
    """What the event says of an invoice; of its payments it says nothing, so one that was under way is looked at."""
    hinted, known = seen_invoice(hint.thing, billing.clock()), invoice.stripe
    if known is None or known.processing:
        return hinted
    return msgspec.structs.replace(hinted, payment_error=known.payment_error)


def _invoice_of(billing: Billing, stripe_invoice_id: str, account: str | None) -> Invoice | None:
    invoice = billing.log.state.by_stripe_id(stripe_invoice_id)
    if invoice is None or invoice.fixed is None:
        return None
    return invoice if account in (None, invoice.fixed.seller.stripe_account_id) else None


def _read_again(billing: Billing, invoice: Invoice) -> Invoice:
    assert invoice.fixed is not None
    assert invoice.stripe_invoice_id is not None
    seen = billing.api.invoice(invoice.stripe_invoice_id, invoice.fixed.seller.stripe_account_id)
    return observe(billing, billing.invoice(invoice.id), seen)


# --- Credit notes, refunds, disputes ----------------------------------------------------------------------------------


def _apply_adjustment(billing: Billing, hint: Hint, kind: AdjustmentKind) -> Outcome:
    if is_known(billing, hint.thing, kind):
        return "known"
    seen = read_adjustment(billing, kind, hint.id, hint.account)
    invoice = _adjusted_invoice(billing, seen, hint.account)
    if invoice is None:
        return _settle_refunded(billing, seen, hint.account)
    record_adjustment(billing, invoice, seen)
    _read_again(billing, invoice)
    log.info("stripe_news", type=hint.type, invoice=invoice.id, adjustment=seen["id"], status=seen["status"])
    return "applied"


def _settle_refunded(billing: Billing, refund: Json, account: str | None) -> Outcome:
    """A second payment for an invoice that was paid twice is back with the customer: a full refund ends the hold."""
    intent: str | None = refund.get("payment_intent")
    if refund["object"] != "refund" or intent is None or not refund.get("charge"):
        return "ignored"
    for payment in billing.api.payments_of(intent, account):
        stray: str = payment["invoice"]
        invoice = billing.log.state.by_second_payment(stray)
        if invoice is None or invoice.fixed is None or stray not in invoice.paid_twice:
            continue
        if account not in (None, invoice.fixed.seller.stripe_account_id):
            continue
        if not billing.api.charge(refund["charge"], account)["refunded"]:
            return "known"
        settle_second_payment(billing, invoice, stray, f"refund {refund['id']} of Stripe invoice {stray}", by=None)
        return "applied"
    return "ignored"


def settle_second_payment(billing: Billing, invoice: Invoice, stray: str, reason: str, *, by: str | None) -> None:
    """Record that a second payment was dealt with. by: who did; None: Stripe says so."""
    assert invoice.fixed is not None
    record = billing.record(invoice.fixed, "settle", "done", object_id=stray)
    billing.log.append(msgspec.structs.replace(record, memo=reason, by=by))
    log.info("second_payment_settled", invoice=invoice.id, stray=stray, reason=reason, by=by)


def is_known(billing: Billing, thing: Json, kind: AdjustmentKind) -> bool:
    """Whether the ledger has the object as the hint shows it."""
    known = billing.log.state.adjustment(thing["id"])
    if known is None or known.adjustment != kind:
        return False
    shown = (thing.get("status"), thing.get("amount"))
    return shown == (known.status, known.amount_minor)


def read_adjustment(billing: Billing, kind: AdjustmentKind, object_id: str, account: str | None) -> Json:
    """The object as Stripe has it now."""
    match kind:
        case "credit_note":
            return billing.api.credit_note(object_id, account)
        case "refund":
            return billing.api.refund(object_id, account)
        case "dispute":
            return billing.api.dispute(object_id, account)


def _adjusted_invoice(billing: Billing, seen: Json, account: str | None) -> Invoice | None:
    known = billing.log.state.adjustment(seen["id"])
    if known is not None:
        return billing.log.state.get(known.invoice_id)
    if seen["object"] == "credit_note":
        return _invoice_of(billing, seen["invoice"], account)
    intent: str | None = seen.get("payment_intent")
    if intent is None:  # every payment of an invoice has one
        return None
    paid = (_invoice_of(billing, each["invoice"], account) for each in billing.api.payments_of(intent, account))
    return next((invoice for invoice in paid if invoice is not None), None)


def record_adjustment(billing: Billing, invoice: Invoice, seen: Json) -> InvoiceAdjusted:
    """Record Stripe's view of a credit note, refund or dispute, where it changed."""
    assert invoice.fixed is not None
    record = seen_adjustment(seen, invoice.fixed, billing.clock(), billing.log.writer)
    known = billing.invoice(invoice.id).adjustments.get(record.object_id)
    if known is None or is_newer(record, known):
        billing.log.append(record)
    if record.adjustment == "dispute" and known is None:
        log.warning("payment_disputed", invoice=invoice.id, dispute=record.object_id, reason=record.reason)
    return record
