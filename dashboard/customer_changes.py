"""a customer's change → Stripe asked, the catalog's log, Stripe told: one way for API and pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from catalog.view import CatalogView
from dashboard.billing_access import answered
from dashboard.billing_port import BillingUnavailable
from dashboard.problems import field_problem
from dashboard.services import Services
from dashboard.writes import change, create, found, require_match
from schemas.customer import CollectionMethod, Customer

log = structlog.get_logger(__name__)

Edit = Callable[[Customer], Customer]


async def create_customer(services: Services, customer: Customer, idempotency_key: str | None) -> tuple[Customer, int]:
    """Raises Problem 422 for what Stripe does not take, 503 where it can't be asked; what `create` raises."""
    await check_new(services, customer)
    return await create(services.catalog, customer, idempotency_key)


async def check_new(services: Services, customer: Customer) -> None:
    """Raises Problem 422 for what Stripe does not take of a new customer, 503 where it can't be asked."""
    await _check(services, None, customer)


async def change_customer(
    services: Services, organization_id: str, id_: str, if_match: str | None, edit: Edit, *, by: str
) -> tuple[Customer, int]:
    """Raises as `create_customer` and `change` do. by: who asks, for the ledger."""
    store = services.catalog
    before, version = found(store, Customer, organization_id, id_)
    require_match(if_match, version)
    after = edit(before)
    if is_reachable(before) and not is_reachable(after):
        require_no_sent_invoices(store.view, after)
    if not before.archived:
        await _check(services, before, after)
    customer, version = await change(store, Customer, organization_id, id_, if_match, edit)
    billing = services.billing
    if billing is not None:
        try:
            await asyncio.to_thread(billing.customer_changed, before, customer, by)
        except BillingUnavailable as error:  # it is saved, and Stripe hears of it with the next invoice
            log.warning("customer_not_told_to_billing", customer=id_, reason=str(error))
    return customer, version


async def _check(services: Services, before: Customer | None, after: Customer) -> None:
    """Raises Problem 422 and 503. A process without a ledger leaves the question to billing."""
    billing = services.billing
    if billing is not None:
        await answered(lambda: billing.check_customer(before, after))


def is_reachable(customer: Customer) -> bool:
    """Whether Stripe can send it an invoice. It knows the e-mail of a customer that was given."""
    return customer.email is not None or customer.stripe_customer_id is not None


def require_reachable(customer: Customer, collection_method: CollectionMethod) -> None:
    """Raises Problem 422 where an invoice is to be sent to a customer without an e-mail: Stripe makes none."""
    if collection_method == "send_invoice" and not is_reachable(customer):
        raise field_problem(
            "collection_method", "customer_without_email", f"invoices are sent by e-mail, and {customer.name} has none"
        )


def require_no_sent_invoices(view: CatalogView, customer: Customer) -> None:
    """Raises Problem 422 where a subscription that goes on would send its invoices to nowhere."""
    for subscription in view.subscriptions_of(customer.organization_id, customer.id):
        if subscription.collection_method == "send_invoice" and subscription.ends_at is None:
            raise field_problem(
                "email", "customer_without_email", f"the invoices of subscription {subscription.id} are sent by e-mail"
            )
