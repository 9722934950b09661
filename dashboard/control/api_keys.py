"""/api/v1/api-keys: a secret is shown once, and in force until it is revoked."""

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
    shower,
    shown_page,
    store_of,
)
from dashboard.objects import ApiKeyOut, NewApiKeyOut, Page, fields_of
from dashboard.problems import problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.writes import archived as revoked
from dashboard.writes import change, found, object_id, write
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.organization import ApiKey, ApiKeySpec, new_secret, secret_digest

router = api_router(AdminRoute, "API keys")
_show = shower(ApiKeyOut)
HINT_LENGTH = 4


def new_api_key(spec: ApiKeySpec, id_: str, organization_id: str, secret: str, now: int) -> ApiKey:
    """A key as it is kept: without its secret."""
    return ApiKey(
        **dict(spec),
        id=id_,
        organization_id=organization_id,
        sha256=secret_digest(secret),
        hint=secret[-HINT_LENGTH:],
        created_at=now,
    )


@router.post("/api-keys", status_code=201, responses=problem_responses(409))
async def create_api_key(
    request: Request, response: Response, caller: Caller, body: ApiKeySpec, idempotency_key: IdempotencyKey = None
) -> NewApiKeyOut:
    store = store_of(request)
    id_ = object_id("api_key", caller.organization_id, idempotency_key)
    if store.view.version(ApiKey, caller.organization_id, id_):
        raise Problem(
            409,
            "secret_not_recoverable",
            f"{id_} was made by an earlier try; its secret is gone: revoke it and make another",
        )
    secret = new_secret()
    key = new_api_key(body, id_, caller.organization_id, secret, now_us())
    await write(store, key, 0)
    response.headers["Cache-Control"] = "no-store"
    return answered(response, NewApiKeyOut.model_validate({**fields_of(key, 1), "secret": secret}), 1)


@router.get("/api-keys")
async def list_api_keys(
    request: Request, caller: Caller, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None, archived: Archived = False
) -> Page[ApiKeyOut]:
    return shown_page(request, caller, matching(request, ApiKey, caller, archived), ApiKey, limit, cursor, _show)


@router.get("/api-keys/{id}", responses=problem_responses(404))
async def get_api_key(request: Request, response: Response, caller: Caller, id: str) -> ApiKeyOut:
    key, version = found(store_of(request), ApiKey, caller.organization_id, id)
    return answered(response, _show(key, version), version)


@router.delete("/api-keys/{id}", responses=problem_responses(404, 409, 412))
async def revoke_api_key(
    request: Request, response: Response, caller: Caller, id: str, if_match: IfMatch = None
) -> ApiKeyOut:
    """Revoke a key. It stops working within two seconds. A key can't revoke itself."""
    if id == caller.key_id:
        raise Problem(409, "own_key", "this request is made with that key; revoke it with another one")
    key, version = await change(store_of(request), ApiKey, caller.organization_id, id, if_match, revoked)
    return answered(response, _show(key, version), version)
