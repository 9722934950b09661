"""Payment intents, charges, invoice payments, refunds and disputes: money that moved, or failed to.

Source: Stripe API reference, "PaymentIntents", "Charges", "Invoice Payment", "Refunds", "Disputes". Only invoices
make payment intents here; they are read, never created, by clients.
"""

from __future__ import annotations

from stripe_standin import cards
from stripe_standin.errors import ApiError, InvalidParameter, refused
from stripe_standin.money import maximum_charge
from stripe_standin.paging import in_range, listed, matching, newest, page
from stripe_standin.params import merged
from stripe_standin.payment_methods import ADDRESS_NONE, card_details, debit_details
from stripe_standin.payment_methods import render as render_method
from stripe_standin.records import (
    Charge,
    Dispute,
    Invoice,
    InvoicePayment,
    PaymentIntent,
    PaymentMethod,
    Record,
    Refund,
)
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id


def render_intent(scope: Scope, intent: PaymentIntent) -> Json:
    del scope
    action = {"type": "use_stripe_sdk", "use_stripe_sdk": {}} if intent.status == "requires_action" else None
    return {
        "id": intent.id,
        "object": "payment_intent",
        "allowed_payment_method_types": None,
        "amount": intent.amount,
        "amount_capturable": 0,
        "amount_details": {},
        "amount_received": intent.amount_received,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": intent.canceled_at,
        "cancellation_reason": intent.cancellation_reason,
        "capture_method": "automatic",
        "client_secret": f"{intent.id}_secret_standin",
        "confirmation_method": "automatic",
        "created": intent.created,
        "currency": intent.currency,
        "customer": intent.customer,
        "customer_account": None,
        "description": intent.description,
        "excluded_payment_method_types": None,
        "last_payment_error": intent.last_payment_error,
        "latest_charge": intent.latest_charge,
        "livemode": False,
        "managed_payments": None,
        "metadata": {},
        "next_action": action,
        "on_behalf_of": None,
        "payment_method": intent.payment_method,
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": intent.status,
        "transfer_data": None,
        "transfer_group": None,
    }


def render_charge(scope: Scope, charge: Charge) -> Json:
    taken = charge.succeeded or charge.pending
    approved = {
        "advice_code": None,
        "network_advice_code": None,
        "network_decline_code": None,
        "network_status": "approved_by_network" if taken else "declined_by_network",
        "reason": charge.decline_code,
        "seller_message": "Payment complete." if taken else "The bank did not return any further details.",
        "type": "authorized" if taken else "issuer_declined",
    }
    method = scope.peek(PaymentMethod, charge.payment_method)
    billing = {} if method is None else method.billing_details
    return {
        "id": charge.id,
        "object": "charge",
        "amount": charge.amount,
        "amount_captured": charge.amount if charge.succeeded else 0,
        "amount_refunded": charge.amount_refunded,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": charge.id.replace("ch_", "txn_") if charge.succeeded else None,
        "billing_details": {
            "address": billing.get("address") or ADDRESS_NONE,
            "email": billing.get("email"),
            "name": billing.get("name"),
            "phone": billing.get("phone"),
            "tax_id": billing.get("tax_id"),
        },
        "calculated_statement_descriptor": "STAND-IN",
        "captured": charge.succeeded,
        "created": charge.created,
        "currency": charge.currency,
        "customer": charge.customer,
        "description": charge.description,
        "disputed": charge.disputed,
        "failure_balance_transaction": None,
        "failure_code": charge.failure_code,
        "failure_message": charge.failure_message,
        "fraud_details": {},
        "livemode": False,
        "metadata": {},
        "on_behalf_of": None,
        "outcome": approved,
        "paid": charge.succeeded,
        "payment_intent": charge.payment_intent,
        "payment_method": charge.payment_method,
        "payment_method_details": _charged_with(charge),
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": f"https://pay.stripe.com/receipts/test_{charge.id}" if charge.succeeded else None,
        "refunded": charge.amount_refunded == charge.amount,
        "review": None,
        "shipping": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "pending" if charge.pending else "succeeded" if charge.succeeded else "failed",
        "transfer_data": None,
        "transfer_group": None,
    }


