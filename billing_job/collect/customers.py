"""customer → Stripe customer with its payment method: given, or made once, at the first invoice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from billing_job.collect.steps import Billing, InvoiceStopped, rests_until
from billing_job.stripe.api import IdempotencyMisuse, Json, StripeDeclined, StripeFailure, StripeRefused, StripeReplayed
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
from ledger.records import Phase, StripeCustomer
from schemas.customer import Customer
from schemas.period import SECOND_US

log = structlog.get_logger(__name__)

CUSTOMER_TAKEN = "stripe_customer_taken"
"""Code of an id that is of another customer of ours."""
_GONE = "customer_gone"
_AT_ONCE = frozenset({_GONE, "details_changed"})
"""Codes of failures that the next attempt need not rest after."""
_ATTEMPTS_MAX = 3
_CLOCK_SLACK_SECONDS = 24 * 3600  # between our clock and Stripe's; a listing that begins too early costs a page


def ensure_stripe_customer(
    billing: Billing, customer: Customer, account: str | None, *, asked_at: int = 0
) -> StripeCustomerState:
    """The customer at Stripe in force, made if there is none, with the catalog's payment method attached.

    A payment method that is refused is recorded with the reason and stops nothing: the invoice is made and stays open.
    asked_at: when someone last asked for a payment to be tried again; what was refused before is attached once more.
    Raises StripeFailure, InvoiceStopped, LedgerUnavailable.
    """
    known = _state(billing, customer, account)
    if known is None or known.stripe_customer_id is None:
        known = _link(billing, customer, account, asked_at)
    elif customer.stripe_customer_id not in (None, known.stripe_customer_id):
        known = _given(billing, customer, account, customer.stripe_customer_id)
    if customer.stripe_customer_id is None and known.details != details_digest(customer):
        known = _update(billing, customer, account, known)
    return with_payment_method(billing, customer, account, known, asked_at=asked_at)


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
        billing.log.append(_linked(billing, customer, account, known, payment_method=None, default_payment_method=None))
        return _in_force(billing, customer, account)
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
        _set(lambda n: billing.api.detach_payment_method(method_id, account, key(n)))
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


def _state(billing: Billing, customer: Customer, account: str | None) -> StripeCustomerState | None:
    return billing.log.state.link(customer.organization_id, customer.id, account, billing.api.owner)


def _record(
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


def _linked(
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
    return _record(
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


def _in_force(billing: Billing, customer: Customer, account: str | None) -> StripeCustomerState:
    found = _state(billing, customer, account)
    assert found is not None
    assert found.stripe_customer_id is not None
    return found


def own_stripe_customer(billing: Billing, customer: Customer, account: str | None, stripe_customer_id: str) -> Json:
    """The customer at Stripe that was given for ours. Raises StripeRefused: there is none, or it is another's."""
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
    """Whether Stripe has said that the customer is none, or another's. A key that may not ask says neither."""
    return refused.code in ("resource_missing", CUSTOMER_TAKEN)


def is_gone(failure: StripeFailure) -> bool:
    """Whether Stripe refused a call because it does not know the customer that it names."""
    return isinstance(failure, StripeRefused) and failure.code == "resource_missing" and failure.param == "customer"


def forget_stripe_customer(billing: Billing, customer: Customer, account: str | None, failure: StripeFailure) -> None:
    """Record that the customer in force is gone at Stripe: what follows links another one, or makes it."""
    known = _state(billing, customer, account)
    if known is not None and known.stripe_customer_id is not None:
        log.warning("stripe_customer_gone", customer=customer.id, stripe_customer=known.stripe_customer_id)
        gone = StripeRefused(failure.reason, status=404, code=_GONE)
        attempt, lost = known.attempt.number, known.stripe_customer_id
        billing.log.append(
            _record(billing, customer, account, "failed", attempt=attempt, stripe_customer_id=lost, failure=gone)
        )


