"""/sign-in, /sign-out, and the theme: the only pages without a session."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.metrics import SIGN_INS
from dashboard.pages.rendering import render
from dashboard.pages.session import (
    COOKIE,
    CSRF_FIELD,
    Form,
    Session,
    SignInLimit,
    Visitor,
    delete_cookie,
    form_of,
    require_same_site,
    sessions_of,
    set_cookie,
)
from dashboard.services import services_of
from runtime.body import STRANGERS_MAX, Deadlines
from runtime.problem import Problem
from schemas.networks import client_address
from schemas.organization import Scope, secret_digest

router = APIRouter(include_in_schema=False)
_KEY_LENGTH_MAX = 512
_KEPT_BYTES_MAX = 64 * 1024
_FORM_BYTES_MAX = 4 * _KEPT_BYTES_MAX  # a kept form within a form: up to three letters each
_STRANGERS = Deadlines(STRANGERS_MAX)


def local_address(text: str) -> str:
    """A path of these pages to go on to; "/" for everything else, so that no link leads a visitor elsewhere."""
    outside = not text.startswith("/") or text.startswith("//") or "\\" in text or not text.isprintable()
    return "/" if outside else text


def is_secure(request: Request) -> bool:
    """Whether the browser came over TLS. A proxy's word can only make the cookie stricter, so it is taken."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


def _page(request: Request, target: str, kept: str, error: str | None = None, status: int = 200) -> Response:
    """kept: a form that was posted when the session was over, to be sent to the target after signing in."""
    return render(request, "sign_in.html", None, status=status, next=target, kept=kept, error=error)


@router.get("/sign-in")
async def sign_in_page(request: Request, next: str = "/") -> Response:
    if sessions_of(request).read(request.cookies.get(COOKIE)):
        return RedirectResponse(local_address(next), 303)
    return _page(request, local_address(next), "")


async def signed_out(request: Request) -> Response:
    """What a request without a session is answered with: the sign-in page, which keeps a posted form."""
    path = request.url.path
    if path.startswith("/live/") or "x-part" in request.headers:
        return Response(status_code=401)
    query = f"?{request.url.query}" if request.url.query else ""
    if request.method != "POST":
        return RedirectResponse(f"/sign-in?next={quote(path + query)}", 303)
    kept = "" if path == "/sign-out" else await _posted_form(request)
    if not kept:
        return _page(request, "/", "", "You were signed out. Sign in to continue.", 401)
    return _page(request, path + query, kept, status=401)


async def _posted_form(request: Request) -> str:
    """The form, with its token; empty unless a page of ours sent it, so that no other site's form is ever sent on."""
    if request.headers.get("sec-fetch-site") != "same-origin":
        return ""
    try:
        form = await form_of(request, _KEPT_BYTES_MAX, _STRANGERS)
    except Problem:
        return ""
    is_ours = sessions_of(request).organization_of_form(form.get(CSRF_FIELD, "")) is not None
    return urlencode(form) if is_ours else ""


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    require_same_site(request)
    form = await form_of(request, _FORM_BYTES_MAX, _STRANGERS)
    target, kept = local_address(form.get("next", "/")), form.get("kept", "")

    def again(status: int, outcome: str, error: str) -> Response:
        SIGN_INS.labels(outcome).inc()
        return _page(request, target, kept, error, status)

    limit: SignInLimit = request.app.state.sign_in_limit
    peer = request.client.host if request.client else "unknown"
    forwarded_for = request.headers.getlist("x-forwarded-for")
    address = client_address(peer, forwarded_for, services_of(request).settings.proxies)
    if not limit.allows(address):
        return again(429, "limited", "Too many attempts. Wait a minute and try again.")
    secret = form.get("key", "").strip()[:_KEY_LENGTH_MAX]
    key = services_of(request).catalog.view.key_by_digest(secret_digest(secret))
    if key is None:
        limit.failed(address)
        return again(401, "unknown_key", "We don't recognize that key. It may have been revoked.")
    if not key.allows(Scope.ADMIN):
        limit.failed(address)
        return again(403, "missing_scope", "That key can't sign in. Use one with the admin scope.")
    SIGN_INS.labels("ok").inc()
    session, cookie = sessions_of(request).start(key)
    response = _sent_on(request, session, target, kept) if kept else RedirectResponse(target, 303)
    set_cookie(response, cookie, secure=is_secure(request))
    return response


def _sent_on(request: Request, session: Session, target: str, kept: str) -> Response:
    """A page whose form is the kept one, under the new session."""
    fields = dict(parse_qsl(kept, keep_blank_values=True))
    organization_id = sessions_of(request).organization_of_form(fields.pop(CSRF_FIELD, ""))
    is_own = organization_id == session.organization_id
    return render(request, "sign_in_kept.html", session, target=target, fields=fields if is_own else None)


@router.post("/sign-out")
async def sign_out(request: Request, _: Visitor, __: Form) -> Response:
    response = RedirectResponse("/sign-in", 303)
    delete_cookie(response)
    return response