def _charged_with(charge: Charge) -> Json:
    card = cards.CARDS[charge.card]
    if card.is_debit:
        return {card.type: debit_details(card) | {"mandate": None}, "type": card.type}
    return {"card": _charged_card(charge), "type": "card"}


def _charged_card(charge: Charge) -> Json:
    card = card_details(charge.card, charge.created)
    return card | {
        "amount_authorized": charge.amount if charge.succeeded else None,
        "authorization_code": None,
        "extended_authorization": {"status": "disabled"},
        "incremental_authorization": {"status": "unavailable"},
        "installments": None,
        "mandate": None,
        "multicapture": {"status": "unavailable"},
        "network": card["brand"],
        "network_token": {"used": False},
        "network_transaction_id": None,
        "overcapture": {"maximum_amount_capturable": charge.amount, "status": "unavailable"},
        "three_d_secure": None,
        "transaction_link_id": None,
    }


def render_payment(scope: Scope, payment: InvoicePayment) -> Json:
    del scope
    return {
        "id": payment.id,
        "object": "invoice_payment",
        "amount_paid": payment.amount_paid,
        "amount_requested": payment.amount_requested,
        "created": payment.created,
        "currency": payment.currency,
        "invoice": payment.invoice,
        "is_default": True,
        "livemode": False,
        "payment": {"payment_intent": payment.payment_intent, "type": "payment_intent"},
        "status": payment.status,
        "status_transitions": {"canceled_at": payment.canceled_at, "paid_at": payment.paid_at},
    }


def render_refund(scope: Scope, refund: Refund) -> Json:
    charge = scope.shown(Charge, refund.charge)
    return {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "balance_transaction": refund.id.replace("re_", "txn_"),
        "charge": refund.charge,
        "created": refund.created,
        "currency": refund.currency,
        "customer": charge.customer,
        "customer_account": None,
        "destination_details": {"card": {"type": "refund"}, "type": "card"},
        "metadata": refund.metadata,
        "payment_intent": refund.payment_intent,
        "payment_method": charge.payment_method,
        "reason": refund.reason,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }


def render_dispute(scope: Scope, dispute: Dispute) -> Json:
    brand = cards.CARDS[scope.shown(Charge, dispute.charge).card].brand or "visa"
    return {
        "id": dispute.id,
        "object": "dispute",
        "amount": dispute.amount,
        "balance_transactions": [],
        "charge": dispute.charge,
        "created": dispute.created,
        "currency": dispute.currency,
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": dispute.created + 7 * 86400,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": dispute.payment_intent,
        "payment_method_details": {
            "card": {"brand": brand, "case_type": "chargeback", "network": brand, "network_reason_code": "10"},
            "type": "card",
        },
        "reason": dispute.reason,
        "status": dispute.status,
    }


def of_invoice(scope: Scope, invoice: Invoice) -> Json:
    payments = newest(scope.children(InvoicePayment, invoice.id))
    data = [render_payment(scope, p) for p in payments[:10]]
    return listed(f"/v1/invoice_payments?invoice={invoice.id}", data, len(payments) > 10)


def open_intent(scope: Scope, invoice: Invoice) -> PaymentIntent:
    """The payment intent of an invoice that has just become payable."""
    intent = PaymentIntent(
        id=new_id("pi_3"),
        created=scope.now,
        invoice=invoice.id,
        customer=invoice.customer,
        amount=invoice.amount_due,
        currency=invoice.currency,
        invoice_payment=new_id("inpay_1"),
        description=f"Payment for Invoice {invoice.number}",
    )
    payment = InvoicePayment(
        id=intent.invoice_payment,
        created=scope.now,
        invoice=invoice.id,
        payment_intent=intent.id,
        amount_requested=invoice.amount_due,
        currency=invoice.currency,
    )
    invoice.payment_intent = intent.id
    scope.put(intent)
    scope.put(payment)
    scope.emit("payment_intent.created", render_intent(scope, intent))
    return intent


