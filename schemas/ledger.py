"""billing.ledger records ⇄ JSON, and the fold of them in log order → the state of every invoice. Pure.

The first record of an invoice id fixes the invoice; intents and results of the calls to Stripe follow it. A record that
lost (a second fixing, an attempt that another writer began, facts older than those known) changes nothing, for every
reader alike. Records are keyed by `customer_key`, so that all of a customer's lie in one partition, in one order.

Instants are µs since 1970, UTC. Amounts in major units and quantities are decimal strings; `…_minor` are Stripe's
integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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

FIRST_REVISION = 1
IDEMPOTENCY_ERROR = "idempotency_error"
"""Stripe's word for a key that was used with other parameters: our own fault, so the invoice stops there."""

State = Literal["waiting", "computed", "draft", "open", "paid", "payment_failed", "uncollectible", "mismatch", "void"]
StepName = Literal["wait", "gate", "draft", "item", "finalize", "pay", "void", "observe", "discard"]
Phase = Literal["intent", "done", "failed", "unknown"]
StripeStatus = Literal["draft", "open", "paid", "uncollectible", "void"]


class UnreadableLedgerRecord(ValueError):
    """Bytes in the ledger that are no record. Every reader ignores them alike."""


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
    """One price on an invoice. meter_id None: flat fee or minimum. amount: major units, rounded; before tax."""

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


