"""An invoice's way: draft → open → paid, void or uncollectible, by a call or by Stripe itself when it is time.

Source: Stripe, "How invoicing works", "Automatic invoice advancement", "Automate payment retries", "Customer
invoice balance"; API reference, "Finalize an invoice", "Pay an invoice" (attempt_count counts the first attempt of
any kind and then automatic retries only).
Measured by others against Stripe's test mode at 2026-08-26.dahlia: an automatic draft is finalized 3,601 s after
its creation; a draft that is paid is finalized within the call; an invoice of zero is attempted, with an
attempt_count of 0; one paid out of band is not attempted.
Not verified: when exactly Stripe charges an invoice that a call finalized with auto_advance (setting
first_attempt_seconds, an hour by default), and that a 3D Secure demand is told as payment_failed as well.
"""

from __future__ import annotations

from stripe_standin import cards, customers, payments
from stripe_standin.errors import ApiError, refused
from stripe_standin.invoice_view import recompute, render, snapshot
from stripe_standin.money import minimum_charge
from stripe_standin.payment_methods import declined
from stripe_standin.records import Customer, Invoice, PaymentIntent, PaymentMethod
from stripe_standin.state import Json, Scope
from stripe_standin.totals import settle

DRAFT_SECONDS = 3600
NO_METHOD = (
    "There is no `default_payment_method` set on this Customer or Invoice. Please set one prior to attempting payment."
)
PROCESSING = "This invoice has a payment that is processing: wait for what becomes of it."
REQUIRES_ACTION = (
    "This payment requires additional user action before it can be completed successfully. Payment can be completed "
    "using the `PaymentIntent` associated with the invoice."
)


def schedule_draft(invoice: Invoice) -> None:
    """Set or clear the times at which Stripe finalizes and charges a draft without a call."""
    automatic = invoice.auto_advance
    charged = automatic and invoice.collection_method == "charge_automatically"
    invoice.automatically_finalizes_at = invoice.created + DRAFT_SECONDS + 1 if automatic else None
    invoice.next_payment_attempt = invoice.created + DRAFT_SECONDS if charged else None


def finalize(scope: Scope, invoice: Invoice, *, collect: bool = True) -> None:
    """Make a draft payable: number, settlement with the balance, payment intent; nothing due is paid at once.

    collect: whether to plan, or with first_attempt_seconds = 0 to make, the first automatic attempt.
    Raises ApiError, with the draft left as it was but for last_finalization_error.
    """
    customer = scope.get(Customer, invoice.customer)
    recompute(scope, invoice)
    if invoice.automatic_tax_status == "requires_location_inputs":
        raise _not_finalized(scope, invoice)
    invoice.last_finalization_error = None
    invoice.number = f"{customer.invoice_prefix}-{customer.next_invoice_sequence:04d}"
    customer.next_invoice_sequence += 1
    customer.currency = customer.currency or invoice.currency
    invoice.status = "open"
    invoice.finalized_at = invoice.effective_at = scope.now
    invoice.automatically_finalizes_at = invoice.next_payment_attempt = None
    invoice.customer_snapshot = snapshot(scope, customer)
    if invoice.collection_method == "send_invoice" and invoice.due_date is None:
        invoice.due_date = invoice.created + 86400 * (invoice.days_until_due or 0)
    _settle_balance(scope, invoice, customer)
    scope.put(customer)
    scope.put(invoice)
    if invoice.amount_due > 0:
        payments.open_intent(scope, invoice)
    scope.emit("invoice.finalized", render(scope, invoice))
    if invoice.amount_due == 0:
        invoice.attempted = True
        paid(scope, invoice)
    elif collect and invoice.auto_advance and invoice.collection_method == "charge_automatically":
        wait = scope.settings.first_attempt_seconds
        if wait == 0:
            attempt(scope, invoice, automatic=True)
        else:
            invoice.next_payment_attempt = scope.now + wait
    scope.put(invoice)


