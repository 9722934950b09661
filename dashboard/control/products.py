"""/api/v1/products: what is sold, and its prices."""

from __future__ import annotations

from fastapi import Request, Response

from dashboard.auth import Caller
from dashboard.control.common import (
    PAGE_DEFAULT,
    Archived,
    Cursor,
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
from dashboard.objects import Page, ProductChanges, ProductOut
from dashboard.problems import problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.writes import archive_unused, change, create, found, object_id
from runtime.clock import now_us
from schemas.product import Product, ProductSpec

router = api_router(AdminRoute, "Products")
_show = shower(ProductOut)


@router.post("/products", status_code=201, responses=problem_responses(409))
async def create_product(
    request: Request, response: Response, caller: Caller, body: ProductSpec, idempotency_key: IdempotencyKey = None
) -> ProductOut:
    product = Product(
        **dict(body),
        id=object_id("product", caller.organization_id, idempotency_key),
        organization_id=caller.organization_id,
        created_at=now_us(),
    )
    product, version = await create(store_of(request), product, idempotency_key)
    return answered(response, _show(product, version), version)


@router.get("/products")
async def list_products(
    request: Request,
    caller: Caller,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
    archived: Archived = False,
) -> Page[ProductOut]:
    products = matching(request, Product, caller, archived)
    return shown_page(request, caller, products, Product, limit, cursor, _show)


@router.get("/products/{id}", responses=problem_responses(404))
async def get_product(request: Request, response: Response, caller: Caller, id: str) -> ProductOut:
    product, version = found(store_of(request), Product, caller.organization_id, id)
    return answered(response, _show(product, version), version)


@router.patch("/products/{id}", responses=problem_responses(404, 409, 412))
async def change_product(
    request: Request, response: Response, caller: Caller, id: str, body: ProductChanges, if_match: IfMatch = None
) -> ProductOut:
    edit = patched(ProductSpec, body)
    product, version = await change(store_of(request), Product, caller.organization_id, id, if_match, edit)
    return answered(response, _show(product, version), version)


@router.delete("/products/{id}", responses=problem_responses(404, 409, 412))
async def archive_product(
    request: Request, response: Response, caller: Caller, id: str, if_match: IfMatch = None
) -> ProductOut:
    product, version = await archive_unused(store_of(request), Product, caller.organization_id, id, if_match, now_us())
    return answered(response, _show(product, version), version)