class Seller(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the invoice is made at Stripe. stripe_account_id None: the operator is the seller."""

    collection_method: CollectionMethod
    days_until_due: int | None = None  # of send_invoice
    stripe_account_id: str | None = None
    tax_mode: Literal["none", "stripe_automatic", "rates"] = "none"
    tax_rates: tuple[str, ...] = ()


class InvoiceFixed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="invoice_fixed"):
    """What an invoice says, once and for all: the first of an invoice id wins.

    cycle_start, cycle_end: the billing cycle, half-open. active_until: end of what is billed: the cycle's, or that of a
    subscription that ended within it. watermark: what was counted, {"epoch": 1, "offsets": {"0": 1871}}.
    product, meters: the catalog's objects as they were priced with. hash: `canonical_hash` of this record.
    writer: the run that wrote it, for people.
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
    writer: str = ""

    @property
    def cycle(self) -> Cycle:
        return Cycle(self.cycle_start, self.cycle_end)

    @property
    def counted_to(self) -> Watermark:
        """The watermark as a value."""
        return Watermark(
            epoch=self.watermark["epoch"], offsets={int(p): int(o) for p, o in self.watermark["offsets"].items()}
        )

    @property
    def priced_product(self) -> Product:
        return Product.model_validate(self.product)

    @property
    def priced_meters(self) -> dict[str, Meter]:
        """Meter id → the meter as it was."""
        return {meter["id"]: Meter.model_validate(meter) for meter in self.meters}


class StripeInvoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """An invoice as Stripe showed it: facts, never compared with ours but for subtotal_minor (before tax, discount).

    applied_balance_minor: settled through the customer's balance instead of a payment (credit used, or a sum too small
    to charge carried forward); negative: a debt collected with this invoice. attempt_count: grows with every attempt at
    payment. next_payment_attempt: None when none is planned. seen_at: when it was read.
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
    number: str | None = None
    hosted_invoice_url: str | None = None
    invoice_pdf: str | None = None
    attempted: bool = False
    attempt_count: int = 0
    next_payment_attempt: int | None = None
    due_date: int | None = None
    paid_at: int | None = None
    finalization_error: str | None = None


class InvoiceStep(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="invoice_step"):
    """An intent before a call to Stripe, or what came of it.

    step: `wait` (not computed yet, reason says why) · `gate` (do the totals agree?) · `draft` · `item` (index: of the
    line) · `finalize` · `pay` (a refused payment is `done` too: it is Stripe's to retry) · `void` · `observe` (the
    object was read again) · `discard` (object_id, a draft, is gone: a second one, or the one that was in use).
    phase: `failed` is certain, and lets the next attempt begin; `unknown` leaves the attempt as it is.
    object_id: what was made at Stripe. code: Stripe's error code, or ours.
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
    """A customer at Stripe. phase `intent`: about to be made; `done`: the first of an account is the one in force.

    Later `done` records of the same stripe_customer_id say which payment_method (as the catalog names it) was attached,
    under which id (default_payment_method), or why it was not (reason).
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
    code: str | None = None
    reason: str | None = None
    writer: str = ""


LedgerRecord = InvoiceFixed | InvoiceStep | OrderRecorded | StripeCustomer

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[LedgerRecord] = msgspec.json.Decoder(LedgerRecord)


def encode(record: LedgerRecord) -> bytes:
    """JSON with a `kind`, readable with Kafka's own tools."""
    return _encoder.encode(record)


def decode(message: bytes) -> LedgerRecord:
    """Raises UnreadableLedgerRecord for everything that is no record."""
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


# What says when and by whom it was written, and the hash itself, are not part of what the invoice says.
_NOT_CANONICAL = ("hash", "fixed_at", "writer", "kind")


def canonical_form(fixed: InvoiceFixed) -> bytes:
    """JSON with sorted keys of everything that the invoice says."""
    content = {name: value for name, value in msgspec.to_builtins(fixed).items() if name not in _NOT_CANONICAL}
    return msgspec.json.encode(content, order="sorted")


def canonical_hash(fixed: InvoiceFixed) -> str:
    """SHA-256, in hex, of the canonical form."""
    return hashlib.sha256(canonical_form(fixed)).hexdigest()


def with_hash(fixed: InvoiceFixed) -> InvoiceFixed:
    return msgspec.structs.replace(fixed, hash=canonical_hash(fixed))


# --- Fold -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """The latest attempt at a step. phase `intent` or `unknown`: whether it happened is not known."""

    number: int
    phase: Phase
    begun_at: int
    object_id: str | None = None
    code: str | None = None
    reason: str | None = None

    @property
    def may_advance(self) -> bool:
        """Whether another attempt may begin: this one certainly did nothing, and trying again can help."""
        return self.phase == "failed" and self.code != IDEMPOTENCY_ERROR


StepKey = tuple[StepName, int]
NO_STEPS: Mapping[StepKey, Attempt] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice after the records applied so far.

    fixed None: it is waiting, and only subscription_id and cycle are known. reason: of waiting, mismatch, or the last
    failure. stripe: the newest facts known. steps: (step, index) → its latest attempt.
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
    steps: Mapping[StepKey, Attempt] = field(default_factory=lambda: NO_STEPS)

    @property
    def finished(self) -> bool:
        """Nothing is left to do for us: paid with its order, or void. (payment_failed is Stripe's to retry.)"""
        return self.state == "void" or (self.state == "paid" and self.order is not None)

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
            "stripe_invoice_id": self.stripe_invoice_id,
            "number": seen.number if seen else None,
            "hosted_invoice_url": seen.hosted_invoice_url if seen else None,
            "invoice_pdf": seen.invoice_pdf if seen else None,
            "tax": major(seen.tax_minor) if seen else None,
            "amount_due": major(seen.amount_due_minor) if seen else major(0 if self.state == "paid" else None),
            "amount_paid": major(seen.amount_paid_minor) if seen else (self.order.amount_paid if self.order else None),
            "next_payment_attempt": (
                format_rfc3339(seen.next_payment_attempt) if seen and seen.next_payment_attempt is not None else None
            ),
            "watermark": fixed.watermark if fixed else None,
            "hash": fixed.hash if fixed else None,
            "revision": fixed.revision if fixed else FIRST_REVISION,
            "order_id": self.order.order_id if self.order else None,
        }


@dataclass(frozen=True, slots=True)
class StripeCustomerState:
    """stripe_customer_id None: an attempt at making one was begun. payment_method: the catalog's last dealt with."""

    attempt: Attempt
    stripe_customer_id: str | None = None
    payment_method: str | None = None
    default_payment_method: str | None = None
    reason: str | None = None


# How far an invoice has come at Stripe; facts of a lesser rank are older. uncollectible may still be paid or voided.
_RANK: dict[StripeStatus, int] = {"draft": 0, "open": 1, "uncollectible": 2, "void": 3, "paid": 3}