def _settle_balance(scope: Scope, invoice: Invoice, customer: Customer) -> None:
    settlement = settle(invoice.total, invoice.starting_balance, minimum_charge(invoice.currency))
    invoice.amount_due = settlement.amount_due
    invoice.ending_balance = settlement.ending_balance
    invoice.balance_applied = settlement.ending_balance - invoice.starting_balance
    if invoice.balance_applied:
        kind = "invoice_too_small" if settlement.small else "applied_to_invoice"
        customers.move_balance(scope, customer, invoice.balance_applied, invoice.currency, kind, invoice=invoice.id)


def _not_finalized(scope: Scope, invoice: Invoice) -> ApiError:
    error = refused(
        "The customer's location isn't recognized. Set a valid customer address in order to automatically calculate "
        "tax.",
        code="customer_tax_location_invalid",
    )
    invoice.last_finalization_error = error.fields
    scope.put(invoice)
    scope.emit("invoice.finalization_failed", render(scope, invoice))
    return _kept(error)


def paid(scope: Scope, invoice: Invoice) -> None:
    """The invoice needs nothing any more."""
    invoice.status = "paid"
    invoice.paid_at = scope.now
    invoice.auto_advance = False
    invoice.next_payment_attempt = None
    customer = scope.get(Customer, invoice.customer)
    if customer.delinquent:
        customer.delinquent = False
        scope.put(customer)
    scope.put(invoice)
    shown = render(scope, invoice)
    scope.emit("invoice.paid", shown)
    scope.emit("invoice.payment_succeeded", shown)


def attempt(
    scope: Scope, invoice: Invoice, *, automatic: bool, method: PaymentMethod | None = None, authenticated: bool = False
) -> ApiError | None:
    """Try to take what is due of an open or uncollectible invoice.

    method: that to charge; None for the invoice's or the customer's default. Returns None when the invoice is paid,
    else the error that a caller of pay gets; an error without a method changes nothing when the attempt is a caller's.
    """
    method = method or _default_method(scope, invoice)
    error: ApiError | None
    if method is None:
        error = refused(NO_METHOD)
        if not automatic:
            return error
    else:
        intent = _intent(scope, invoice)
        if intent.status == "processing":
            return None if automatic else refused(PROCESSING, code="payment_intent_unexpected_state")
        error = payments.unusable(method, invoice.amount_remaining, invoice.currency)
        if error is not None:
            if automatic:
                _failed(scope, invoice, counted=_counted(invoice, automatic), automatic=True)
            return error
        if payments.confirm(scope, intent, method, invoice.amount_remaining, authenticated=authenticated):
            _counted(invoice, automatic)
            invoice.amount_paid += intent.amount_received
            paid(scope, invoice)
            return None
        if intent.status == "processing":
            _counted(invoice, automatic)
            invoice.next_payment_attempt = None
            answers = cards.CARDS[method.card].answers
            invoice.debit_answered_at = scope.now + scope.settings.debit_seconds if answers else None
            scope.put(invoice)
            return None
        error = _refusal(scope, intent, method)
    counted = _counted(invoice, automatic)
    _failed(scope, invoice, counted=counted, automatic=automatic)
    return error


def _failed(scope: Scope, invoice: Invoice, *, counted: bool, automatic: bool) -> None:
    """Plan the next attempt after one that failed and counts, and say that it failed.

    An attempt that does not count (a caller's, after the first) leaves the plan as it is.
    """
    if invoice.status == "open" and invoice.auto_advance and counted:
        waits = scope.settings.retry_seconds
        made = invoice.attempt_count - 1
        invoice.next_payment_attempt = scope.now + waits[made] if made < len(waits) else None
    exhausted = automatic and invoice.next_payment_attempt is None
    customer = scope.get(Customer, invoice.customer)
    if not customer.delinquent:
        customer.delinquent = True
        scope.put(customer)
    scope.put(invoice)
    intent = None if invoice.payment_intent is None else scope.find(PaymentIntent, invoice.payment_intent)
    if intent is not None and intent.status == "requires_action":
        scope.emit("invoice.payment_action_required", render(scope, invoice))
    scope.emit("invoice.payment_failed", render(scope, invoice))
    if exhausted and scope.settings.after_retries == "uncollectible" and invoice.status == "open":
        mark_uncollectible(scope, invoice)