def unusable(method: PaymentMethod, amount: int, currency: str) -> ApiError | None:
    """Why that much can't be charged to it at all. Not verified: the texts."""
    card = cards.CARDS[method.card]
    if card.is_debit and currency != cards.DEBIT_CURRENCIES[card.type]:
        return refused(f"The currency provided ({currency}) is invalid for a payment method of type {card.type}.")
    most = maximum_charge(currency, card.type, card.brand)
    if amount > most:
        return refused(f"Amount must be no more than {most}, in the currency's smallest unit", code="amount_too_large")
    return None


def confirm(scope: Scope, intent: PaymentIntent, method: PaymentMethod, amount: int, *, authenticated: bool) -> bool:
    """Charge a card. Returns whether the money was taken; the intent says why not, or that an action is required.

    authenticated: the customer has just passed 3D Secure. A bank debit is under way afterwards (`processing`).
    """
    card = cards.CARDS[method.card]
    intent.amount = amount
    intent.payment_method = method.id
    intent.last_payment_error = None
    if card.authenticate and not authenticated:
        intent.status = "requires_action"
        scope.put(intent)
        scope.emit("payment_intent.requires_action", render_intent(scope, intent))
        return False
    decline = card.charge
    charge = Charge(
        id=new_id("ch_3"),
        created=scope.now,
        invoice=intent.invoice,
        payment_intent=intent.id,
        customer=intent.customer,
        payment_method=method.id,
        card=method.card,
        amount=amount,
        currency=intent.currency,
        succeeded=decline is None and not card.is_debit,
        pending=card.is_debit,
        description=intent.description,
    )
    intent.latest_charge = charge.id
    if card.is_debit:
        intent.status = "processing"
        scope.put(charge)
        scope.put(intent)
        scope.emit("charge.pending", render_charge(scope, charge))
        scope.emit("payment_intent.processing", render_intent(scope, intent))
        return False
    return _answered(scope, intent, charge, method)


def debit_answered(scope: Scope, intent: PaymentIntent) -> bool:
    """The bank says what became of the debit under way. Returns whether the money was taken."""
    charge = scope.get(Charge, intent.latest_charge or "")
    charge.pending = False
    charge.succeeded = cards.CARDS[charge.card].charge is None
    return _answered(scope, intent, charge, scope.get(PaymentMethod, charge.payment_method))


def _answered(scope: Scope, intent: PaymentIntent, charge: Charge, method: PaymentMethod) -> bool:
    card = cards.CARDS[charge.card]
    decline = card.charge
    if decline is not None:
        charge.failure_code = decline.code
        charge.decline_code = decline.decline_code
        charge.failure_message = decline.message
        refuse(scope, intent, decline.code, decline.decline_code, decline.message, method, charge.id)
        scope.put(charge)
        scope.emit("charge.failed", render_charge(scope, charge))
        scope.emit("payment_intent.payment_failed", render_intent(scope, intent))
        return False
    _succeed(scope, intent, charge)
    if card.dispute is not None:
        dispute(scope, charge, card.dispute)
    return True


def refuse(
    scope: Scope,
    intent: PaymentIntent,
    code: str,
    decline_code: str | None,
    message: str,
    method: PaymentMethod,
    charge: str | None,
) -> None:
    """Note on the intent why its last payment failed."""
    intent.status = "requires_payment_method"
    intent.payment_method = None
    intent.last_payment_error = {
        "charge": charge,
        "code": code,
        "decline_code": decline_code,
        "doc_url": f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}",
        "message": message,
        "payment_method": render_method(scope, method),
        "type": "card_error" if charge is not None else "invalid_request_error",
    }
    scope.put(intent)


