"""/api/v1/customers/{id}/benefits: what a customer's subscriptions grant, and whether they are paid for."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field

from dashboard.auth import Caller
from dashboard.objects import Instant, Page
from dashboard.problems import problem_responses
from dashboard.routing import ReadRoute, api_router
from dashboard.services import Services, services_of
from dashboard.subscriptions import status_at
from dashboard.usage_queries import unpaid_invoices
from dashboard.writes import found
from ledger.benefits import BenefitsState, Unpaid, UnpaidReason, benefits_state, suspending
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.customer import Customer
from schemas.period import SECOND_US
from schemas.product import Product
from schemas.subscription import Subscription

router = api_router(ReadRoute, "Benefits")


class BenefitOut(BaseModel):
    """One benefit that a subscription grants."""

    benefit: str
    subscription_id: str
    product_id: str
    state: BenefitsState
    since: Instant | None = Field(description="since when it is suspended or ended; null while it is active")
    reason: UnpaidReason | None = Field(description="why it is suspended")
    invoice_id: str | None = Field(description="the unpaid invoice that suspends it")


@router.get("/customers/{id:path}/benefits", responses=problem_responses(404))
async def list_benefits(request: Request, caller: Caller, id: str) -> Page[BenefitOut]:
    """Every benefit of every subscription that has begun. One that is not paid for touches no other."""
    services = services_of(request)
    found(services.catalog, Customer, caller.organization_id, id)
    return Page(data=await benefits_of(services, caller.organization_id, id, now_us()), next_cursor=None)


@router.api_route("/customers/{id:path}/benefits", methods=["POST", "PATCH", "PUT", "DELETE"], include_in_schema=False)
async def only_listed(id: str) -> None:
    """Without it the id, which may contain a slash, would be taken to end in /benefits."""
    raise Problem(405, "method_not_allowed", f"the benefits of {id[:80]} can only be listed", headers={"Allow": "GET"})


async def benefits_of(services: Services, organization_id: str, customer_id: str, now: int) -> list[BenefitOut]:
    """now: µs. Raises WarehouseUnavailable."""
    view = services.catalog.view
    begun = [
        (each, product)
        for each in view.subscriptions_of(organization_id, customer_id)
        if status_at(each, now) != "scheduled"
        and (product := view.get(Product, organization_id, each.product_at(now))) is not None
    ]
    if not any(product.benefits for _, product in begun):
        return []
    owed = await services.warehouse.run(unpaid_invoices, organization_id, customer_id)
    grace_us = services.settings.benefits_grace_seconds * SECOND_US
    return [
        BenefitOut(benefit=benefit, product_id=product.id, **state)
        for subscription, product in begun
        for state in [_state(subscription, owed.get(subscription.id, {}), now, grace_us)]
        for benefit in product.benefits
    ]


def _state(subscription: Subscription, owed: dict[str, Unpaid], now: int, grace_us: int) -> dict[str, Any]:
    """owed: invoice id → what is owed."""
    state = benefits_state(owed.values(), subscription.ends_at, now, grace_us)
    by = suspending(owed.values(), now, grace_us) if state == "suspended" else None
    since = by.suspends_from(grace_us) if by else (subscription.ends_at if state == "ended" else None)
    return {
        "subscription_id": subscription.id,
        "state": state,
        "since": since,
        "reason": by.reason if by else None,
        "invoice_id": next((id_ for id_, each in owed.items() if each is by), None),
    }
