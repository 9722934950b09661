"""/usage/duplicates: events that came more than once, copy by copy."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from dashboard.pages.rendering import render
from dashboard.pages.session import Visitor
from dashboard.read.duplicates import decoded_after, duplicates
from dashboard.read.parameters import encoded_place
from dashboard.services import services_of

router = APIRouter(include_in_schema=False)
SHOWN = 50


@router.get("/usage/duplicates")
async def list_duplicates(
    request: Request, visitor: Visitor, customer_id: str = "", conflicts: str = "", cursor: str = ""
) -> Response:
    services = services_of(request)
    found = await duplicates(
        services,
        visitor.organization_id,
        SHOWN + 1,
        customer_id or None,
        bool(conflicts),
        decoded_after(cursor) if cursor else None,
    )
    values = {"customer_id": customer_id, "conflicts": conflicts}
    return render(
        request,
        "duplicates.html",
        visitor,
        found=found[:SHOWN],
        following=encoded_place(*found[SHOWN - 1].last) if len(found) > SHOWN else None,
        query=urlencode(values),
        values=values,
    )