def _succeed(scope: Scope, intent: PaymentIntent, charge: Charge) -> None:
    intent.status = "succeeded"
    intent.amount_received = charge.amount
    payment = scope.get(InvoicePayment, intent.invoice_payment)
    payment.status = "paid"
    payment.amount_paid = charge.amount
    payment.amount_requested = charge.amount
    payment.paid_at = scope.now
    for record in (charge, intent, payment):
        scope.put(record)
    scope.emit("charge.succeeded", render_charge(scope, charge))
    scope.emit("payment_intent.succeeded", render_intent(scope, intent))
    scope.emit("invoice_payment.paid", render_payment(scope, payment))


def cancel(scope: Scope, invoice: Invoice, reason: str) -> None:
    """Give up the payment intent of an invoice that needs none any more."""
    if invoice.payment_intent is None:
        return
    intent = scope.get(PaymentIntent, invoice.payment_intent)
    if intent.status in ("succeeded", "canceled"):
        return
    intent.status = "canceled"
    intent.canceled_at = scope.now
    intent.cancellation_reason = reason
    payment = scope.get(InvoicePayment, intent.invoice_payment)
    payment.status = "canceled"
    payment.canceled_at = scope.now
    scope.put(intent)
    scope.put(payment)
    scope.emit("payment_intent.canceled", render_intent(scope, intent))


def dispute(scope: Scope, charge: Charge, reason: str) -> Dispute:
    """The cardholder's bank takes a payment back, for now."""
    record = Dispute(
        id=new_id("du_1"),
        created=scope.now,
        charge=charge.id,
        payment_intent=charge.payment_intent,
        amount=charge.amount,
        currency=charge.currency,
        reason=reason,
    )
    charge.disputed = True
    scope.put(charge)
    scope.put(record)
    scope.emit("charge.dispute.created", render_dispute(scope, record))
    return record


