"""/api/v1/customers: who is metered and billed."""

from __future__ import annotations

from fastapi import Request, Response

from dashboard import customer_changes
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
from dashboard.objects import CustomerChanges, CustomerOut, Page
from dashboard.problems import problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.services import services_of
from dashboard.writes import archive_unused, found, object_id
from runtime.clock import now_us
from schemas.customer import Customer, CustomerSpec

router = api_router(AdminRoute, "Customers")
_show = shower(CustomerOut)


@router.post("/customers", status_code=201, responses=problem_responses(409, 503))
async def create_customer(
    request: Request, response: Response, caller: Caller, body: CustomerSpec, idempotency_key: IdempotencyKey = None
) -> CustomerOut:
    customer = Customer(
        **body.model_dump(exclude={"id"}),
        id=body.id or object_id("customer", caller.organization_id, idempotency_key),
        organization_id=caller.organization_id,
        created_at=now_us(),
    )
    customer, version = await customer_changes.create_customer(services_of(request), customer, idempotency_key)
    return answered(response, _show(customer, version), version)


@router.get("/customers")
async def list_customers(
    request: Request,
    caller: Caller,
    email: Filter = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
    archived: Archived = False,
) -> Page[CustomerOut]:
    customers = matching(request, Customer, caller, archived, email=email)
    return shown_page(request, caller, customers, Customer, limit, cursor, _show)


@router.get("/customers/{id:path}", responses=problem_responses(404))
async def get_customer(request: Request, response: Response, caller: Caller, id: str) -> CustomerOut:
    customer, version = found(store_of(request), Customer, caller.organization_id, id)
    return answered(response, _show(customer, version), version)


@router.patch("/customers/{id:path}", responses=problem_responses(404, 409, 412, 503))
async def change_customer(
    request: Request, response: Response, caller: Caller, id: str, body: CustomerChanges, if_match: IfMatch = None
) -> CustomerOut:
    edit = patched(CustomerSpec, body)
    customer, version = await customer_changes.change_customer(
        services_of(request), caller.organization_id, id, if_match, edit, by=caller.key_id
    )
    return answered(response, _show(customer, version), version)


@router.delete("/customers/{id:path}", responses=problem_responses(404, 409, 412))
async def archive_customer(
    request: Request, response: Response, caller: Caller, id: str, if_match: IfMatch = None
) -> CustomerOut:
    customer, version = await archive_unused(
        store_of(request), Customer, caller.organization_id, id, if_match, now_us()
    )
    return answered(response, _show(customer, version), version)
