"""/api/v1/webhook-endpoints: where alerts are sent to."""

from __future__ import annotations

from fastapi import Request, Response

from dashboard.auth import Caller
from dashboard.control.common import (
    PAGE_DEFAULT,
    Archived,
    Cursor,
    IdempotencyKey,
    IfMatch,
    Limit,
    answered,
    matching,
    patched,
    shower,
    shown_page,
    store_of,
)
from dashboard.objects import NewWebhookEndpointOut, Page, WebhookEndpointChanges, WebhookEndpointOut
from dashboard.problems import field_problem, problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.services import Services, services_of
from dashboard.webhooks.targets import RefusedTarget, check_address
from dashboard.writes import archive_unused, change, create, found, object_id
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.webhook_endpoint import WebhookEndpoint, WebhookEndpointSpec, new_signing_secret

router = api_router(AdminRoute, "Webhooks")
_show = shower(WebhookEndpointOut)
_show_with_secret = shower(NewWebhookEndpointOut)
ENDPOINTS_MAX = 20


def require_target(services: Services, url: str) -> None:
    """Raises Problem 422 for an address that nothing would be sent to."""
    try:
        check_address(url, private=services.settings.webhook_private_targets)
    except RefusedTarget as refusal:
        raise field_problem("url", "refused_target", str(refusal)) from None


async def make_endpoint(
    services: Services, organization_id: str, spec: WebhookEndpointSpec, idempotency_key: str | None
) -> tuple[WebhookEndpoint, int]:
    """Write a new endpoint. Raises as `create` does, and Problem 422, 409."""
    require_target(services, spec.url)
    id_ = object_id("webhook_endpoint", organization_id, idempotency_key)
    view = services.catalog.view
    if not view.version(WebhookEndpoint, organization_id, id_):
        in_force = sum(not each.archived for each in view.all(WebhookEndpoint, organization_id))
        if in_force >= ENDPOINTS_MAX:
            raise Problem(409, "too_many_endpoints", f"at most {ENDPOINTS_MAX} endpoints can be active")
    endpoint = WebhookEndpoint(
        **dict(spec),
        id=id_,
        organization_id=organization_id,
        secret=new_signing_secret(),
        created_at=now_us(),
    )
    return await create(services.catalog, endpoint, idempotency_key)


@router.post("/webhook-endpoints", status_code=201, responses=problem_responses(409))
async def create_webhook_endpoint(
    request: Request,
    response: Response,
    caller: Caller,
    body: WebhookEndpointSpec,
    idempotency_key: IdempotencyKey = None,
) -> NewWebhookEndpointOut:
    """Send every alert to `url`, as `alert.fired`, signed as described by Standard Webhooks.

    `webhook-id` is the alert's id. Retried with backoff for 24 hours until 2xx.
    """
    endpoint, version = await make_endpoint(services_of(request), caller.organization_id, body, idempotency_key)
    response.headers["Cache-Control"] = "no-store"
    return answered(response, _show_with_secret(endpoint, version), version)


@router.get("/webhook-endpoints")
async def list_webhook_endpoints(
    request: Request, caller: Caller, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None, archived: Archived = False
) -> Page[WebhookEndpointOut]:
    return shown_page(
        request, caller, matching(request, WebhookEndpoint, caller, archived), WebhookEndpoint, limit, cursor, _show
    )


@router.get("/webhook-endpoints/{id}", responses=problem_responses(404))
async def get_webhook_endpoint(request: Request, response: Response, caller: Caller, id: str) -> WebhookEndpointOut:
    endpoint, version = found(store_of(request), WebhookEndpoint, caller.organization_id, id)
    return answered(response, _show(endpoint, version), version)


@router.patch("/webhook-endpoints/{id}", responses=problem_responses(404, 409, 412))
async def change_webhook_endpoint(
    request: Request,
    response: Response,
    caller: Caller,
    id: str,
    body: WebhookEndpointChanges,
    if_match: IfMatch = None,
) -> WebhookEndpointOut:
    if body.url is not None:
        require_target(services_of(request), body.url)
    edit = patched(WebhookEndpointSpec, body)
    endpoint, version = await change(store_of(request), WebhookEndpoint, caller.organization_id, id, if_match, edit)
    return answered(response, _show(endpoint, version), version)


@router.delete("/webhook-endpoints/{id}", responses=problem_responses(404, 409, 412))
async def archive_webhook_endpoint(
    request: Request, response: Response, caller: Caller, id: str, if_match: IfMatch = None
) -> WebhookEndpointOut:
    """Stop sending to this endpoint. Pending deliveries are given up."""
    endpoint, version = await archive_unused(
        store_of(request), WebhookEndpoint, caller.organization_id, id, if_match, now_us()
    )
    return answered(response, _show(endpoint, version), version)