def refund_charge(scope: Scope, charge: Charge, amount: int, reason: str | None, metadata: dict[str, str]) -> Refund:
    """Give money back. Raises ApiError when more is asked than is left."""
    if charge.amount_refunded == charge.amount:
        raise refused(f"Charge {charge.id} has already been refunded.", code="charge_already_refunded")
    left = charge.amount - charge.amount_refunded
    if not 0 < amount <= left:
        raise refused(f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", param="amount")
    refund = Refund(
        id=new_id("re_3"),
        created=scope.now,
        charge=charge.id,
        payment_intent=charge.payment_intent,
        amount=amount,
        currency=charge.currency,
        reason=reason,
        metadata=metadata,
    )
    charge.amount_refunded += amount
    scope.put(charge)
    scope.put(refund)
    scope.emit("refund.created", render_refund(scope, refund))
    scope.emit("charge.refunded", render_charge(scope, charge))
    return refund


def create_refund(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    if params.get("charge") is not None:
        charge = scope.get(Charge, params["charge"], "charge", status=400)
    elif params.get("payment_intent") is not None:
        intent = scope.get(PaymentIntent, params["payment_intent"], "payment_intent", status=400)
        if intent.status != "succeeded" or intent.latest_charge is None:
            raise refused(f"This PaymentIntent ({intent.id}) does not have a successful charge to refund.")
        charge = scope.get(Charge, intent.latest_charge)
    else:
        raise InvalidParameter(
            "One of the following params should be provided for this request: charge or payment_intent."
        )
    if not charge.succeeded:
        raise refused(f"Charge {charge.id} was not successful and can't be refunded.")
    amount: int = params.get("amount", charge.amount - charge.amount_refunded)
    refund = refund_charge(scope, charge, amount, params.get("reason"), merged({}, params.get("metadata")))
    return render_refund(scope, refund)


def retrieve_intent(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render_intent(scope, scope.get(PaymentIntent, path[0], "intent"))


def retrieve_charge(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render_charge(scope, scope.get(Charge, path[0], "id"))


def retrieve_payment(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render_payment(scope, scope.get(InvoicePayment, path[0], "invoice_payment"))


def retrieve_refund(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render_refund(scope, scope.get(Refund, path[0], "id"))


def retrieve_dispute(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render_dispute(scope, scope.get(Dispute, path[0], "id"))


def list_disputes(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    same = matching(params, charge="charge", payment_intent="payment_intent")
    return page(
        newest(scope.all(Dispute)),
        params,
        "/v1/disputes",
        lambda d: render_dispute(scope, d),
        Dispute.NOUN,
        lambda d: same(d) and in_range(d.created, params.get("created")),
    )


def list_intents(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    same = matching(params, customer="customer")
    return page(
        newest(scope.all(PaymentIntent)),
        params,
        "/v1/payment_intents",
        lambda i: render_intent(scope, i),
        PaymentIntent.NOUN,
        lambda i: same(i) and in_range(i.created, params.get("created")),
    )


def list_charges(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    same = matching(params, customer="customer", payment_intent="payment_intent")
    return page(
        newest(scope.all(Charge)),
        params,
        "/v1/charges",
        lambda c: render_charge(scope, c),
        Charge.NOUN,
        lambda c: same(c) and in_range(c.created, params.get("created")),
    )


def list_payments(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    records = scope.all(InvoicePayment)
    if params.get("invoice") is not None:
        records = scope.children(InvoicePayment, params["invoice"])
    same, payment = (
        matching(params, status="status"),
        matching(params.get("payment") or {}, payment_intent="payment_intent"),
    )
    return page(
        newest(records),
        params,
        "/v1/invoice_payments",
        lambda p: render_payment(scope, p),
        InvoicePayment.NOUN,
        lambda p: same(p) and payment(p),
    )


def list_refunds(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    same = matching(params, charge="charge", payment_intent="payment_intent")
    return page(
        newest(scope.all(Refund)),
        params,
        "/v1/refunds",
        lambda r: render_refund(scope, r),
        Refund.NOUN,
        lambda r: same(r) and in_range(r.created, params.get("created")),
    )


def charges_by_invoice(charges: list[Record]) -> Json:
    """How often and how much every invoice was charged, for tests that count."""
    counts: dict[str, Json] = {}
    for charge in charges:
        assert isinstance(charge, Charge)
        of = counts.setdefault(charge.invoice, {"succeeded": 0, "failed": 0, "amount": 0, "refunded": 0})
        of["succeeded" if charge.succeeded else "failed"] += 1
        of["amount"] += charge.amount if charge.succeeded else 0
        of["refunded"] += charge.amount_refunded
    return counts


_PAGED = "limit starting_after ending_before"

ROUTES = (
    Route("GET", "/v1/payment_intents", "PaymentIntentListParams", f"{_PAGED} customer created", list_intents),
    Route("GET", "/v1/payment_intents/{}", "PaymentIntentRetrieveParams", "client_secret", retrieve_intent),
    Route("GET", "/v1/charges", "ChargeListParams", f"{_PAGED} customer payment_intent created", list_charges),
    Route("GET", "/v1/charges/{}", "ChargeRetrieveParams", "", retrieve_charge),
    Route(
        "GET",
        "/v1/invoice_payments",
        "InvoicePaymentListParams",
        f"{_PAGED} invoice status payment.type payment.payment_intent",
        list_payments,
    ),
    Route("GET", "/v1/invoice_payments/{}", "InvoicePaymentRetrieveParams", "", retrieve_payment),
    Route("POST", "/v1/refunds", "RefundCreateParams", "charge payment_intent amount reason metadata", create_refund),
    Route("GET", "/v1/refunds", "RefundListParams", f"{_PAGED} charge payment_intent created", list_refunds),
    Route("GET", "/v1/refunds/{}", "RefundRetrieveParams", "", retrieve_refund),
    Route("GET", "/v1/disputes", "DisputeListParams", f"{_PAGED} charge payment_intent created", list_disputes),
    Route("GET", "/v1/disputes/{}", "DisputeRetrieveParams", "", retrieve_dispute),
)