def _given(billing: Billing, customer: Customer, account: str | None, given: str) -> StripeCustomerState:
    """The link to a customer that was given, in place of the one there was. It was looked at when it was entered."""
    known = _state(billing, customer, account)
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
    known = _state(billing, customer, account)
    billing.log.append(
        _record(
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
    return _in_force(billing, customer, account)


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
    for _ in range(_ATTEMPTS_MAX):
        attempt, fresh, begun_at = _begin(billing, customer, account, asked_at)
        try:
            made = None if fresh else _find(billing, customer, account, begun_at)
            if made is None:
                key = customer_call_key(customer.organization_id, customer.id, "create", attempt)
                made = billing.api.create_customer(customer_params(customer), account, key, may_have_run=not fresh)
        except StripeReplayed as failure:
            made = _find(billing, customer, account, begun_at)
            if made is None:
                billing.log.append(_record(billing, customer, account, "failed", attempt=attempt, failure=failure))
                continue
        except IdempotencyMisuse as misuse:
            # The details changed since a call whose outcome is unknown. It made nothing, or it would have been found.
            failure = StripeRefused(str(misuse), status=misuse.status, code="details_changed")
            billing.log.append(_record(billing, customer, account, "failed", attempt=attempt, failure=failure))
            continue
        except StripeFailure as failure:
            phase: Phase = "failed" if isinstance(failure, StripeRefused) else "unknown"
            billing.log.append(_record(billing, customer, account, phase, attempt=attempt, failure=failure))
            raise
        # One that was found may have been made with details of before: they are told again.
        details = details_digest(customer) if fresh else None
        billing.log.append(
            _record(billing, customer, account, "done", attempt=attempt, stripe_customer_id=made["id"], details=details)
        )
        return _in_force(billing, customer, account)
    raise InvoiceStopped("customer: Stripe keeps answering with an error of its own")


def _begin(billing: Billing, customer: Customer, account: str | None, asked_at: int) -> tuple[int, bool, int]:
    """(attempt, whether no call with its key was made before, when it began)."""
    known = _state(billing, customer, account)
    if known is not None and not known.attempt.may_advance:
        if known.attempt.phase == "failed":
            raise InvoiceStopped(f"the customer can't be made at Stripe: {known.reason}")
        return known.attempt.number, False, known.attempt.begun_at
    rests = known is not None and known.attempt.code not in _AT_ONCE and known.attempt.begun_at > asked_at
    if known is not None and rests and billing.scheduled:
        later = rests_until(known.attempt.begun_at, known.attempt.number)
        if billing.clock() < later:
            raise InvoiceStopped(f"the customer could not be made at Stripe ({known.reason}) and is tried again later")
    intent = _record(billing, customer, account, "intent", attempt=known.attempt.number + 1 if known else 1)
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
        # The state that this starts from is part of it: details that come back are told again.
        return customer_call_key(customer.organization_id, customer.id, *call, digest, known.attempt.begun_at)

    changes = customer_changes(customer)
    _set(lambda n: billing.api.update_customer(stripe_customer_id, changes, account, key("details", n)))
    wanted = {(each.type, each.value) for each in customer.tax_ids}
    there = {(each["type"], each["value"]): each["id"] for each in billing.api.tax_ids_of(stripe_customer_id, account)}
    for place in there.keys() - wanted:
        billing.api.delete_tax_id(stripe_customer_id, there[place], account)
    for place in sorted(wanted - there.keys()):
        _add_tax_id(billing, stripe_customer_id, place, account, key)
    billing.log.append(
        _record(
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
    return _in_force(billing, customer, account)


def _add_tax_id(
    billing: Billing, stripe_customer_id: str, place: tuple[str, str], account: str | None, key: Callable[..., str]
) -> None:
    params: Json = dict(zip(("type", "value"), place, strict=True))

    def add(n: int) -> Json:
        # After an error that Stripe keeps, only the list tells whether it is there.
        there = billing.api.tax_ids_of(stripe_customer_id, account) if n else []
        for each in there:
            if (each["type"], each["value"]) == place:
                return each
        return billing.api.create_tax_id(stripe_customer_id, params, account, key(*place, n))

    _set(add)


def _set(call: Callable[[int], Json]) -> Json:
    """A call that changes nothing when it is repeated; where Stripe keeps an error under its key, under another one.

    call: takes the number of the key. Raises StripeFailure.
    """
    for number in range(_ATTEMPTS_MAX - 1):
        try:
            return call(number)
        except StripeReplayed as replayed:
            log.warning("stripe_error_kept", reason=replayed.reason, request=replayed.request_id)
    return call(_ATTEMPTS_MAX - 1)


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
        _linked(
            billing,
            customer,
            account,
            known,
            payment_method=customer.payment_method,
            default_payment_method=method_id,
            failure=failure,
        )
    )
    return _in_force(billing, customer, account)


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
    _set(lambda n: billing.api.update_customer(stripe_customer_id, default, account, key(n)))
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
        of_token = _set(lambda n: billing.api.create_payment_method(params, account, key("method", n)))["id"]

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

    return str(_set(attach)["id"])