class InvoiceLedger:
    """Every invoice, order and Stripe customer, after the records applied so far, each partition's in its order.

    Not locked: one thread applies; what readers get is never changed, only replaced.
    """

    def __init__(self) -> None:
        self.invoices: dict[str, Invoice] = {}
        self.customers: dict[tuple[str, str, str | None], StripeCustomerState] = {}
        self._by_stripe_id: dict[str, str] = {}

    def get(self, invoice: str) -> Invoice | None:
        return self.invoices.get(invoice)

    def by_stripe_id(self, stripe_invoice_id: str) -> Invoice | None:
        found = self._by_stripe_id.get(stripe_invoice_id)
        return None if found is None else self.invoices.get(found)

    def customer(
        self, organization_id: str, customer_id: str, stripe_account_id: str | None = None
    ) -> StripeCustomerState | None:
        return self.customers.get((organization_id, customer_id, stripe_account_id))

    def of_customer(self, organization_id: str, customer_id: str) -> list[Invoice]:
        """A customer's invoices, oldest cycle first."""
        found = [
            invoice
            for invoice in self.invoices.values()
            if (invoice.organization_id, invoice.customer_id) == (organization_id, customer_id)
        ]
        return sorted(found, key=lambda invoice: (invoice.cycle_start, invoice.id))

    @property
    def orders(self) -> list[OrderRecorded]:
        return [invoice.order for invoice in self.invoices.values() if invoice.order]

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

    def _put(self, invoice: Invoice) -> bool:
        self.invoices[invoice.id] = invoice
        return True

    def _fix(self, record: InvoiceFixed) -> bool:
        known = self.invoices.get(record.invoice_id)
        if known is not None and known.fixed is not None:
            return False
        return self._put(
            Invoice(
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
        )

    def _order(self, record: OrderRecorded) -> bool:
        known = self.invoices.get(record.invoice_id)
        if known is None or known.fixed is None or known.order is not None:
            return False
        # An invoice of 0 has no counterpart at Stripe: its order is what says that it is paid.
        state = known.state if known.stripe else "paid"
        return self._put(replace(known, order=record, state=state, updated_at=record.recorded_at))

    def _step(self, record: InvoiceStep) -> bool:
        known = self.invoices.get(record.invoice_id)
        if record.step == "wait":
            return self._wait(record, known)
        if known is None or known.fixed is None:
            return False
        match record.step:
            case "gate":
                return self._gate(record, known)
            case "observe":
                return self._observe(record, known)
            case "discard":
                return self._discard(record, known)
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
            )
        )

    def _gate(self, record: InvoiceStep, known: Invoice) -> bool:
        if known.gate == record.phase and known.reason == record.reason:
            return False
        gated = replace(known, gate=record.phase, updated_at=record.at)
        if record.phase == "failed":
            return self._put(replace(gated, state="mismatch", reason=record.reason))
        reason = None if known.state == "mismatch" else known.reason
        return self._put(replace(gated, state=_state(replace(gated, state="computed")), reason=reason))

    def _call(self, record: InvoiceStep, known: Invoice) -> bool:
        """An intent or result of draft, item, finalize, pay, void."""
        key: StepKey = (record.step, record.index)
        before = known.steps.get(key)
        if record.phase == "intent":
            expected = 1 if before is None else before.number + 1
            if record.attempt != expected or (before is not None and not before.may_advance):
                return False
            attempt = Attempt(record.attempt, "intent", record.at)
            return self._put(replace(known, steps=_with(known.steps, key, attempt), updated_at=record.at))
        if before is None or before.number != record.attempt or before.phase in ("done", "failed"):
            return False
        attempt = replace(
            before, phase=record.phase, object_id=record.object_id, code=record.code, reason=record.reason
        )
        changed = replace(known, steps=_with(known.steps, key, attempt), updated_at=record.at)
        if record.step == "draft" and record.phase == "done":
            assert record.object_id is not None
            changed = replace(changed, stripe_invoice_id=record.object_id)
            self._by_stripe_id[record.object_id] = known.id
        # What is held keeps saying why.
        changed = changed if known.state == "mismatch" else replace(changed, reason=record.reason)
        return self._put(_seen(changed, record.stripe))

    def _discard(self, record: InvoiceStep, known: Invoice) -> bool:
        """A draft is gone. Where it was the one in use, all is to be done again, under new keys."""
        if record.object_id is None or record.object_id != known.stripe_invoice_id:
            return True
        if known.stripe is not None and known.stripe.status != "draft":
            return False
        steps = {key: replace(attempt, phase="failed") for key, attempt in known.steps.items()}
        del self._by_stripe_id[record.object_id]
        return self._put(
            replace(
                known,
                state="mismatch" if known.state == "mismatch" else "computed",
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
        return self._put(replace(seen, reason=record.reason or (None if over else known.reason), updated_at=record.at))

    def _customer(self, record: StripeCustomer) -> bool:
        key = (record.organization_id, record.customer_id, record.stripe_account_id)
        known = self.customers.get(key)
        if record.phase == "intent":
            expected = 1 if known is None else known.attempt.number + 1
            if record.attempt != expected or (known is not None and not known.attempt.may_advance):
                return False
            self.customers[key] = StripeCustomerState(Attempt(record.attempt, "intent", record.at))
            return True
        if record.phase != "done":
            if known is None or known.stripe_customer_id or known.attempt.number != record.attempt:
                return False
            attempt = replace(known.attempt, phase=record.phase, code=record.code, reason=record.reason)
            self.customers[key] = replace(known, attempt=attempt, reason=record.reason)
            return True
        if record.stripe_customer_id is None:
            return False
        if known is not None and known.stripe_customer_id not in (None, record.stripe_customer_id):
            return False  # another writer's customer is the one in force
        self.customers[key] = StripeCustomerState(
            attempt=Attempt(record.attempt, "done", record.at, record.stripe_customer_id),
            stripe_customer_id=record.stripe_customer_id,
            payment_method=record.payment_method,
            default_payment_method=record.default_payment_method,
            reason=record.reason,
        )
        return True


def _with(steps: Mapping[StepKey, Attempt], key: StepKey, attempt: Attempt) -> Mapping[StepKey, Attempt]:
    return MappingProxyType({**steps, key: attempt})


def _seen(invoice: Invoice, seen: StripeInvoice | None) -> Invoice:
    """The invoice with newer facts, and the state that they mean; the same object when they are not newer."""
    if seen is None or seen.id != invoice.stripe_invoice_id:
        return invoice
    before = invoice.stripe
    if before is not None and (
        (_RANK[before.status] == 3 and seen.status != before.status)
        or (_RANK[seen.status], seen.attempt_count) < (_RANK[before.status], before.attempt_count)
        or msgspec.structs.replace(seen, seen_at=before.seen_at) == before
    ):
        return invoice
    changed = replace(invoice, stripe=seen)
    # What is held stays held until the gate agrees, or Stripe says that it is over.
    if invoice.state == "mismatch" and _RANK[seen.status] < 3:
        return changed
    return replace(changed, state=_state(changed))


def _state(invoice: Invoice) -> State:
    """The state that the facts from Stripe mean; without any, the one before."""
    seen = invoice.stripe
    if seen is None:
        return invoice.state
    if seen.status == "open" and seen.attempted and seen.attempt_count > 0:
        return "payment_failed"
    return seen.status


# --- Benefits ---------------------------------------------------------------------------------------------------------


def suspends_benefits(invoice: Invoice, now_us: int) -> bool:
    """Whether this invoice, unpaid, suspends its subscription's benefits: Stripe has given up, or it is overdue."""
    fixed, seen = invoice.fixed, invoice.stripe
    if fixed is None or seen is None or seen.status in ("draft", "paid", "void"):
        return False
    if seen.status == "uncollectible":
        return True
    if fixed.seller.collection_method == "send_invoice":
        return seen.due_date is not None and seen.due_date <= now_us
    return seen.attempted and seen.attempt_count > 0 and seen.next_payment_attempt is None


def benefits_state(
    invoices: Iterable[Invoice], ends_at_us: int | None, now_us: int
) -> Literal["active", "suspended", "ended"]:
    """State of the benefits of one subscription, from its invoices. ends_at_us: of the subscription."""
    if ends_at_us is not None and ends_at_us <= now_us:
        return "ended"
    return "suspended" if any(suspends_benefits(invoice, now_us) for invoice in invoices) else "active"
