"""/customers: who is metered and billed, and everything about one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from catalog.store import CatalogConflict, CatalogStore
from dashboard import customer_changes
from dashboard.control.common import patched, validated
from dashboard.live_rows import live_rows
from dashboard.objects import CustomerChanges
from dashboard.pages.alert_list import alert_list
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, filled, nested, request_key
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.pages.subscription_list import subscription_list
from dashboard.read.benefits import benefits_of
from dashboard.services import services_of
from dashboard.writes import archive_unused, create, found, is_same_request, object_id
from runtime.clock import now_us
from schemas.customer import Customer, CustomerSpec
from schemas.meter import Meter
from schemas.period import Cycle
from warehouse.client import WarehouseUnavailable

router = APIRouter(include_in_schema=False)
LISTED_MAX = 100
CYCLES_SHOWN = 3
_ADDRESS = ("line1", "line2", "city", "postal_code", "state", "country")


def customer_address(customer_id: str) -> str:
    """Where a customer's page is; ids may hold anything but NUL."""
    return f"/customers/by-id/{quote(customer_id, safe='')}"


@router.get("/customers")
async def customers(request: Request, visitor: Visitor, q: str = "") -> Response:
    words = q.casefold().split()
    view = services_of(request).catalog.view
    everything = [customer for customer in view.all(Customer, visitor.organization_id) if not customer.archived]
    matching = [
        customer
        for customer in reversed(everything)
        if all(word in f"{customer.name} {customer.id} {customer.email or ''}".casefold() for word in words)
    ]
    lines = [
        (customer, [s for s in view.subscriptions_of(visitor.organization_id, customer.id) if s.ends_at is None])
        for customer in matching[:LISTED_MAX]
    ]
    return render(
        request,
        "customers.html",
        visitor,
        lines=lines,
        q=q,
        count=len(matching),
        total=len(everything),
        shown=LISTED_MAX,
    )


@router.get("/customers/new")
async def new_customer(request: Request, visitor: Visitor) -> Response:
    return render(request, "customer_new.html", visitor, values={}, errors=NO_ERRORS)


def _fields(form: Mapping[str, str]) -> dict[str, Any]:
    """The form as the API would have it: nothing for what was left empty."""
    known = {name: text for name, text in form.items() if name not in ("action", "version")}
    return nested(filled(known))


def _shown(form: Mapping[str, str], errors: Errors) -> dict[str, str]:
    """What a refused form is filled with: a wrong payment method may be a card's number, and is not shown again."""
    return {name: text for name, text in form.items() if name != "payment_method" or name not in errors}


@router.post("/customers/new")
async def create_customer(request: Request, visitor: Visitor, form: Form) -> Response:
    async def making() -> Customer:
        spec = validated(CustomerSpec, _fields(form))
        customer = Customer(
            **spec.model_dump(exclude={"id"}),
            id=spec.id or object_id("customer", visitor.organization_id, request_key(form)),
            organization_id=visitor.organization_id,
            created_at=now_us(),
        )
        await customer_changes.check_new(services_of(request), customer)
        return await _create(services_of(request).catalog, customer, request_key(form), is_own_id=spec.id is None)

    customer, errors, status = await attempted(making())
    if customer is None:
        if status == 409:
            errors = {"id": "A customer with this ID already exists."}
        return render(request, "customer_new.html", visitor, status=status, values=_shown(form, errors), errors=errors)
    return RedirectResponse(f"{customer_address(customer.id)}?done=created", 303)


async def _create(store: CatalogStore, customer: Customer, request: str | None, *, is_own_id: bool) -> Customer:
    """is_own_id: the id is made of the request. An id that the visitor chose may be another customer's."""
    try:
        return (await create(store, customer, request if is_own_id else None))[0]
    except CatalogConflict:
        made = store.view.get(Customer, customer.organization_id, customer.id)
        if is_own_id or request is None or made is None or not is_same_request(made, customer):
            raise
        return made


@router.get("/customers/by-id/{id:path}")
async def customer(request: Request, visitor: Visitor, id: str, done: str | None = None) -> Response:
    return await _customer_page(request, visitor, id, done=done)


def _values(customer: Customer) -> dict[str, str]:
    fields = {name: getattr(customer, name) or "" for name in ("name", "email", "stripe_customer_id", "payment_method")}
    address = customer.address
    return fields | {f"address.{part}": (getattr(address, part) or "") if address else "" for part in _ADDRESS}


async def _customer_page(
    request: Request,
    visitor: Session,
    id_: str,
    *,
    values: Any = None,
    errors: Errors = NO_ERRORS,
    status: int = 200,
    done: str | None = None,
) -> Response:
    services, organization = services_of(request), visitor.organization_id
    view = services.catalog.view
    customer, version = found(services.catalog, Customer, organization, id_)
    names = {meter.id: meter for meter in view.all(Meter, organization)}
    series = [each[-CYCLES_SHOWN:] for each in services.live.view.series_of(organization, id_)]
    usage = [
        (names[row.meter_id], Cycle(row.from_, row.to), row)
        for totals in series
        for row in live_rows(view, reversed(totals))
    ]
    try:
        benefits = await benefits_of(services, organization, id_, now_us())
    except WarehouseUnavailable:
        benefits = None
    return render(
        request,
        "customer.html",
        visitor,
        status=status,
        customer=customer,
        version=version,
        values=values or _values(customer),
        errors=errors,
        done=done,
        usage=usage,
        is_whole=services.live.view.is_whole(organization),
        benefits=benefits,
        subscriptions=subscription_list(view, organization, now_us(), customer_id=id_),
        alerts=alert_list(services, organization, 5, lambda alert: alert.customer_id == id_),
    )


@router.post("/customers/by-id/{id:path}")
async def change_customer(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    store, organization = services_of(request).catalog, visitor.organization_id

    async def making() -> str:
        if form.get("action") == "archive":
            await archive_unused(store, Customer, organization, id, form.get("version"), now_us())
            return "/customers"
        fields = _fields(form)
        cleared = dict.fromkeys(("email", "address", "stripe_customer_id", "payment_method"))
        changes = validated(CustomerChanges, {"name": "", **cleared, **fields})
        edit = patched(CustomerSpec, changes)
        await customer_changes.change_customer(
            services_of(request), organization, id, form.get("version"), edit, by=visitor.key_id
        )
        return f"{customer_address(id)}?done=saved"

    target, errors, status = await attempted(making())
    if target is None:
        return await _customer_page(request, visitor, id, values=_shown(form, errors), errors=errors, status=status)
    return RedirectResponse(target, 303)
