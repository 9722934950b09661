"""customer of the catalog ⇄ customer at Stripe: the link in the ledger, and calls that may be repeated."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from billing_job.collect.steps import Billing
from billing_job.stripe.api import Json
from billing_job.stripe.errors import StripeFailure, StripeReplayed
from ledger.customers import StripeCustomerState
from ledger.records import Phase, StripeCustomer
from schemas.customer import Customer

log = structlog.get_logger(__name__)

ATTEMPTS_MAX = 3


def current_link(billing: Billing, customer: Customer, account: str | None) -> StripeCustomerState | None:
    return billing.log.state.link(customer.organization_id, customer.id, account, billing.api.owner)


def link_record(
    billing: Billing,
    customer: Customer,
    account: str | None,
    phase: Phase,
    *,
    attempt: int = 1,
    stripe_customer_id: str | None = None,
    payment_method: str | None = None,
    default_payment_method: str | None = None,
    details: str | None = None,
    failure: StripeFailure | None = None,
    replaces: str | None = None,
) -> StripeCustomer:
    return StripeCustomer(
        organization_id=customer.organization_id,
        customer_id=customer.id,
        phase=phase,
        at=billing.clock(),
        attempt=attempt,
        stripe_account_id=account,
        stripe_customer_id=stripe_customer_id,
        payment_method=payment_method,
        default_payment_method=default_payment_method,
        details=details,
        code=failure.code if failure else None,
        reason=failure.reason if failure else None,
        owner=billing.api.owner,
        replaces=replaces,
        writer=billing.log.writer,
    )


def kept_link(
    billing: Billing,
    customer: Customer,
    account: str | None,
    known: StripeCustomerState,
    *,
    payment_method: str | None,
    default_payment_method: str | None,
    failure: StripeFailure | None = None,
) -> StripeCustomer:
    """A record that leaves the link as it is."""
    return link_record(
        billing,
        customer,
        account,
        "done",
        attempt=known.attempt.number,
        stripe_customer_id=known.stripe_customer_id,
        payment_method=payment_method,
        default_payment_method=default_payment_method,
        details=known.details,
        failure=failure,
    )


def linked_customer(billing: Billing, customer: Customer, account: str | None) -> StripeCustomerState:
    found = current_link(billing, customer, account)
    assert found is not None
    assert found.stripe_customer_id is not None
    return found


def repeat_call(call: Callable[[int], Json]) -> Json:
    """A call that changes nothing when it is repeated; where Stripe keeps an error under its key, under another one.

    call: takes the number of the key. Raises StripeFailure.
    """
    for number in range(ATTEMPTS_MAX - 1):
        try:
            return call(number)
        except StripeReplayed as replayed:
            log.warning("stripe_error_kept", reason=replayed.reason, request=replayed.request_id)
    return call(ATTEMPTS_MAX - 1)