def _counted(invoice: Invoice, automatic: bool) -> bool:
    """Note an attempt; returns whether it is one of attempt_count."""
    invoice.attempted = True
    counts = automatic or invoice.attempt_count == 0
    if counts:
        invoice.attempt_count += 1
    return counts


def _default_method(scope: Scope, invoice: Invoice) -> PaymentMethod | None:
    customer = scope.get(Customer, invoice.customer)
    id_ = invoice.default_payment_method or customer.default_payment_method
    return None if id_ is None else scope.find(PaymentMethod, id_)


def _intent(scope: Scope, invoice: Invoice) -> PaymentIntent:
    intent = None if invoice.payment_intent is None else scope.find(PaymentIntent, invoice.payment_intent)
    if intent is None or intent.status == "canceled":
        return payments.open_intent(scope, invoice)
    return intent


def _refusal(scope: Scope, intent: PaymentIntent, method: PaymentMethod) -> ApiError:
    shown: Json = payments.render_intent(scope, intent)
    if intent.status == "requires_action":
        code = "invoice_payment_intent_requires_action"
        return _kept(ApiError(402, "card_error", REQUIRES_ACTION, code=code, payment_intent=shown))
    decline = cards.CARDS[method.card].charge
    assert decline is not None  # a card that takes every charge was not refused
    return _kept(declined(decline, charge=intent.latest_charge, payment_intent=shown))


def _kept(error: ApiError) -> ApiError:
    error.keeps_changes = True
    return error


def void(scope: Scope, invoice: Invoice) -> None:
    """Take an invoice back; credit that it had used returns to the customer."""
    intent = None if invoice.payment_intent is None else scope.find(PaymentIntent, invoice.payment_intent)
    if intent is not None and intent.status == "processing":
        raise refused("Invoices with `processing` payments cannot be voided.")
    invoice.status = "void"
    invoice.voided_at = scope.now
    invoice.auto_advance = False
    invoice.next_payment_attempt = None
    if invoice.balance_applied:
        customer = scope.get(Customer, invoice.customer)
        customers.move_balance(
            scope, customer, -invoice.balance_applied, invoice.currency, "unapplied_from_invoice", invoice=invoice.id
        )
    payments.cancel(scope, invoice, "void_invoice")
    scope.put(invoice)
    scope.emit("invoice.voided", render(scope, invoice))


def mark_uncollectible(scope: Scope, invoice: Invoice) -> None:
    invoice.status = "uncollectible"
    invoice.marked_uncollectible_at = scope.now
    invoice.auto_advance = False
    invoice.next_payment_attempt = None
    scope.put(invoice)
    scope.emit("invoice.marked_uncollectible", render(scope, invoice))


def step(scope: Scope, invoice: Invoice) -> None:
    """The steps that Stripe takes with an invoice whose time has come."""
    now = scope.now
    if invoice.status == "draft" and _reached(invoice.automatically_finalizes_at, now):
        invoice.automatically_finalizes_at = None
        try:
            finalize(scope, invoice, collect=False)
        except ApiError:
            scope.put(invoice)  # told as invoice.finalization_failed; Stripe waits for a correction
            return
        if invoice.amount_due > 0 and invoice.collection_method == "charge_automatically":
            attempt(scope, invoice, automatic=True)
    elif invoice.status == "open" and _reached(invoice.next_payment_attempt, now):
        invoice.next_payment_attempt = None
        attempt(scope, invoice, automatic=True)
    elif _reached(invoice.debit_answered_at, now):
        _debit_answered(scope, invoice)
    elif invoice.status == "open" and _reached(invoice.due_date, now) and not invoice.overdue_told:
        invoice.overdue_told = True
        scope.put(invoice)
        scope.emit("invoice.overdue", render(scope, invoice))


def _debit_answered(scope: Scope, invoice: Invoice) -> None:
    """Not verified: that Stripe plans no further attempt after a debit that failed."""
    invoice.debit_answered_at = None
    intent = scope.get(PaymentIntent, invoice.payment_intent or "")
    if payments.debit_answered(scope, intent):
        invoice.amount_paid += intent.amount_received
        paid(scope, invoice)
    else:
        _failed(scope, invoice, counted=False, automatic=False)


def _reached(at: int | None, now: int) -> bool:
    return at is not None and at <= now
