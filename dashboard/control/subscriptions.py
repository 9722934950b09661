"""/api/v1/subscriptions: customer × product, from when on, in which cycles."""

from __future__ import annotations

from fastapi import Request, Response

from dashboard import subscriptions as lifecycle
from dashboard.auth import Caller
from dashboard.control.common import (
    PAGE_DEFAULT,
    Cursor,
    Filter,
    IdempotencyKey,
    IfMatch,
    Limit,
    answered,
    matching,
    shown_page,
    store_of,
)
from dashboard.customer_changes import require_reachable
from dashboard.objects import (
    CycleOut,
    Page,
    ProductChoice,
    SubscriptionChanges,
    SubscriptionOut,
    fields_of,
)
from dashboard.problems import problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.writes import change, create, found, object_id, require_customer, require_sellable
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.customer import Customer
from schemas.subscription import CancelRequest, Subscription, SubscriptionSpec

router = api_router(AdminRoute, "Subscriptions")


def shown(subscription: Subscription, version: int, now: int) -> SubscriptionOut:
    cycle = lifecycle.cycle_shown(subscription, now)
    return SubscriptionOut.model_validate(
        {
            **fields_of(subscription, version),
            "changes": [dict(change) for change in subscription.changes],
            "status": lifecycle.status_at(subscription, now),
            "current_cycle": cycle and CycleOut(start=cycle.start_us, end=cycle.end_us),
        }
    )


@router.post("/subscriptions", status_code=201, responses=problem_responses(409))
async def create_subscription(
    request: Request, response: Response, caller: Caller, body: SubscriptionSpec, idempotency_key: IdempotencyKey = None
) -> SubscriptionOut:
    store, now = store_of(request), now_us()
    organization = store.view.organization(caller.organization_id)
    if organization is None:
        raise Problem(404, "not_found", "the organization does not exist yet")
    customer = require_customer(store, caller.organization_id, body.customer_id)
    require_reachable(customer, body.collection_method)
    require_sellable(store, caller.organization_id, body.product_id)
    subscription = lifecycle.begun(
        body,
        subscription_id=object_id("subscription", caller.organization_id, idempotency_key),
        organization_id=caller.organization_id,
        time_zone=organization.time_zone,
        now=now,
    )
    if store.view.get(Subscription, caller.organization_id, subscription.id) is None:  # else an earlier try made it
        lifecycle.require_billed_from(subscription, now)
        lifecycle.require_backdate(subscription, backdate=body.backdate, now=now)
    subscription, version = await create(store, subscription, idempotency_key)
    return answered(response, shown(subscription, version, now), version)


@router.get("/subscriptions")
async def list_subscriptions(
    request: Request,
    caller: Caller,
    customer_id: Filter = None,
    product_id: Filter = None,
    status: lifecycle.Status | None = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Page[SubscriptionOut]:
    now = now_us()
    subscriptions = [
        subscription
        for subscription in matching(request, Subscription, caller, False, customer_id=customer_id)
        if (product_id is None or product_id in subscription.product_ids)
        and (status is None or lifecycle.status_at(subscription, now) == status)
    ]
    return shown_page(
        request, caller, subscriptions, Subscription, limit, cursor, lambda s, version: shown(s, version, now)
    )


@router.get("/subscriptions/{id}", responses=problem_responses(404))
async def get_subscription(request: Request, response: Response, caller: Caller, id: str) -> SubscriptionOut:
    subscription, version = found(store_of(request), Subscription, caller.organization_id, id)
    return answered(response, shown(subscription, version, now_us()), version)


@router.patch("/subscriptions/{id}", responses=problem_responses(404, 409, 412))
async def change_subscription(
    request: Request, response: Response, caller: Caller, id: str, body: SubscriptionChanges, if_match: IfMatch = None
) -> SubscriptionOut:
    """Change the collection_method. Use `/change` for another product and `/cancel` to cancel."""

    def edit(subscription: Subscription) -> Subscription:
        if body.collection_method is None:
            return subscription
        customer = store_of(request).view.get(Customer, caller.organization_id, subscription.customer_id)
        if customer is not None:
            require_reachable(customer, body.collection_method)
        return subscription.model_copy(update={"collection_method": body.collection_method})

    subscription, version = await change(store_of(request), Subscription, caller.organization_id, id, if_match, edit)
    return answered(response, shown(subscription, version, now_us()), version)


@router.post("/subscriptions/{id}/cancel", responses=problem_responses(404, 409, 412))
async def cancel_subscription(
    request: Request,
    response: Response,
    caller: Caller,
    id: str,
    body: CancelRequest | None = None,
    if_match: IfMatch = None,
) -> SubscriptionOut:
    """now: usage so far is billed. cycle_end: it runs to the end of the billing period.

    Ended subscriptions can't be changed.
    """
    now, at = now_us(), (body or CancelRequest()).at
    subscription, version = await change(
        store_of(request),
        Subscription,
        caller.organization_id,
        id,
        if_match,
        lambda subscription: lifecycle.cancelled(subscription, at, now),
    )
    return answered(response, shown(subscription, version, now), version)


@router.post("/subscriptions/{id}/change", responses=problem_responses(404, 409, 412))
async def change_subscription_product(
    request: Request, response: Response, caller: Caller, id: str, body: ProductChoice, if_match: IfMatch = None
) -> SubscriptionOut:
    """Switch to another product from the next billing period. The current period keeps its prices."""
    store, now = store_of(request), now_us()
    require_sellable(store, caller.organization_id, body.product_id)

    def edit(subscription: Subscription) -> Subscription:
        try:
            return lifecycle.changed(subscription, body.product_id, now)
        except lifecycle.AlreadyEnded as error:
            raise Problem(409, "already_ended", str(error)) from None

    subscription, version = await change(store, Subscription, caller.organization_id, id, if_match, edit)
    return answered(response, shown(subscription, version, now), version)


@router.delete("/subscriptions/{id}", responses=problem_responses(404, 409, 412))
async def end_subscription(
    request: Request, response: Response, caller: Caller, id: str, if_match: IfMatch = None
) -> SubscriptionOut:
    """Cancel now."""
    return await cancel_subscription(request, response, caller, id, CancelRequest(at="now"), if_match)
