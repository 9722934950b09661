"""/api/v1/meters: what is counted."""

from __future__ import annotations

from fastapi import Request, Response

from dashboard.auth import Caller
from dashboard.control.common import (
    PAGE_DEFAULT,
    Archived,
    Cursor,
    Filter,
    IdempotencyKey,
    IfMatch,
    Limit,
    answered,
    matching,
    patched,
    shower,
    shown_page,
    store_of,
)
from dashboard.objects import MeterChanges, MeterOut, Page
from dashboard.problems import problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.writes import archive_unused, change, create, found, object_id
from runtime.clock import now_us
from schemas.meter import Meter, MeterSpec

router = api_router(AdminRoute, "Meters")
_show = shower(MeterOut)


@router.post("/meters", status_code=201, responses=problem_responses(409))
async def create_meter(
    request: Request, response: Response, caller: Caller, body: MeterSpec, idempotency_key: IdempotencyKey = None
) -> MeterOut:
    meter = Meter(
        **dict(body),
        id=object_id("meter", caller.organization_id, idempotency_key),
        organization_id=caller.organization_id,
        created_at=now_us(),
    )
    meter, version = await create(store_of(request), meter, idempotency_key)
    return answered(response, _show(meter, version), version)


@router.get("/meters")
async def list_meters(
    request: Request,
    caller: Caller,
    event_name: Filter = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
    archived: Archived = False,
) -> Page[MeterOut]:
    meters = matching(request, Meter, caller, archived, event_name=event_name)
    return shown_page(request, caller, meters, Meter, limit, cursor, _show)


@router.get("/meters/{id}", responses=problem_responses(404))
async def get_meter(request: Request, response: Response, caller: Caller, id: str) -> MeterOut:
    meter, version = found(store_of(request), Meter, caller.organization_id, id)
    return answered(response, _show(meter, version), version)


@router.patch("/meters/{id}", responses=problem_responses(404, 409, 412))
async def change_meter(
    request: Request, response: Response, caller: Caller, id: str, body: MeterChanges, if_match: IfMatch = None
) -> MeterOut:
    edit = patched(MeterSpec, body)
    meter, version = await change(store_of(request), Meter, caller.organization_id, id, if_match, edit)
    return answered(response, _show(meter, version), version)


@router.delete("/meters/{id}", responses=problem_responses(404, 409, 412))
async def archive_meter(
    request: Request, response: Response, caller: Caller, id: str, if_match: IfMatch = None
) -> MeterOut:
    meter, version = await archive_unused(store_of(request), Meter, caller.organization_id, id, if_match, now_us())
    return answered(response, _show(meter, version), version)
