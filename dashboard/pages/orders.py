"""/orders: paid invoices, each recorded once."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dashboard.pages.rendering import render
from dashboard.pages.session import Visitor
from dashboard.read.invoices import decoded_after
from dashboard.read.parameters import encoded_place
from dashboard.services import services_of
from dashboard.usage_queries import orders as stored_orders
from schemas.customer import Customer

router = APIRouter(include_in_schema=False)
PAGE = 50


@router.get("/orders")
async def orders(request: Request, visitor: Visitor, customer_id: str = "", cursor: str | None = None) -> Response:
    services, organization = services_of(request), visitor.organization_id
    found = await services.warehouse.run(
        stored_orders, organization, customer_id or None, PAGE + 1, decoded_after(cursor)
    )
    page, view = found[:PAGE], services.catalog.view
    customers = {order.customer_id: view.get(Customer, organization, order.customer_id) for order in page}
    return render(
        request,
        "orders.html",
        visitor,
        orders=page,
        names={id_: customer.name if customer else id_ for id_, customer in customers.items()},
        following=encoded_place(page[-1].paid_at, page[-1].id) if len(found) > PAGE else None,
        customer_id=customer_id,
    )
