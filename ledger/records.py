"""billing.ledger records ⇄ JSON, and the ids that they carry. What they come to: invoice_ledger.py. Pure.

Records are keyed by `customer_key`, so that all of a customer's lie in one partition, in one order.

Instants are µs since 1970, UTC. Amounts in major units and quantities are decimal strings; `…_minor` are Stripe's
integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from schemas.currency import from_minor
from schemas.customer import CollectionMethod
from schemas.decimals import plain
from schemas.meter import Meter
from schemas.partition import customer_key
from schemas.period import Cycle, format_rfc3339
from schemas.product import Product
from schemas.watermark import Watermark
from schemas.watermark import from_json as watermark_from_json

FIRST_REVISION = 1
IDEMPOTENCY_ERROR = "idempotency_error"
"""Stripe's word for a key that was used with other parameters: our own fault, so the invoice stops there."""

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
"""Why an invoice is `waiting`; `not_computed`: of its own fault, the others went on."""
HoldCode = Literal["quantity", "subtotal", "charged_twice", "amount_above_maximum"]
"""Why an invoice is a `mismatch`: a count, Stripe's subtotal, a second payment, or more than Stripe charges."""
Phase = Literal["intent", "done", "failed", "unknown"]
StripeStatus = Literal["draft", "open", "paid", "uncollectible", "void"]
CreditFor = Literal["usage", "goodwill"]
"""What a credit note is for: usage that should not have been billed, or nothing that was used."""
CreditTarget = Literal["balance", "refund"]
"""Where a credit for what is paid already goes: to what the customer pays next, or back to the card."""

AdjustmentKind = Literal["credit_note", "refund", "dispute"]
# What Stripe may still change: a refund that succeeded can fail later, a dispute that was lost can be won on appeal.
_SETTLED: Mapping[AdjustmentKind, frozenset[str]] = MappingProxyType(
    {
        "credit_note": frozenset({"issued", "void"}),
        "refund": frozenset({"succeeded", "failed", "canceled"}),
        "dispute": frozenset({"won", "lost", "warning_closed", "prevented"}),
    }
)

NO_PAYMENT_METHOD = "no_payment_method"
ACTION_REQUIRED = "action_required"
"""Codes of a `pay` whose failure is for the customer to put right."""
PAYMENT_PROCESSING = "payment_processing"
"""Reason of an open invoice whose debit is under way (SEPA, ACH, Bacs, BECS): the bank answers in days."""


class UnreadableLedgerRecord(ValueError):
    """Bytes in the ledger that are not a record. Every reader ignores them."""


# Defaults are left out of the JSON, so that a field added later changes neither old records nor their hashes.

# --- Records ----------------------------------------------------------------------------------------------------------


class TierPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one tier adds to a line: the units in (from_exclusive, up_to_inclusive], each at unit_amount; unrounded."""

    from_exclusive: str
    up_to_inclusive: str | None
    quantity: str
    unit_amount: str
    amount: str


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One price on an invoice, or what a `Correction` comes to. amount: major units, rounded; before tax.

    meter_id None: flat fee, minimum or correction. corrects: the invoice that a correction belongs to. price_index: -1
    of a correction. period_start, period_end: µs, of a line about another time than the invoice's own. late_meter_id,
    late_meter: id and name of the meter whose late or voided usage it is; None: of no single one. late_quantity: by how
    much the cycle's total of that meter changed.
    """

    meter_id: str | None
    price_index: int
    model: str
    description: str
    quantity: str
    included: str
    priced_quantity: str
    amount: str
    amount_minor: int
    tiers: tuple[TierPart, ...] = ()
    corrects: str | None = None
    period_start: int | None = None
    period_end: int | None = None
    late_meter_id: str | None = None
    late_meter: str | None = None
    late_quantity: str | None = None


class Correction(msgspec.Struct, frozen=True, omit_defaults=True):
    """What late and voided events change about an earlier cycle of the subscription, below this invoice's watermark.

    corrects: the invoice whose product, meters and cycle it is priced by. counted: invoices that billed the cycle so
    far, in the order of the log; the record is valid only where the log says the same. quantities: meter id → the
    whole cycle's total now; none of a waived cycle. before_minor: what `counted` billed for the cycle, less
    credited_minor. credited_minor, credit_notes: of credit notes for usage, before tax. total_minor: what the cycle
    costs now, minimum and flat fees included; 0 of a waived one. The difference is on the invoice as a line, unless it
    is 0.
    """

    corrects: str
    cycle_start: int
    cycle_end: int
    counted: tuple[str, ...]
    quantities: dict[str, str]
    before_minor: int
    total_minor: int
    credited_minor: int = 0
    credit_notes: tuple[str, ...] = ()

    @property
    def difference_minor(self) -> int:
        return self.total_minor - self.before_minor


