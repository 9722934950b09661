"""API routes: the key is checked before the body is read, and JSON numbers are decimals, never floats."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from dashboard.auth import authenticate
from dashboard.problems import problem_responses
from dashboard.services import services_of
from runtime.actor import act_as
from runtime.problem import Problem
from schemas.decimals import loads_exact
from schemas.organization import Scope


class _ExactRequest(Request):
    async def json(self) -> Any:
        return loads_exact(await self.body())


class _ApiRoute(APIRoute):
    scope: ClassVar[Scope]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def authenticated(request: Request) -> Response:
            view = services_of(request).catalog.view
            principal = authenticate(request, self.scope, view)
            act_as(principal.key_id)
            exact = _ExactRequest(request.scope, request.receive)
            exact.state.principal = principal
            if self.body_field is not None:
                _require_json(exact)
                await read_body(exact)
            return await handle(exact)

        return authenticated


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        if media_type or has_body:
            raise Problem(415, "unsupported_media_type", "send the body as application/json")


async def read_body(request: Request) -> bytes:
    """The body, which the request keeps. Raises Problem 413 as soon as it is larger than the setting allows."""
    bytes_max = services_of(request).settings.body_bytes_max
    too_large = Problem(413, "body_too_large", f"at most {bytes_max} bytes are taken")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > bytes_max:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise too_large
    request._body = bytes(body)  # pyright: ignore[reportPrivateUsage]  # where Request.body() looks first
    return request._body  # pyright: ignore[reportPrivateUsage]


class AdminRoute(_ApiRoute):
    scope = Scope.ADMIN


class ReadRoute(_ApiRoute):
    scope = Scope.READ


def api_router(route_class: type[_ApiRoute], tag: str) -> APIRouter:
    """A router under /api/v1 whose routes need the class's scope."""
    return APIRouter(
        prefix="/api/v1",
        route_class=route_class,
        tags=[tag],
        responses=problem_responses(400, 401, 403, 422, 503),
    )
