"""/meters: what is counted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.control.common import patched, validated
from dashboard.objects import MeterChanges
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, filled, request_key
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.services import services_of
from dashboard.writes import archive_unused, change, create, found, object_id
from runtime.clock import now_us
from schemas.meter import Meter, MeterSpec
from schemas.product import Product

router = APIRouter(include_in_schema=False)


@router.get("/meters")
async def meters(request: Request, visitor: Visitor) -> Response:
    everything = services_of(request).catalog.view.all(Meter, visitor.organization_id)
    return render(
        request,
        "meters.html",
        visitor,
        meters=[meter for meter in reversed(everything) if not meter.archived],
        archived=[meter for meter in reversed(everything) if meter.archived],
    )


@router.get("/meters/new")
async def new_meter(request: Request, visitor: Visitor) -> Response:
    return render(request, "meter_new.html", visitor, values={"aggregation": "count"}, errors=NO_ERRORS)


@router.post("/meters/new")
async def create_meter(request: Request, visitor: Visitor, form: Form) -> Response:
    async def making() -> Meter:
        spec = validated(MeterSpec, filled(form))
        meter = Meter(
            **dict(spec),
            id=object_id("meter", visitor.organization_id, request_key(form)),
            organization_id=visitor.organization_id,
            created_at=now_us(),
        )
        return (await create(services_of(request).catalog, meter, request_key(form)))[0]

    meter, errors, status = await attempted(making())
    if meter is None:
        return render(request, "meter_new.html", visitor, status=status, values=form, errors=errors)
    return RedirectResponse(f"/meters/{meter.id}?done=created", 303)


@router.get("/meters/{id}")
async def meter(request: Request, visitor: Visitor, id: str, done: str | None = None) -> Response:
    return _meter_page(request, visitor, id, done=done)


def _meter_page(
    request: Request,
    visitor: Session,
    id_: str,
    *,
    values: Any = None,
    errors: Errors = NO_ERRORS,
    status: int = 200,
    done: str | None = None,
) -> Response:
    store = services_of(request).catalog
    meter, version = found(store, Meter, visitor.organization_id, id_)
    products = [p for p in store.view.all(Product, visitor.organization_id) if id_ in p.meter_ids]
    return render(
        request,
        "meter.html",
        visitor,
        status=status,
        meter=meter,
        version=version,
        products=products,
        values=values or {"name": meter.name, "unit": meter.unit},
        errors=errors,
        done=done,
    )


@router.post("/meters/{id}")
async def change_meter(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    store, organization = services_of(request).catalog, visitor.organization_id

    async def making() -> str:
        if form.get("action") == "archive":
            await archive_unused(store, Meter, organization, id, form.get("version"), now_us())
            return "/meters"
        changes = MeterChanges(name=form.get("name", ""), unit=form.get("unit", ""))
        await change(store, Meter, organization, id, form.get("version"), patched(MeterSpec, changes))
        return f"/meters/{id}?done=saved"

    target, errors, status = await attempted(making())
    if target is None:
        return _meter_page(request, visitor, id, values=form, errors=errors, status=status)
    return RedirectResponse(target, 303)