class CarriedCredit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A goodwill credit note of a void invoice, as a line of the revision that replaces it. Before tax."""

    invoice_id: str
    credit_note_id: str
    amount_minor: int


class Reissue(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a revision takes off what its cycle costs, each as a line, unless it is 0.

    billed_by: other invoices that bill the cycle, by corrections, in the order of the log. billed_minor: their sum for
    it, less credited_minor. credited_minor, credit_notes: of credit notes for usage, before tax. credits: goodwill that
    was given on the revisions before.
    """

    billed_by: tuple[str, ...] = ()
    billed_minor: int = 0
    credited_minor: int = 0
    credit_notes: tuple[str, ...] = ()
    credits: tuple[CarriedCredit, ...] = ()


class Seller(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the invoice is made at Stripe. stripe_account_id None: the operator is the seller."""

    collection_method: CollectionMethod
    days_until_due: int | None = None  # of send_invoice
    stripe_account_id: str | None = None
    tax_mode: Literal["none", "stripe_automatic", "rates"] = "none"
    tax_rates: tuple[str, ...] = ()


# Many invoices have the same snapshot.
@lru_cache(maxsize=1024)
def _product(document: bytes) -> Product:
    return Product.model_validate(msgspec.json.decode(document))


@lru_cache(maxsize=1024)
def _meter(document: bytes) -> Meter:
    return Meter.model_validate(msgspec.json.decode(document))


class InvoiceFixed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="invoice_fixed"):
    """The content of an invoice, which never changes: the first of an invoice id wins.

    cycle_start, cycle_end: the billing cycle, half-open. active_until: end of what is billed: the cycle's, or that of a
    subscription that ended within it. watermark: what was counted, {"epoch": 1, "offsets": {"0": 1871}}.
    product, meters: the catalog's objects as they were priced with. hash: `canonical_hash` of this record.
    corrections: of earlier cycles. trued_up: every earlier cycle was compared below this watermark, and those that are
    not among the corrections had not changed; then follows is the hash of the subscription's invoice before this one in
    the log, and the record is valid only where that is so. final: after the subscription's end, of corrections only.
    writer: the run that wrote it, for people. reissue: of a revision that replaces a void invoice; follows is
    then the hash of the invoice before it, too. None: it is the first, or older than the field.
    """

    invoice_id: str
    organization_id: str
    customer_id: str
    subscription_id: str
    revision: int
    cycle_start: int
    cycle_end: int
    active_until: int
    time_zone: str
    currency: str
    lines: tuple[Line, ...]
    total: str
    total_minor: int
    watermark: dict[str, Any]
    product: dict[str, Any]
    meters: tuple[dict[str, Any], ...]
    seller: Seller
    hash: str
    fixed_at: int
    corrections: tuple[Correction, ...] = ()
    trued_up: bool = False
    follows: str | None = None
    final: bool = False
    writer: str = ""
    reissue: Reissue | None = None

    @property
    def cycle(self) -> Cycle:
        return Cycle(self.cycle_start, self.cycle_end)

    @property
    def quantities(self) -> dict[str, str]:
        """Meter id → the total of its own cycle."""
        return {line.meter_id: line.quantity for line in self.lines if line.meter_id is not None}

    @property
    def own_minor(self) -> int:
        """What it bills for its own cycle, less what other invoices billed for it. Goodwill is not part of that."""
        carried = sum(each.amount_minor for each in self.reissue.credits) if self.reissue else 0
        return self.total_minor - sum(each.difference_minor for each in self.corrections) + carried

    @property
    def counted_to(self) -> Watermark:
        """The watermark as a value."""
        return watermark_from_json(self.watermark)

    @property
    def priced_product(self) -> Product:
        return _product(msgspec.json.encode(self.product))

    @property
    def priced_meters(self) -> dict[str, Meter]:
        """Meter id → the meter as it was."""
        return {meter["id"]: _meter(msgspec.json.encode(meter)) for meter in self.meters}


class StripeInvoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """An invoice as Stripe showed it: facts, never compared with ours but for subtotal_minor (before tax, discount).

    applied_balance_minor: settled through the customer's balance instead of a payment (credit used, or a sum too small
    to charge carried forward); negative: a debt collected with this invoice. credited_minor: by credit notes.
    attempt_count: grows with every attempt at payment. next_payment_attempt: None when none is planned. seen_at: when
    it was read. processing: a payment is under way and has neither succeeded nor failed. payment_error: why the last
    payment failed, where the invoice was read together with its payments.
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
    """An intent before a call to Stripe, or what came of it.

    step: `wait` (not computed yet, reason and code say why) · `gate` (do the totals agree?) · `approve` (someone let it
    be charged) · `retry` (someone asked for it to be tried again now, whatever failed) · `draft` · `item` (index: of
    the line) · `finalize` · `pay` (a refused payment is `done` too: it is Stripe's to retry) · `void` (nothing else
    begins after its intent) · `reissue` (of a void one: its cycle is invoiced again, as the next revision) · `settle`
    (object_id, a second Stripe invoice paid for the same cycle, is dealt with: memo and by say how and by whom)
    · `credit` (index: of the credit note; its amount_minor goes to target) · `observe` (the object was read again) ·
    `discard` (object_id, a draft, is gone: a second one, or the one that was in use) · `problem` (it could not be
    handled, reason says why; nothing was done) · `seller` (the settings it is made with at Stripe were corrected before
    there was anything at Stripe) · `customer` (its customer can't be had at Stripe).
    phase: `failed` is certain, and lets the next attempt begin; `unknown` leaves the attempt as it is.
    object_id: what was made at Stripe. code: Stripe's error code, or ours. memo: why a void or credit was asked for.
    by: who asked, a key's id or a user's name. credit_for: of a credit. request: digest of the
    Idempotency-Key that a credit was asked for with.
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
    # Of `wait`, which precedes the fixing: what the invoice would be of.
    subscription_id: str | None = None
    cycle_start: int | None = None
    cycle_end: int | None = None
    writer: str = ""


class OrderRecorded(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="order_recorded"):
    """A paid invoice's order: the first of an invoice id wins. amount_paid: major units, as Stripe collected them."""

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
    """A customer at Stripe. phase `intent`: about to be made; `done`: the first of an account is the valid one.

    Later `done` records of the same stripe_customer_id say which payment_method (as the catalog names it) was attached,
    under which id (default_payment_method), or why it was not (reason). details: digest of name, address and so on, as
    they were passed on; None: the customer was given, and its details are kept at Stripe.
    owner: the Stripe that knows the id, as account and mode of the key (`acct_1AbC:test`); None: not kept then.
    replaces: the stripe_customer_id that was in force until then. A `failed` record with a stripe_customer_id says that
    this one is gone at Stripe.
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
    """What moved after an invoice was issued, as Stripe showed it: of an object_id the one read last is valid.

    amount_minor: of the object's own currency, tax included; net_minor: without tax, of a credit note. status: Stripe's
    (`issued`, `void`; `pending`, `succeeded`, `failed`, …; `needs_response`, `won`, `lost`, …). number: the document's.
    credit_for: of a credit note; one that was made at Stripe is goodwill, unless its metadata say otherwise.
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
        """Whether Stripe changes it no more, as far as is known."""
        return self.status in _SETTLED[self.adjustment]

    def document(self) -> dict[str, Any]:
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


