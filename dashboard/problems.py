"""error → application/problem+json (RFC 9457): every error of the API has a code, and names the fields at fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catalog.store import CatalogConflict, CatalogUnavailable
from catalog.view import Refusal
from runtime.body import ClientGone
from runtime.problem import MEDIA_TYPE, Problem
from warehouse.client import WarehouseUnavailable

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 1
ERRORS_MAX = 1000


class FieldError(BaseModel):
    """One thing that is wrong with the request. field: a path such as prices.0.unit_amount; null: the whole of it."""

    field: str | None = Field(examples=["prices.0.unit_amount"])
    code: str = Field(examples=["decimal_parsing"])
    message: str = Field(examples=['a decimal number is expected, written like "0.002"'])


class ProblemDocument(BaseModel):
    """An error (RFC 9457). code: stable, for programs; title and detail: for people."""

    type: str = "about:blank"
    title: str = Field(examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["invalid_request"])
    detail: str
    errors: list[FieldError] = Field(default=[], description="what is wrong, field by field")


def field_problem(field: str | None, code: str, message: str, status: int = 422) -> Problem:
    """One field is at fault."""
    return Problem(status, code, message, [{"field": field, "code": code, "message": message}])


def refusal_problem(refusal: Refusal) -> Problem:
    """What the catalog would not take: 422 for what no retry can change, 409 for what another writer's state caused."""
    status = 422 if refusal.code in ("unknown_reference", "immutable_field") else 409
    return field_problem(refusal.field, refusal.code, refusal.message, status)


def unavailable_problem(detail: str) -> Problem:
    """Something behind the API does not answer; whether a write happened may be unknown."""
    return Problem(503, "unavailable", detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


_CODE_OF_STATUS = {
    400: "invalid_body",
    401: "invalid_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def invalid_request(errors: Sequence[Any], body: Any = None) -> Problem:
    """pydantic's errors → 422 with each field's path, or 400 when the body was no JSON at all.

    errors: as ValidationError.errors() gives them. body: what was validated; it tells the names of union members in a
    path, which are no fields, from fields.
    """
    if any(error["type"] == "json_invalid" for error in errors):
        return Problem(400, "invalid_body", "the body is not a JSON document")
    return Problem(
        422,
        "invalid_request",
        "the request has missing or invalid fields",
        [_field_error(error, body) for error in errors[:ERRORS_MAX]],
    )


def _field_error(error: Any, body: Any) -> dict[str, Any]:
    context = error.get("ctx") or {}
    code = error["type"]
    cause = context.get("error")
    if code == "value_error":
        code = str(getattr(cause, "code", "invalid"))
    message = str(cause) if isinstance(cause, Exception) else str(error["msg"])
    return {"field": _path(error["loc"], body), "code": code, "message": message}


def _path(loc: Sequence[str | int], body: Any) -> str | None:
    """("body", "prices", 0, "graduated", "tiers", 1) → prices.0.tiers.1, where graduated is the price's model."""
    parts = list(loc[1:]) if loc and loc[0] in ("body", "query", "path", "header") else list(loc)
    at, names = body, list[str]()
    for part in parts:
        mapping = cast(dict[str, Any], at) if isinstance(at, dict) else None
        if mapping is not None and isinstance(part, str) and part not in mapping and mapping.get("model") == part:
            continue  # the member of the union of price models
        names.append(str(part))
        if mapping is not None:
            at = mapping.get(str(part))
        elif isinstance(at, (list, tuple)) and isinstance(part, int):
            members = cast(Sequence[Any], at)
            at = members[part] if part < len(members) else None
        else:
            at = None
    return ".".join(names) or None


def problem_response(problem: Problem) -> Response:
    """The problem as it goes over the wire."""
    return Response(problem.body(), problem.status, dict(problem.headers), MEDIA_TYPE)


def as_problem(error: Exception) -> Problem:
    """Any exception as a problem; one that nobody expected tells nothing of itself."""
    match error:
        case Problem():
            return error
        case CatalogConflict():
            return refusal_problem(error.refusal)
        case CatalogUnavailable():
            return unavailable_problem(
                f"{error}. Whether the change was made may be unknown: "
                "repeat it with the same Idempotency-Key, or read the object again"
            )
        case WarehouseUnavailable():
            log.warning("warehouse_unavailable", error=str(error))
            return unavailable_problem("usage is temporarily unavailable; events are still being accepted")
        case RequestValidationError():
            return invalid_request(error.errors(), error.body)
        case StarletteHTTPException():
            code = _CODE_OF_STATUS.get(error.status_code, "http_error")
            headers = dict(error.headers or {})
            return Problem(error.status_code, code, str(error.detail), headers=headers)
        case _:
            return Problem(500, "internal_error", "something went wrong on our side; it has been logged")


HANDLED = (
    Problem, CatalogConflict, CatalogUnavailable, WarehouseUnavailable, RequestValidationError, StarletteHTTPException,
)  # fmt: skip
"""What routes raise, and is answered as a problem."""


def answered_problem(request: Request, error: Exception) -> Problem:
    """as_problem, and for a method that is not taken those that are: of all routes, not of the first that matched."""
    problem = as_problem(error)
    if problem.status == 405:
        methods = documented_methods(cast(FastAPI, request.app), request.url.path)
        if methods:
            problem.headers = {**problem.headers, "Allow": ", ".join(sorted(methods))}
    return problem


def documented_methods(app: FastAPI, path: str) -> set[str]:
    """The methods that the OpenAPI document has for an address; none where it does not know it."""
    paths: dict[str, dict[str, Any]] = app.openapi()["paths"]
    return {method.upper() for known in paths if _pattern(known).fullmatch(path) for method in paths[known]}


@lru_cache(maxsize=1024)
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("[^/]+".join(map(re.escape, re.split(r"\{[^}]+\}", path))))


async def _answer(request: Request, error: Exception) -> Response:
    return problem_response(answered_problem(request, error))


class UnexpectedErrors:
    """ASGI middleware: what nobody expected is logged, and answered as a problem that tells nothing of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except (ClientGone, ClientDisconnect):
            return
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            await problem_response(as_problem(error))(scope, receive, send)


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of the app a problem."""
    for kind in HANDLED:
        app.add_exception_handler(kind, _answer)
    app.add_middleware(UnexpectedErrors)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the errors that routes answer with."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
        for status in statuses
    }
