"""customer → Stripe customer with its payment method: given, or made once, at the first invoice."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from billing_job.collect.customer_links import ATTEMPTS_MAX, current_link, link_record, linked_customer, repeat_call
from billing_job.collect.payment_methods import with_payment_method
from billing_job.collect.steps import Billing, InvoiceStopped, rests_until
from billing_job.stripe.api import Json
from billing_job.stripe.errors import IdempotencyMisuse, StripeFailure, StripeRefused, StripeReplayed
from billing_job.stripe.objects import (
    CUSTOMER_ID,
    ORGANIZATION_ID,
    customer_call_key,
    customer_changes,
    customer_params,
    details_digest,
    metadata_of,
)
from ledger.customers import StripeCustomerState
from ledger.records import Phase
from schemas.customer import Customer
from schemas.period import SECOND_US

log = structlog.get_logger(__name__)

CUSTOMER_TAKEN = "stripe_customer_taken"
"""Code of an id that is of another customer of ours."""
_GONE = "customer_gone"
_AT_ONCE = frozenset({_GONE, "details_changed"})
"""Codes of failures that the next attempt need not rest after."""
_CLOCK_SLACK_SECONDS = 24 * 3600  # between our clock and Stripe's; a listing that begins too early costs a page


def ensure_stripe_customer(
    billing: Billing, customer: Customer, account: str | None, *, asked_at: int = 0
) -> StripeCustomerState:
    """The linked customer at Stripe, created if there is none, with the catalog's payment method attached.

    A payment method that is refused is recorded with the reason and stops nothing: the invoice is made and stays open.
    asked_at: when someone last asked for a payment to be tried again; what was refused before is attached once more.
    Raises StripeFailure, InvoiceStopped, LedgerUnavailable.
    """
    known = current_link(billing, customer, account)
    if known is None or known.stripe_customer_id is None:
        known = _link(billing, customer, account, asked_at)
    elif customer.stripe_customer_id not in (None, known.stripe_customer_id):
        known = _given(billing, customer, account, customer.stripe_customer_id)
    if customer.stripe_customer_id is None and known.details != details_digest(customer):
        known = _update(billing, customer, account, known)
    return with_payment_method(billing, customer, account, known, asked_at=asked_at)


def own_stripe_customer(billing: Billing, customer: Customer, account: str | None, stripe_customer_id: str) -> Json:
    """The customer at Stripe that was given for ours. Raises StripeRefused: it does not exist, or is another's."""
    seen = billing.api.customer(stripe_customer_id, account)
    if seen.get("deleted"):
        reason = f"the customer '{stripe_customer_id}' was deleted at Stripe"
        raise StripeRefused(reason, status=404, code="resource_missing", param="customer")
    made_for = metadata_of(seen)
    organization_id = made_for.get(ORGANIZATION_ID, customer.organization_id)
    if organization_id != customer.organization_id:
        raise StripeRefused(
            f"'{stripe_customer_id}' was made for a customer of another organization", status=400, code=CUSTOMER_TAKEN
        )
    if made_for.get(CUSTOMER_ID, customer.id) != customer.id:
        reason = f"'{stripe_customer_id}' was made for another customer, {made_for[CUSTOMER_ID]!r}"
        raise StripeRefused(reason, status=400, code=CUSTOMER_TAKEN)
    return seen


def says_no(refused: StripeRefused) -> bool:
    """Whether Stripe has said that the customer does not exist, or is another's. A restricted key says neither."""
    return refused.code in ("resource_missing", CUSTOMER_TAKEN)


def is_gone(failure: StripeFailure) -> bool:
    """Whether Stripe refused a call because it does not know the customer that it names."""
    return isinstance(failure, StripeRefused) and failure.code == "resource_missing" and failure.param == "customer"


