"""admin key → signed cookie → session; forms carry a token of their own session and organization."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any, cast
from urllib.parse import parse_qs

from fastapi import Depends, Request, Response
from itsdangerous import BadData, URLSafeSerializer, URLSafeTimedSerializer
from pyrate_limiter import Duration, Rate, RateItem, StateBucket, TokenBucket

from catalog.view import CatalogView
from dashboard.routing import read_body
from dashboard.services import services_of
from runtime.access import KEY
from runtime.actor import act_as
from runtime.body import Deadlines
from runtime.problem import Problem
from schemas.organization import KEY_PREFIX, ApiKey, Organization, Scope
from schemas.settings import Settings

COOKIE = "usage_session"
SESSION_SECONDS = 12 * 3600
FORM_FIELDS_MAX = 2000
FORM_BYTES_MAX = 512 * 1024
_FORMS = Deadlines()
CSRF_FIELD = "csrf_token"
_FAILURES = Rate(10, Duration.MINUTE)
_ADDRESSES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """Who looks at the pages: a key of an organization. csrf_token: must come with every form."""

    organization_id: str
    key_id: str
    csrf_token: str


class SignInNeeded(Exception):
    """There is no session in force."""


class Sessions:
    """Cookies that name an API key, signed; a revoked key's sessions end with it.

    Signed with USAGE_SESSION_SECRET, which restarts and other processes share; without it, with a secret of this
    process.
    """

    def __init__(self, settings: Settings, view: CatalogView) -> None:
        given = settings.session_secret
        self._secret = given.get_secret_value() if given else secrets.token_urlsafe(32)
        self._serializer = URLSafeTimedSerializer(self._secret, salt="usage-session", signer_kwargs=_SHA256)
        self._forms = URLSafeSerializer(self._secret, salt="usage-form", signer_kwargs=_SHA256)
        self._view = view

    def start(self, key: ApiKey) -> tuple[Session, str]:
        """A new session and its cookie."""
        nonce = secrets.token_urlsafe(16)
        cookie = self._serializer.dumps([key.organization_id, key.id, nonce])
        return Session(key.organization_id, key.id, self._csrf_token(key.organization_id, nonce)), cookie

    def _csrf_token(self, organization_id: str, nonce: str) -> str:
        return self._forms.dumps([organization_id, nonce])

    def organization_of_form(self, csrf_token: str) -> str | None:
        """The organization whose page had the form, also when the form's session is over; None: no page of ours."""
        try:
            organization_id, _ = self._forms.loads(csrf_token)
        except (BadData, ValueError):
            return None
        return organization_id

    def api_key_secret(self, session: Session, request_key: str) -> str:
        """The secret of the API key that a form makes: the same when the form is sent twice, so that one is shown.

        Only a process with the session secret can compute it, and that can sign sessions anyway.
        """
        message = f"api-key\0{session.organization_id}\0{request_key}".encode()
        digest = hmac.digest(self._secret.encode(), message, "sha256")
        return KEY_PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None when it is forged, has expired, or its key is no admin key in force."""
        if not cookie:
            return None
        try:
            organization_id, key_id, nonce = self._serializer.loads(cookie, max_age=SESSION_SECONDS)
        except (BadData, ValueError):
            return None
        key = self._view.get(ApiKey, organization_id, key_id)
        if key is None or key.archived or not key.allows(Scope.ADMIN):
            return None
        return Session(organization_id, key_id, self._csrf_token(organization_id, nonce))


def set_cookie(response: Response, cookie: str, *, secure: bool) -> None:
    """secure: the page came over TLS, and so must the cookie.

    Lax, not Strict: a link in a mail or a chat finds the session. Forms have a token of their own.
    """
    response.set_cookie(COOKIE, cookie, SESSION_SECONDS, secure=secure, httponly=True, samesite="lax")


def delete_cookie(response: Response) -> None:
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")


_SHA256: dict[str, Any] = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}


class SignInLimit:
    """At most so many failures a minute from one address; a success neither counts nor makes up for any.

    Who is quiet longest is forgotten first.
    """

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, StateBucket] = OrderedDict()

    def allows(self, address: str) -> bool:
        bucket = self._buckets.get(address)
        return bucket is None or cast(int, bucket.count()) < _FAILURES.limit

    def failed(self, address: str) -> None:
        """Count a failure."""
        bucket = self._buckets.pop(address, None) or StateBucket([_FAILURES], TokenBucket())
        self._buckets[address] = bucket
        if len(self._buckets) > _ADDRESSES_MAX:
            self._buckets.popitem(last=False)
        bucket.put(RateItem(address, cast(int, bucket.now())))


def sessions_of(request: Request) -> Sessions:
    return cast(Sessions, request.app.state.sessions)


async def _signed_in(request: Request) -> Session:  # async: in a thread it could not say who acts
    session = sessions_of(request).read(request.cookies.get(COOKIE))
    if session is None:
        raise SignInNeeded
    act_as(f"dashboard, {session.key_id}")
    request.scope[KEY] = session.organization_id, session.key_id
    return session


Visitor = Annotated[Session, Depends(_signed_in)]
"""A page's parameter: who looks. Without a session the visitor is sent to sign in."""


async def form_of(request: Request, bytes_max: int = FORM_BYTES_MAX, deadlines: Deadlines = _FORMS) -> dict[str, str]:
    """The fields of a posted form; of a field that comes twice the last. Raises Problem 400, 408, 413 or 415."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise Problem(415, "unsupported_media_type", "a form is expected")
    try:
        text = (await read_body(request, bytes_max, deadlines)).decode()
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except ValueError:
        raise Problem(400, "invalid_body", "the form can't be read") from None
    return {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}


def require_same_site(request: Request) -> None:
    """Raises Problem 403 when a browser says that another site sent the request."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem(403, "cross_site", "this form was sent from another site")


async def _own_form(request: Request, session: Visitor) -> dict[str, str]:
    require_same_site(request)
    fields = await form_of(request)
    if not hmac.compare_digest(fields.pop(CSRF_FIELD, "").encode(), session.csrf_token.encode()):
        raise Problem(403, "invalid_csrf_token", "Your session changed. Reload the page.")
    return fields


Form = Annotated[dict[str, str], Depends(_own_form)]
"""A page's parameter: the fields of a form that the visitor's own page sent."""


def organization_of(request: Request, session: Session) -> Organization:
    """The visitor's organization. Raises SignInNeeded when it is gone."""
    organization = services_of(request).catalog.view.organization(session.organization_id)
    if organization is None:
        raise SignInNeeded
    return organization
