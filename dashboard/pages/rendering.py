"""templates → pages: escaped, without any script of their own, with the headers that hold a browser to that."""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dashboard.pages import formats
from dashboard.pages.forms import REQUEST_FIELD, new_request_key
from dashboard.pages.session import CSRF_FIELD, Session, organization_of
from runtime.clock import now_us
from schemas.period import parse_rfc3339

_HERE = Path(__file__).parent.parent
STATIC = _HERE / "static"
THEMES = ("light", "dark")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_environment = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_filters = cast(dict[str, Any], _environment.filters)  # typed by jinja2 as its own filters only
_filters.update(number=formats.number, money=formats.money, ago=formats.ago, rate=formats.rate, status=formats.status)


@lru_cache
def asset(name: str) -> str:
    """Address of a static file; it changes with the file, so that browsers may keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


def render(
    request: Request, template: str, session: Session | None, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """A page. session None: for those who have not signed in. values: of the template."""
    theme = request.cookies.get("theme")
    common: dict[str, Any] = {
        "asset": asset,
        "path": request.url.path,
        "theme": theme if theme in THEMES else None,
        "session": session,
        "csrf_field": CSRF_FIELD,
        "request_field": REQUEST_FIELD,
        "new_request_key": new_request_key,
        "now": now_us(),
    }
    if session is not None:
        organization = organization_of(request, session)
        zone = organization.time_zone
        common |= {
            "organization": organization,
            "zone": zone,
            "us": parse_rfc3339,
            "moment": partial(formats.moment, zone=zone),
            "day": partial(formats.day, zone=zone),
            "span": partial(formats.span, zone=zone),
            "base_url": str(request.base_url).rstrip("/"),
        }
    html = _environment.get_template(template).render(**common, **values)
    return HTMLResponse(html, status, headers=SECURITY_HEADERS)