# --- Identity ---------------------------------------------------------------------------------------------------------


def _digest(prefix: str, *parts: object) -> str:
    return f"{prefix}_" + hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def invoice_id(organization_id: str, subscription_id: str, cycle_start: int, revision: int = FIRST_REVISION) -> str:
    """The same for every run that closes the cycle."""
    return _digest("inv", organization_id, subscription_id, cycle_start, revision)


def order_id(invoice: str) -> str:
    return _digest("ord", invoice)


# What says when and by whom it was written, and the hash itself, are not part of what the invoice says; defaults are
# left out, as in the record.
_CANONICAL = tuple(
    (each.name, each.default)
    for each in msgspec.structs.fields(InvoiceFixed)
    if each.name not in ("hash", "fixed_at", "writer")
)


def canonical_form(fixed: InvoiceFixed) -> bytes:
    """JSON with sorted keys of everything that the invoice says."""
    content = {name: value for name, default in _CANONICAL if (value := getattr(fixed, name)) != default}
    return msgspec.json.encode(content, order="sorted")


def canonical_hash(fixed: InvoiceFixed) -> str:
    """SHA-256, in hex, of the canonical form."""
    return hashlib.sha256(canonical_form(fixed)).hexdigest()


def with_hash(fixed: InvoiceFixed) -> InvoiceFixed:
    return msgspec.structs.replace(fixed, hash=canonical_hash(fixed))
