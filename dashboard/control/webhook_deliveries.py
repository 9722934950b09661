"""/api/v1/webhook-deliveries: what was sent, what came of it, and once more."""

from __future__ import annotations

import asyncio

from fastapi import Request

from dashboard.auth import Caller
from dashboard.control.common import PAGE_DEFAULT, Cursor, Filter, Limit, page_of
from dashboard.objects import Page, WebhookDeliveryOut
from dashboard.problems import problem_responses, unavailable_problem
from dashboard.routing import AdminRoute, api_router
from dashboard.services import Services, services_of
from runtime.clock import now_us
from runtime.kafka.acked_producer import NotAcknowledged
from runtime.problem import Problem
from schemas.webhook_delivery import DeliveryState, WebhookDelivery

router = api_router(AdminRoute, "Webhooks")


def _show(delivery: WebhookDelivery) -> WebhookDeliveryOut:
    return WebhookDeliveryOut.model_validate(delivery, from_attributes=True)


def known_delivery(services: Services, organization_id: str, id_: str) -> WebhookDelivery:
    """Raises Problem 404."""
    delivery = services.live.view.delivery(organization_id, id_)
    if delivery is None:
        raise Problem(404, "not_found", f"there is no webhook delivery {id_[:80]}")
    return delivery


async def send_again(services: Services, organization_id: str, id_: str) -> WebhookDelivery:
    """Ask for one more attempt, now. Raises Problem 404, 409 (it was delivered), 503."""
    delivery = known_delivery(services, organization_id, id_)
    if delivery.state is DeliveryState.DELIVERED:
        raise Problem(409, "already_delivered", "the endpoint has taken this alert; it is not sent twice")
    try:
        await asyncio.to_thread(services.deliveries.ask_again, delivery, now_us())
    except NotAcknowledged as error:
        raise unavailable_problem(f"the request could not be written: {error}") from None
    return delivery


@router.get("/webhook-deliveries")
async def list_webhook_deliveries(
    request: Request,
    caller: Caller,
    endpoint_id: Filter = None,
    alert_id: Filter = None,
    state: DeliveryState | None = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Page[WebhookDeliveryOut]:
    """Newest first; the newest two thousand are kept."""
    wanted = {"endpoint_id": endpoint_id, "alert_id": alert_id, "state": state}
    known = services_of(request).live.view.deliveries(caller.organization_id)[::-1]
    matching = [
        delivery
        for delivery in known
        if all(value is None or getattr(delivery, name) == value for name, value in wanted.items())
    ]
    page, following = page_of(matching, limit, cursor, known, forgets=True)
    return Page(data=[_show(delivery) for delivery in page], next_cursor=following)


@router.get("/webhook-deliveries/{id}", responses=problem_responses(404))
async def get_webhook_delivery(request: Request, caller: Caller, id: str) -> WebhookDeliveryOut:
    return _show(known_delivery(services_of(request), caller.organization_id, id))


@router.post("/webhook-deliveries/{id}/retry", status_code=202, responses=problem_responses(404, 409))
async def retry_webhook_delivery(request: Request, caller: Caller, id: str) -> WebhookDeliveryOut:
    """Retry now. Returns the delivery as it was before the retry."""
    return _show(await send_again(services_of(request), caller.organization_id, id))