def forget_stripe_customer(billing: Billing, customer: Customer, account: str | None, failure: StripeFailure) -> None:
    """Record that the linked customer is gone at Stripe: the next step links or creates another one."""
    known = current_link(billing, customer, account)
    if known is not None and known.stripe_customer_id is not None:
        log.warning("stripe_customer_gone", customer=customer.id, stripe_customer=known.stripe_customer_id)
        gone = StripeRefused(failure.reason, status=404, code=_GONE)
        attempt, lost = known.attempt.number, known.stripe_customer_id
        billing.log.append(
            link_record(billing, customer, account, "failed", attempt=attempt, stripe_customer_id=lost, failure=gone)
        )


def _given(billing: Billing, customer: Customer, account: str | None, given: str) -> StripeCustomerState:
    """Link the customer that was given instead of the one before. It was checked at Stripe when it was entered."""
    known = current_link(billing, customer, account)
    return _found(billing, customer, account, given, replaces=known.stripe_customer_id if known else None)


def _found(
    billing: Billing,
    customer: Customer,
    account: str | None,
    stripe_customer_id: str,
    *,
    payment_method: str | None = None,
    default_payment_method: str | None = None,
    details: str | None = None,
    replaces: str | None = None,
) -> StripeCustomerState:
    """Link a customer that is there at Stripe already, without a call that makes one."""
    known = current_link(billing, customer, account)
    billing.log.append(
        link_record(
            billing,
            customer,
            account,
            "done",
            attempt=known.attempt.number if known else 1,
            stripe_customer_id=stripe_customer_id,
            payment_method=payment_method,
            default_payment_method=default_payment_method,
            details=details,
            replaces=replaces,
        )
    )
    return linked_customer(billing, customer, account)


def _known_elsewhere(billing: Billing, customer: Customer, account: str | None) -> StripeCustomerState | None:
    """A link that was recorded of another Stripe, or before it was kept of which, and that this one knows too."""
    for link in reversed(billing.log.state.links(customer.organization_id, customer.id, account)):
        if link.stripe_customer_id is None or link.owner == billing.api.owner:
            continue
        try:
            own_stripe_customer(billing, customer, account, link.stripe_customer_id)
        except StripeRefused as refused:
            if not says_no(refused) and refused.status not in (403, 404):
                raise
            continue
        return link
    return None


def _link(billing: Billing, customer: Customer, account: str | None, asked_at: int) -> StripeCustomerState:
    """Record the customer that was given, or is known here from before, or make one."""
    if customer.stripe_customer_id is not None:
        return _given(billing, customer, account, customer.stripe_customer_id)
    before = _known_elsewhere(billing, customer, account)
    if before is not None and before.stripe_customer_id is not None:
        return _found(
            billing,
            customer,
            account,
            before.stripe_customer_id,
            payment_method=before.payment_method,
            default_payment_method=before.default_payment_method,
            details=before.details,
        )
    for _ in range(ATTEMPTS_MAX):
        attempt, fresh, begun_at = _begin(billing, customer, account, asked_at)
        try:
            made = None if fresh else _find(billing, customer, account, begun_at)
            if made is None:
                key = customer_call_key(customer.organization_id, customer.id, "create", attempt)
                made = billing.api.create_customer(customer_params(customer), account, key, may_have_run=not fresh)
        except StripeReplayed as failure:
            made = _find(billing, customer, account, begun_at)
            if made is None:
                billing.log.append(link_record(billing, customer, account, "failed", attempt=attempt, failure=failure))
                continue
        except IdempotencyMisuse as misuse:
            # The details changed since a call whose outcome is unknown. It made nothing, or it would have been found.
            failure = StripeRefused(str(misuse), status=misuse.status, code="details_changed")
            billing.log.append(link_record(billing, customer, account, "failed", attempt=attempt, failure=failure))
            continue
        except StripeFailure as failure:
            phase: Phase = "failed" if isinstance(failure, StripeRefused) else "unknown"
            billing.log.append(link_record(billing, customer, account, phase, attempt=attempt, failure=failure))
            raise
        # A customer that was found may have older details: send them again.
        details = details_digest(customer) if fresh else None
        billing.log.append(
            link_record(
                billing, customer, account, "done", attempt=attempt, stripe_customer_id=made["id"], details=details
            )
        )
        return linked_customer(billing, customer, account)
    raise InvoiceStopped("customer: Stripe keeps answering with an error of its own")


