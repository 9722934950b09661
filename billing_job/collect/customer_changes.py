"""entries of customers and settings → checked at Stripe before they are saved, sent to Stripe afterwards."""

from __future__ import annotations

import structlog

from billing_job.collect.customers import CUSTOMER_TAKEN, ensure_stripe_customer, own_stripe_customer, says_no
from billing_job.collect.payment_methods import attached_payment_method
from billing_job.collect.requests import record_request
from billing_job.collect.steps import InvoiceStopped
from billing_job.context import BillingContext
from billing_job.stripe.errors import StripeDeclined, StripeFailure, StripeRefused
from catalog.view import CatalogView
from ledger.invoice import Invoice, may_pay_again
from schemas.customer import Customer
from schemas.organization import Organization

log = structlog.get_logger(__name__)


class StripeDoesNotTake(ValueError):
    """Stripe does not take what was entered. field: at fault. code: stable, for programs."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def check_customer(context: BillingContext, before: Customer | None, after: Customer) -> None:
    """Ask Stripe about an id or a payment method that is new. Raises StripeDoesNotTake, StripeFailure.

    A card of a customer that Stripe has is attached, so that one that is refused is known while someone is there to
    enter another. It is charged only after `apply_customer_change`.
    """
    view = context.catalog.view
    account = _account(view, after)
    given = after.stripe_customer_id
    if given is not None and (before is None or before.stripe_customer_id != given):
        try:
            own_stripe_customer(context.billing(), after, account, given)
        except StripeRefused as refused:
            if refused.code == CUSTOMER_TAKEN:
                raise StripeDoesNotTake("stripe_customer_id", CUSTOMER_TAKEN, str(refused)) from refused
            if says_no(refused):
                raise StripeDoesNotTake("stripe_customer_id", "stripe_customer_unknown", refused.reason) from refused
            if refused.status not in (403, 404):
                raise
            log.warning("stripe_customer_not_looked_at", customer=after.id, reason=refused.reason)
    method = after.payment_method
    if before is None or method is None or method == before.payment_method:
        return
    if not view.subscriptions_of(after.organization_id, after.id):
        return  # never billed: it is attached when it is made at Stripe
    billing = context.billing()
    known = billing.log.state.link(after.organization_id, after.id, account, billing.api.owner)
    if known is None or known.stripe_customer_id is None or given not in (None, known.stripe_customer_id):
        return
    try:
        attached_payment_method(billing, after, method, known, account)
    except (StripeDeclined, StripeRefused) as refused:
        if refused.status not in (400, 402, 404):
            raise
        raise StripeDoesNotTake("payment_method", "payment_method_refused", refused.reason) from refused


def apply_customer_change(context: BillingContext, before: Customer | None, after: Customer, by: str) -> None:
    """Have what waited for the change tried again, and bring it to Stripe, where the customer is one there already.

    What Stripe does not take now reaches it with the customer's next invoice. Raises LedgerUnavailable.
    """
    view = context.catalog.view
    if before is None or before == after or not view.subscriptions_of(after.organization_id, after.id):
        return
    billing, account = context.billing(), _account(view, after)
    new_method = before.payment_method != after.payment_method
    for invoice in billing.log.state.of_customer(after.organization_id, after.id):
        # An uncollectible invoice was given up: only a person retries it.
        is_open = invoice.stripe is not None and invoice.stripe.status == "open"
        pays_now = new_method and after.payment_method and is_open and may_pay_again(invoice)
        if waits_for_customer(invoice) or pays_now:
            record_request(billing.log, invoice, "retry", by)
    try:
        known = billing.log.state.link(after.organization_id, after.id, account, billing.api.owner)
        if known is not None and known.stripe_customer_id is not None:
            ensure_stripe_customer(billing, after, account)
    except (StripeFailure, InvoiceStopped) as error:
        log.warning("customer_not_told_to_stripe", customer=after.id, reason=str(error))


def waits_for_customer(invoice: Invoice) -> bool:
    """Whether nothing could be made at Stripe, perhaps for want of its customer. Pure."""
    failed = any(attempt.phase == "failed" for attempt in invoice.steps.values())
    return invoice.fixed is not None and invoice.stripe_invoice_id is None and failed and not invoice.voiding


def check_settings(context: BillingContext, before: Organization, after: Organization) -> None:
    """Ask Stripe about an account or tax rates that are new. Raises StripeDoesNotTake, StripeFailure."""
    account = after.stripe_account_id
    moved = account != before.stripe_account_id
    if moved and account is not None:
        try:
            context.billing().api.account(account)
        except StripeRefused as refused:
            if refused.status not in (400, 403, 404):
                raise
            raise StripeDoesNotTake("stripe_account_id", "stripe_account_unknown", refused.reason) from refused
    for index, rate in enumerate(after.tax_rates):
        if not moved and rate in before.tax_rates:
            continue
        try:
            context.billing().api.tax_rate(rate, account)
        except StripeRefused as refused:
            if refused.status not in (400, 404):
                raise
            raise StripeDoesNotTake(f"tax_rates.{index}", "tax_rate_unknown", refused.reason) from refused


def _account(view: CatalogView, customer: Customer) -> str | None:
    organization = view.organization(customer.organization_id)
    return None if organization is None else organization.stripe_account_id
