"""billing.ledger records ⇄ JSON. invoice.py and transitions.py: their effect on an invoice. Pure.

Records are keyed by `customer_key`, so that all records of a customer are in one partition, in one order.

Instants are µs since 1970, UTC. Amounts in major units and quantities are decimal strings; `…_minor` are Stripe's
integers. Defaults are left out of the JSON, so that a field added later does not change old records.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from ledger.snapshot import InvoiceFixed, Seller
from schemas.currency import from_minor
from schemas.decimals import plain
from schemas.partition import customer_key
from schemas.period import format_rfc3339

IDEMPOTENCY_ERROR = "idempotency_error"
"""Stripe's error code for an idempotency key that was used with other parameters: our fault, so the invoice stops."""

State = Literal["waiting", "computed", "draft", "open", "paid", "payment_failed", "uncollectible", "mismatch", "void"]
StepName = Literal[
    "wait",
    "gate",
    "approve",
    "retry",
    "draft",
    "item",
    "finalize",
    "pay",
    "void",
    "reissue",
    "settle",
    "credit",
    "observe",
    "discard",
    "problem",
    "seller",
    "customer",
]
WaitCode = Literal["no_sink", "clickhouse_away", "not_stored", "not_committed", "incomplete_count", "not_computed"]
"""Why an invoice is `waiting`. `not_computed`: this invoice alone failed, others were computed."""
HoldCode = Literal["quantity", "subtotal", "charged_twice", "amount_above_maximum"]
"""Why an invoice is a `mismatch`: usage counts differ, Stripe's subtotal differs, a second payment, an amount above
Stripe's maximum."""
Phase = Literal["intent", "done", "failed", "unknown"]
StripeStatus = Literal["draft", "open", "paid", "uncollectible", "void"]
CreditFor = Literal["usage", "goodwill"]
"""Reason of a credit note: usage that should not have been billed, or goodwill without any change of usage."""
CreditTarget = Literal["balance", "refund"]
"""Receiver of a credit on a paid invoice: the customer's balance (lowers the next invoice) or the card."""

AdjustmentKind = Literal["credit_note", "refund", "dispute"]
# Statuses that Stripe rarely changes again. It still may: a refund that succeeded can fail later, a dispute that was
# lost can be won on appeal.
_SETTLED: Mapping[AdjustmentKind, frozenset[str]] = MappingProxyType(
    {
        "credit_note": frozenset({"issued", "void"}),
        "refund": frozenset({"succeeded", "failed", "canceled"}),
        "dispute": frozenset({"won", "lost", "warning_closed", "prevented"}),
    }
)

NO_PAYMENT_METHOD = "no_payment_method"
ACTION_REQUIRED = "action_required"
"""Codes of a failed `pay` that only the customer can resolve."""
PAYMENT_PROCESSING = "payment_processing"
"""Reason of an open invoice with a bank debit under way (SEPA, ACH, Bacs, BECS): the bank answers within days."""


class UnreadableLedgerRecord(ValueError):
    """Bytes in the ledger that are not a record. Every reader ignores them."""


class StripeInvoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """An invoice as Stripe returned it. Only subtotal_minor (before tax and discount) is ever compared with ours.

    seen_at: µs, when it was read.
    tax_minor: None: Stripe has not computed it.
    applied_balance_minor: settled through the customer's balance instead of a payment (credit used, or an amount too
        small to charge, carried forward); negative: a debt collected with this invoice.
    amount_remaining_minor: None in records older than the field.
    credited_minor: sum of credit notes.
    attempted, attempt_count: whether, and how often, Stripe tried to collect payment.
    next_payment_attempt: µs; None: no attempt is planned.
    finalized_at, due_date, paid_at: µs; None: not yet, or no due date.
    finalization_error: Stripe's message; None: no error.
    processing: a payment is under way that has neither succeeded nor failed.
    payment_error: message of the last failed payment; None also where the invoice was read without its payments.
    """

    id: str
    status: StripeStatus
    subtotal_minor: int
    total_minor: int
    amount_due_minor: int
    amount_paid_minor: int
    seen_at: int
    tax_minor: int | None = None
    applied_balance_minor: int = 0
    amount_remaining_minor: int | None = None
    credited_minor: int = 0
    number: str | None = None
    hosted_invoice_url: str | None = None
    invoice_pdf: str | None = None
    attempted: bool = False
    attempt_count: int = 0
    next_payment_attempt: int | None = None
    finalized_at: int | None = None
    due_date: int | None = None
    paid_at: int | None = None
    finalization_error: str | None = None
    processing: bool = False
    payment_error: str | None = None


