"""/api-keys: made, shown once, revoked."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.control.api_keys import new_api_key
from dashboard.control.common import validated
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, new_request_key, request_key
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor, sessions_of
from dashboard.services import services_of
from dashboard.writes import archived, change, create, object_id
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.organization import ApiKey, ApiKeySpec, Scope

router = APIRouter(include_in_schema=False)


def _page(
    request: Request,
    visitor: Session,
    values: Any = None,
    errors: Errors = NO_ERRORS,
    status: int = 200,
    secret: str | None = None,
) -> Response:
    keys = services_of(request).catalog.view.all(ApiKey, visitor.organization_id)
    return render(
        request,
        "api_keys.html",
        visitor,
        status=status,
        keys=sorted(keys, key=lambda key: (key.archived, -key.created_at)),
        scopes=[scope.value for scope in Scope],
        values=values or {},
        errors=errors,
        secret=secret,
    )


@router.get("/api-keys")
async def api_keys(request: Request, visitor: Visitor) -> Response:
    return _page(request, visitor)


@router.post("/api-keys")
async def create_api_key(request: Request, visitor: Visitor, form: Form) -> Response:
    """The secret is in this answer and nowhere else: it is a page to read, not one to go back to."""
    organization = visitor.organization_id

    async def making() -> str:
        scopes = [scope for scope in Scope if f"scope-{scope}" in form]
        spec = validated(ApiKeySpec, {"name": form.get("name", ""), "scopes": scopes})
        asked = request_key(form) or new_request_key()
        secret = sessions_of(request).api_key_secret(visitor, asked)
        key = new_api_key(spec, object_id("api_key", organization, asked), organization, secret, now_us())
        await create(services_of(request).catalog, key, asked)
        return secret

    secret, errors, status = await attempted(making())
    return _page(request, visitor, form if errors else None, errors, status, secret)


@router.post("/api-keys/{id}")
async def revoke_api_key(request: Request, visitor: Visitor, _: Form, id: str) -> Response:
    async def revoking() -> None:
        if id == visitor.key_id:
            raise Problem(409, "own_key", "You are signed in with this key; sign in with another one to revoke it")
        await change(services_of(request).catalog, ApiKey, visitor.organization_id, id, None, archived)

    _none, errors, status = await attempted(revoking())
    if errors:
        return _page(request, visitor, None, errors, status)
    return RedirectResponse("/api-keys", 303)
