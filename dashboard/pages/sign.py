"""/sign-in, /sign-out, and the theme: the only pages without a session."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.metrics import SIGN_INS
from dashboard.pages.rendering import render
from dashboard.pages.session import COOKIE, Form, SignInLimit, Visitor, form_of, require_same_site, sessions_of
from dashboard.services import services_of
from schemas.organization import Scope, secret_digest

router = APIRouter(include_in_schema=False)
_KEY_LENGTH_MAX = 512


def local_address(text: str) -> str:
    """A path of these pages to go on to; "/" for everything else, so that no link leads a visitor elsewhere."""
    outside = not text.startswith("/") or text.startswith("//") or "\\" in text or not text.isprintable()
    return "/" if outside else text


def is_secure(request: Request) -> bool:
    """Whether the browser came over TLS. A proxy's word can only make the cookie stricter, so it is taken."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


@router.get("/sign-in")
async def sign_in_page(request: Request, next: str = "/") -> Response:
    if sessions_of(request).read(request.cookies.get(COOKIE)):
        return RedirectResponse(local_address(next), 303)
    return render(request, "sign_in.html", None, next=local_address(next), error=None)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    require_same_site(request)
    form = await form_of(request)
    target = local_address(form.get("next", "/"))

    def again(status: int, outcome: str, error: str) -> Response:
        SIGN_INS.labels(outcome).inc()
        return render(request, "sign_in.html", None, status=status, next=target, error=error)

    limit: SignInLimit = request.app.state.sign_in_limit
    address = request.client.host if request.client else "unknown"
    if not limit.allows(address):
        return again(429, "limited", "Too many attempts. Wait a minute and try again.")
    secret = form.get("key", "").strip()[:_KEY_LENGTH_MAX]
    key = services_of(request).catalog.view.key_by_digest(secret_digest(secret))
    if key is None:
        return again(401, "unknown_key", "This key is unknown or revoked.")
    if not key.allows(Scope.ADMIN):
        return again(403, "missing_scope", "This key lacks the scope admin.")
    limit.forget(address)
    SIGN_INS.labels("ok").inc()
    response = RedirectResponse(target, 303)
    sessions_of(request).begin(key, response, secure=is_secure(request))
    return response


@router.post("/sign-out")
async def sign_out(request: Request, _: Visitor, __: Form) -> Response:
    response = RedirectResponse("/sign-in", 303)
    sessions_of(request).end(response)
    return response