def _begin(billing: Billing, customer: Customer, account: str | None, asked_at: int) -> tuple[int, bool, int]:
    """(attempt, whether no call with its key was made before, when it began)."""
    known = current_link(billing, customer, account)
    if known is not None and not known.attempt.may_advance:
        if known.attempt.phase == "failed":
            raise InvoiceStopped(f"the customer can't be made at Stripe: {known.reason}")
        return known.attempt.number, False, known.attempt.begun_at
    rests = known is not None and known.attempt.code not in _AT_ONCE and known.attempt.begun_at > asked_at
    if known is not None and rests and billing.scheduled:
        later = rests_until(known.attempt.begun_at, known.attempt.number)
        if billing.clock() < later:
            raise InvoiceStopped(f"the customer could not be made at Stripe ({known.reason}) and is tried again later")
    intent = link_record(billing, customer, account, "intent", attempt=known.attempt.number + 1 if known else 1)
    return intent.attempt, billing.log.append(intent), intent.at


def _find(billing: Billing, customer: Customer, account: str | None, begun_at: int) -> Json | None:
    """The oldest customer at Stripe that was made for ours since the attempt began."""
    since = begun_at // SECOND_US - _CLOCK_SLACK_SECONDS
    wanted = {ORGANIZATION_ID: customer.organization_id, CUSTOMER_ID: customer.id}
    for found in billing.api.customers_since(since, account):
        if wanted.items() <= metadata_of(found).items():
            return found
    return None


def _update(
    billing: Billing, customer: Customer, account: str | None, known: StripeCustomerState
) -> StripeCustomerState:
    """Tell Stripe what has changed in the catalog: name, email, address, tax ids. Raises StripeFailure."""
    stripe_customer_id, digest = known.stripe_customer_id, details_digest(customer)
    assert stripe_customer_id is not None

    def key(*call: object) -> str:
        # The state that this starts from is part of it: details that return to an earlier value are sent again.
        return customer_call_key(customer.organization_id, customer.id, *call, digest, known.attempt.begun_at)

    changes = customer_changes(customer)
    repeat_call(lambda n: billing.api.update_customer(stripe_customer_id, changes, account, key("details", n)))
    wanted = {(each.type, each.value) for each in customer.tax_ids}
    there = {(each["type"], each["value"]): each["id"] for each in billing.api.tax_ids_of(stripe_customer_id, account)}
    for place in there.keys() - wanted:
        billing.api.delete_tax_id(stripe_customer_id, there[place], account)
    for place in sorted(wanted - there.keys()):
        _add_tax_id(billing, stripe_customer_id, place, account, key)
    billing.log.append(
        link_record(
            billing,
            customer,
            account,
            "done",
            attempt=known.attempt.number,
            stripe_customer_id=stripe_customer_id,
            payment_method=known.payment_method,
            default_payment_method=known.default_payment_method,
            details=digest,
        )
    )
    return linked_customer(billing, customer, account)


def _add_tax_id(
    billing: Billing, stripe_customer_id: str, place: tuple[str, str], account: str | None, key: Callable[..., str]
) -> None:
    params: Json = dict(zip(("type", "value"), place, strict=True))

    def add(n: int) -> Json:
        # After an error that Stripe keeps, only the list shows whether it exists.
        there = billing.api.tax_ids_of(stripe_customer_id, account) if n else []
        for each in there:
            if (each["type"], each["value"]) == place:
                return each
        return billing.api.create_tax_id(stripe_customer_id, params, account, key(*place, n))

    repeat_call(add)