class InvoiceStep(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="invoice_step"):
    """An intent before a call to Stripe, or the result of the call; or a decision about the invoice.

    step:
        `wait`: not computed yet; reason and code say why.
        `gate`: comparison of the totals.
        `approve`: somebody allowed the charge.
        `retry`: somebody asked for another attempt now.
        `draft`, `item` (index: of the line), `finalize`: the call of that name.
        `pay`: a refused payment is `done` too, because Stripe retries it.
        `void`: nothing else begins after its intent.
        `reissue`: the cycle of a void invoice is invoiced again, by the next revision.
        `settle`: object_id, a second Stripe invoice that was paid for the same cycle, is resolved; memo and by say how
            and by whom.
        `credit` (index: of the credit note): amount_minor goes to target.
        `observe`: the Stripe invoice was read again.
        `discard`: object_id, a draft, is deleted; a second draft, or the draft in use.
        `problem`: the invoice could not be handled; reason says why, and nothing was done.
        `seller`: its settings at Stripe were corrected before anything existed at Stripe.
        `customer`: its customer could not be created or read at Stripe.
    phase: `failed` is certain and lets the next attempt begin; `unknown` leaves the attempt as it is.
    at: µs.
    object_id: id of the object at Stripe.
    code: Stripe's error code, or ours.
    stripe: the invoice that the call returned.
    memo: reason that a person gave for a void or credit.
    by: id of the API key, or name of the user, that asked for it.
    request: digest of the Idempotency-Key of a request for a credit.
    subscription_id, cycle_start, cycle_end: set for `wait`, which precedes the snapshot of the invoice.
    """

    invoice_id: str
    organization_id: str
    customer_id: str
    step: StepName
    phase: Phase
    at: int
    attempt: int = 1
    index: int = 0
    object_id: str | None = None
    code: str | None = None
    reason: str | None = None
    stripe: StripeInvoice | None = None
    amount_minor: int | None = None
    target: CreditTarget | None = None
    memo: str | None = None
    by: str | None = None
    request: str | None = None
    seller: Seller | None = None
    credit_for: CreditFor = "goodwill"
    subscription_id: str | None = None
    cycle_start: int | None = None
    cycle_end: int | None = None
    writer: str = ""


class OrderRecorded(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="order_recorded"):
    """A paid invoice's order; the first record of an invoice id is valid. amount_paid: major units, from Stripe."""

    order_id: str
    invoice_id: str
    organization_id: str
    customer_id: str
    subscription_id: str
    currency: str
    amount_paid: str
    amount_paid_minor: int
    paid_at: int
    recorded_at: int
    writer: str = ""


class StripeCustomer(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="stripe_customer"):
    """A customer at Stripe.

    phase: `intent`: about to be created; `done`: created, and the first record of an account is valid; `failed` with
        a stripe_customer_id: that customer no longer exists at Stripe.
    at: µs.
    stripe_account_id: connected account; None: the operator's own.
    payment_method: as the catalog names it; set by later `done` records of the same stripe_customer_id.
    default_payment_method: its id at Stripe after it was attached; None: not attached, reason says why.
    details: digest of name, address and so on, as they were sent; None: the merchant named an existing Stripe customer,
        whose details are kept at Stripe.
    owner: account and mode of the Stripe key that created it (`acct_1AbC:test`); None: older than the field.
    replaces: the previous stripe_customer_id.
    """

    organization_id: str
    customer_id: str
    phase: Phase
    at: int
    attempt: int = 1
    stripe_account_id: str | None = None
    stripe_customer_id: str | None = None
    payment_method: str | None = None
    default_payment_method: str | None = None
    details: str | None = None
    code: str | None = None
    reason: str | None = None
    owner: str | None = None
    replaces: str | None = None
    writer: str = ""


class InvoiceAdjusted(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="invoice_adjusted"):
    """A credit note, refund or dispute of an issued invoice, as Stripe returned it. The last read of an id counts.

    amount_minor: in the object's own currency, with tax.
    status: Stripe's (`issued`, `void`; `pending`, `succeeded`, `failed`, …; `needs_response`, `won`, `lost`, …).
    created_at, seen_at: µs; seen_at: when it was read.
    net_minor: without tax, of a credit note; None for the others.
    number: of the document; None: it has none.
    credit_for: of a credit note. One created at Stripe is goodwill, unless its metadata say otherwise.
    """

    invoice_id: str
    organization_id: str
    customer_id: str
    adjustment: AdjustmentKind
    object_id: str
    amount_minor: int
    currency: str
    status: str
    created_at: int
    seen_at: int
    net_minor: int | None = None
    number: str | None = None
    reason: str | None = None
    writer: str = ""
    credit_for: CreditFor = "goodwill"

    @property
    def settled(self) -> bool:
        """Whether its status is one that Stripe rarely changes again."""
        return self.status in _SETTLED[self.adjustment]

    def document(self) -> dict[str, Any]:
        """The adjustment as the API returns it: amount in major units, instants in RFC 3339."""
        return {
            "type": self.adjustment,
            "id": self.object_id,
            "amount": plain(from_minor(self.amount_minor, self.currency)),
            "currency": self.currency,
            "status": self.status,
            "reason": self.reason,
            "number": self.number,
            "created_at": format_rfc3339(self.created_at),
            "for": self.credit_for if self.adjustment == "credit_note" else None,
        }


LedgerRecord = InvoiceFixed | InvoiceStep | OrderRecorded | StripeCustomer | InvoiceAdjusted

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[LedgerRecord] = msgspec.json.Decoder(LedgerRecord)


def encode(record: LedgerRecord) -> bytes:
    """JSON with a `kind`, readable with Kafka's own tools."""
    return _encoder.encode(record)


def decode(message: bytes) -> LedgerRecord:
    """Raises UnreadableLedgerRecord for bytes that are not a record."""
    try:
        return _decoder.decode(message)
    except (msgspec.DecodeError, ValueError) as error:
        raise UnreadableLedgerRecord(str(error)) from error


def record_key(record: LedgerRecord) -> bytes:
    """Key of the Kafka message; `partition_of` the same two ids is its partition."""
    return customer_key(record.organization_id, record.customer_id).encode()
