"""The catalog's payment method → attached at Stripe, default of the customer's invoices; the old one detached."""

from __future__ import annotations

from typing import Any

import structlog

from billing_job.collect.customer_links import kept_link, linked_customer, repeat_call
from billing_job.collect.steps import Billing
from billing_job.stripe.api import Json
from billing_job.stripe.errors import IdempotencyMisuse, StripeDeclined, StripeRefused
from billing_job.stripe.objects import customer_call_key
from ledger.customers import StripeCustomerState
from schemas.customer import Customer

log = structlog.get_logger(__name__)


def with_payment_method(
    billing: Billing, customer: Customer, account: str | None, known: StripeCustomerState, *, asked_at: int = 0
) -> StripeCustomerState:
    """The customer at Stripe with the catalog's payment method as its default; one that was taken away is detached."""
    refused = known.payment_method is not None and known.default_payment_method is None
    if customer.payment_method == known.payment_method and not (refused and known.attempt.begun_at < asked_at):
        return known
    before = known.default_payment_method
    if customer.payment_method is not None:
        known = _attach(billing, customer, account, known)
        if known.default_payment_method is None:  # refused; the one before is the catalog's no longer
            _detach(billing, customer, account, known, before)
            return known
    if before != known.default_payment_method or customer.payment_method is None:
        _detach(billing, customer, account, known, before)
    if customer.payment_method is None:
        billing.log.append(
            kept_link(billing, customer, account, known, payment_method=None, default_payment_method=None)
        )
        return linked_customer(billing, customer, account)
    return known


def _detach(
    billing: Billing, customer: Customer, account: str | None, known: StripeCustomerState, method_id: str | None
) -> None:
    """Detach a payment method at Stripe, so that it is not charged any more. A missing one is accepted."""
    if method_id is None:
        return

    def key(number: int) -> str:
        call = ("detach", method_id, known.attempt.begun_at, number)
        return customer_call_key(customer.organization_id, customer.id, *call)

    try:
        repeat_call(lambda n: billing.api.detach_payment_method(method_id, account, key(n)))
    except StripeRefused as refused:
        # It is refused, too, because somebody has detached it at Stripe.
        if isinstance(refused, IdempotencyMisuse) or refused.status in (401, 403, 429):
            raise
        if _owner(billing, method_id, account) == known.stripe_customer_id:
            raise
        log.info("payment_method_gone", customer=customer.id, reason=refused.reason)


def _owner(billing: Billing, method_id: str, account: str | None) -> str | None:
    """Id of the customer at Stripe that has the payment method; None: nobody has it."""
    try:
        return billing.api.payment_method(method_id, account).get("customer")
    except StripeRefused as refused:
        if refused.status != 404:
            raise
        return None


def _attach(
    billing: Billing, customer: Customer, account: str | None, known: StripeCustomerState
) -> StripeCustomerState:
    """Attach the catalog's payment method and make it the default of the customer's invoices."""
    assert customer.payment_method is not None
    assert known.stripe_customer_id is not None
    method_id, failure = None, None
    try:
        method_id = _attached(billing, customer, customer.payment_method, known, account)
    except (StripeDeclined, StripeRefused) as error:
        if isinstance(error, IdempotencyMisuse) or error.status in (401, 403, 429):
            raise
        log.warning("payment_method_refused", customer=customer.id, reason=error.reason)
        failure = error
    billing.log.append(
        kept_link(
            billing,
            customer,
            account,
            known,
            payment_method=customer.payment_method,
            default_payment_method=method_id,
            failure=failure,
        )
    )
    return linked_customer(billing, customer, account)


def _attached(
    billing: Billing, customer: Customer, payment_method: str, known: StripeCustomerState, account: str | None
) -> str:
    """Id of the payment method at Stripe, the default. The calls need no record: repeated, they change nothing."""
    method_id = attached_payment_method(billing, customer, payment_method, known, account)
    default = {"invoice_settings": {"default_payment_method": method_id}}
    call = ("default", payment_method, known.attempt.begun_at)

    def key(number: int) -> str:
        return customer_call_key(customer.organization_id, customer.id, *call, number)

    assert known.stripe_customer_id is not None
    stripe_customer_id = known.stripe_customer_id
    repeat_call(lambda n: billing.api.update_customer(stripe_customer_id, default, account, key(n)))
    return method_id


def attached_payment_method(
    billing: Billing, customer: Customer, payment_method: str, known: StripeCustomerState, account: str | None
) -> str:
    """Id of the payment method at Stripe, where it belongs to the customer now. Raises StripeFailure."""
    stripe_customer_id = known.stripe_customer_id
    assert stripe_customer_id is not None

    def key(call: str, number: int) -> str:
        # The state that this starts from is part of it: a method that comes back after another is attached again.
        state = (payment_method, known.attempt.begun_at)
        return customer_call_key(customer.organization_id, customer.id, call, *state, number)

    of_token = payment_method
    if payment_method.startswith("tok_"):
        params: dict[str, Any] = {"type": "card", "card": {"token": payment_method}}
        of_token = repeat_call(lambda n: billing.api.create_payment_method(params, account, key("method", n)))["id"]

    def attach(number: int) -> Json:
        try:
            return billing.api.attach_payment_method(of_token, stripe_customer_id, account, key("attach", number))
        except StripeRefused as refused:
            # It is refused, too, because it is attached: by a call of which we have lost the answer.
            if isinstance(refused, IdempotencyMisuse) or refused.status in (401, 403, 429):
                raise
            seen = billing.api.payment_method(of_token, account)
            if seen.get("customer") != stripe_customer_id:
                raise
            return seen

    return str(repeat_call(attach)["id"])
