"""API routes: the key is checked before the body is read, and JSON numbers are decimals, never floats."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, cast

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from dashboard.auth import Principal, authenticate
from dashboard.problems import invalid_request, problem_responses
from dashboard.services import services_of
from runtime.access import KEY
from runtime.actor import act_as
from runtime.body import Deadlines, Receive, headers_of
from runtime.body import read_body as body_of
from runtime.problem import Problem
from schemas.decimals import loads_exact
from schemas.organization import Scope

BODY_BYTES_MAX = 1024 * 1024
_BODIES = Deadlines()


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
            request.scope[KEY] = principal.organization_id, principal.key_id
            limits = services_of(request).limits
            limits.admit(principal.organization_id, principal.key_id)
            try:
                return await answer(request, principal)
            except (Problem, RequestValidationError) as error:
                status = error.status if isinstance(error, Problem) else 422
                limits.answered(principal.organization_id, principal.key_id, status)
                raise

        async def answer(request: Request, principal: Principal) -> Response:
            exact = _ExactRequest(request.scope, request.receive)
            exact.state.principal = principal
            if self.body_field is not None:
                _require_json(exact)
                _require_text(await read_body(exact, BODY_BYTES_MAX))
            return await handle(exact)

        return authenticated


def _require_text(body: bytes) -> None:
    """Raises Problem 422 for a text with half of a surrogate pair: pydantic raises when it reports one."""
    if b"\\u" not in body and b"\xed" not in body:  # spelled out, or as bytes that only Python's JSON takes
        return
    try:
        document = loads_exact(body)
    except (ValueError, RecursionError):
        return  # refused where it is read
    waiting: list[tuple[tuple[str | int, ...], Any]] = [(("body",), document)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, dict):
            waiting += [((*path, name), value) for name, value in cast(dict[str, Any], node).items()]
        elif isinstance(node, list):
            waiting += [((*path, place), value) for place, value in enumerate(cast(list[Any], node))]
        elif isinstance(node, str) and not node.isascii():
            try:
                node.encode()
            except UnicodeEncodeError:
                message = "must not contain half of a surrogate pair"
                raise invalid_request([{"type": "string_unicode", "loc": path, "msg": message}]) from None


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        if media_type or has_body:
            raise Problem(415, "unsupported_media_type", "send the body as application/json")


async def read_body(request: Request, bytes_max: int, deadlines: Deadlines = _BODIES) -> bytes:
    """The body, which the request keeps. Raises Problem 400, 408, 413 or 415, ClientGone."""
    bytes_max = min(bytes_max, services_of(request).settings.body_bytes_max)
    body = await body_of(
        cast(Receive, request.receive), headers_of(cast(dict[str, Any], request.scope)), bytes_max, deadlines
    )
    request._body = body  # pyright: ignore[reportPrivateUsage]  # where Request.body() looks first
    return body


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
        responses=problem_responses(400, 401, 403, 422, 429, 503),
    )
