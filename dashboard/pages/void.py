"""/usage/events/void: one event that is not to count."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.control.common import validated
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, filled
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.problems import unavailable_problem
from dashboard.services import services_of
from runtime.clock import now_us
from runtime.kafka.acked_producer import NotAcknowledged
from schemas.usage_void import VoidRequest

router = APIRouter(include_in_schema=False)
_FIELDS = ("customer_id", "event_name", "event_id")


def _page(request: Request, visitor: Session, values: Any, errors: Errors = NO_ERRORS, status: int = 200) -> Response:
    return render(request, "event_void.html", visitor, status=status, values=values, errors=errors, fields=_FIELDS)


@router.get("/usage/events/void")
async def void_form(request: Request, visitor: Visitor) -> Response:
    values = {name: request.query_params.get(name, "")[:256] for name in _FIELDS}
    return _page(request, visitor, values)


@router.post("/usage/events/void")
async def void_event(request: Request, visitor: Visitor, form: Form) -> Response:
    services = services_of(request)

    async def voiding() -> VoidRequest:
        wanted = validated(VoidRequest, filled(form))
        try:
            await asyncio.to_thread(services.voids.write, visitor.organization_id, wanted, now_us())
        except NotAcknowledged as error:
            raise unavailable_problem(f"whether it was voided is unknown: {error}. It is safe to try again") from None
        return wanted

    wanted, errors, status = await attempted(voiding())
    if wanted is None:
        return _page(request, visitor, form, errors, status)
    where = {"event_id": wanted.event_id, "customer_id": wanted.customer_id, "done": "voided"}
    return RedirectResponse(f"/usage/events?{urlencode(where)}", 303)
