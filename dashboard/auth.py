"""Authorization header → organization: the one place that decides which tenant a request belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from catalog.auth import authorize
from catalog.view import CatalogView
from schemas.organization import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: everything it reads and writes is organization_id's."""

    organization_id: str
    key_id: str


def authenticate(request: Request, scope: Scope, view: CatalogView) -> Principal:
    """Raises Problem: 401 without a key in force, 403 when the key's scopes don't allow it."""
    key = authorize(view, request.headers.get("authorization"), scope)
    return Principal(key.organization_id, key.id)


_bearer = HTTPBearer(bearerFormat="ubk_…", scheme_name="API key", auto_error=False)


def _principal(request: Request, _: Annotated[object, Depends(_bearer)]) -> Principal:
    """What the route's class found before it read the body."""
    return cast(Principal, request.state.principal)


Caller = Annotated[Principal, Depends(_principal)]
"""A route's parameter: who asks."""
