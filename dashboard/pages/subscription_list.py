"""subscriptions → lines of a list: whose, of what, in which cycle now."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.view import CatalogView
from dashboard.subscriptions import Status, cycle_shown, status_at
from schemas.customer import Customer
from schemas.period import Cycle
from schemas.product import Product
from schemas.subscription import Subscription


@dataclass(frozen=True, slots=True)
class SubscriptionLine:
    """product: the one in force now (before the start: the first). cycle: the current one; None unless active."""

    subscription: Subscription
    customer: Customer | None
    product: Product | None
    status: Status
    cycle: Cycle | None


def subscription_line(view: CatalogView, subscription: Subscription, now: int) -> SubscriptionLine:
    cycle = cycle_shown(subscription, now)
    product_id = subscription.product_at(cycle.start_us if cycle else now)
    organization = subscription.organization_id
    return SubscriptionLine(
        subscription=subscription,
        customer=view.get(Customer, organization, subscription.customer_id),
        product=view.get(Product, organization, product_id),
        status=status_at(subscription, now),
        cycle=cycle,
    )


def subscription_list(
    view: CatalogView,
    organization_id: str,
    now: int,
    *,
    customer_id: str | None = None,
    product_id: str | None = None,
    limit: int = 200,
) -> list[SubscriptionLine]:
    """Newest first."""
    of_whom = (
        list(view.subscriptions_of(organization_id, customer_id))
        if customer_id is not None
        else view.all(Subscription, organization_id)
    )
    matching = [each for each in reversed(of_whom) if product_id is None or product_id in each.product_ids]
    return [subscription_line(view, subscription, now) for subscription in matching[:limit]]
