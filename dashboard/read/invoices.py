"""/api/v1/invoices, /orders: what was billed and paid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict

from dashboard.auth import Caller
from dashboard.control.common import PAGE_DEFAULT, Cursor, Filter, Limit
from dashboard.desk_access import answered
from dashboard.objects import Instant, Page
from dashboard.preview import open_cycles, preview_document, previews
from dashboard.problems import problem_responses
from dashboard.read.parameters import decoded_place, encoded_place, instant
from dashboard.routing import ReadRoute, api_router
from dashboard.services import Services, services_of
from dashboard.usage_queries import InvoiceFilter, invoice_documents, orders
from dashboard.writes import found
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.currency import amount_text
from schemas.customer import Customer
from schemas.period import parse_rfc3339

router = api_router(ReadRoute, "Invoices")

InvoiceState = Literal[
    "waiting", "computed", "draft", "open", "paid", "payment_failed", "uncollectible", "mismatch", "void"
]


class CycleText(BaseModel):
    """Half-open, RFC 3339."""

    start: str
    end: str


class InvoiceOut(BaseModel):
    """An invoice; lines and total as they were fixed, before tax; the rest as Stripe last said."""

    model_config = ConfigDict(extra="allow")

    id: str | None
    customer_id: str
    subscription_id: str
    cycle: CycleText
    currency: str | None
    lines: list[dict[str, Any]]
    total: str | None
    state: str


class OrderOut(BaseModel):
    """A paid invoice, recorded once. amount_paid: major units."""

    id: str
    invoice_id: str
    customer_id: str
    subscription_id: str
    currency: str
    amount_paid: str
    paid_at: Instant


def decoded_after(cursor: str | None) -> tuple[int, str] | None:
    """(µs, id) of a cursor. Raises Problem 422."""
    if cursor is None:
        return None
    at, id_ = decoded_place(cursor, int, str)
    return at, id_


def invoice_place(document: dict[str, Any]) -> tuple[int, str]:
    return parse_rfc3339(document["cycle"]["start"]), document["id"]


@router.get("/invoices")
async def list_invoices(
    request: Request,
    caller: Caller,
    customer_id: Filter = None,
    subscription_id: Filter = None,
    state: InvoiceState | None = None,
    cycle: Annotated[str | None, Query(description="RFC 3339; invoices of the cycle that it lies in")] = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Page[InvoiceOut]:
    """Newest billing period first."""
    at = None if cycle is None else instant("cycle", cycle)
    wanted = InvoiceFilter(customer_id=customer_id, subscription_id=subscription_id, state=state, at=at)
    after = decoded_after(cursor)
    access = services_of(request).warehouse
    documents = await access.run(invoice_documents, caller.organization_id, wanted, limit + 1, after)
    page = documents[:limit]
    following = encoded_place(*invoice_place(page[-1])) if len(documents) > limit else None
    return Page(data=[InvoiceOut.model_validate(each) for each in page], next_cursor=following)


@router.get("/invoices/preview", responses=problem_responses(404))
async def preview_invoices(
    request: Request,
    caller: Caller,
    customer_id: Annotated[str, Query(max_length=256)],
    at: Annotated[str | None, Query(description="RFC 3339; the cycle that it lies in, instead of the open one")] = None,
) -> Page[InvoiceOut]:
    """What each of the customer's subscriptions would cost by what is stored now, with pending late usage of earlier
    cycles, without making an invoice.
    """
    services = services_of(request)
    found(services.catalog, Customer, caller.organization_id, customer_id)
    when = now_us() if at is None else instant("at", at)
    shown = await previewed(services, caller.organization_id, customer_id, when)
    return Page(data=[InvoiceOut.model_validate(each) for each in shown], next_cursor=None)


async def previewed(services: Services, organization_id: str, customer_id: str, at: int) -> list[dict[str, Any]]:
    """Documents of a customer's invoices as they would be; with late usage where billing's ledger can be asked."""
    if (desk := services.desk) is not None:
        return await answered(lambda: desk.preview(organization_id, customer_id, at))
    cycles = open_cycles(services.catalog.view, organization_id, customer_id, at)
    watermark = await services.warehouse.stored()
    made = await services.warehouse.run(previews, services.catalog.view, cycles, watermark)
    return [preview_document(each, watermark) for each in made]


async def own_invoice(request: Request, organization_id: str, id_: str) -> dict[str, Any]:
    """The document of the organization's invoice. Raises Problem 404."""
    found = await services_of(request).warehouse.run(invoice_documents, organization_id, InvoiceFilter(id=id_), 1)
    if not found:
        raise Problem(404, "not_found", f"there is no invoice {id_[:80]}")
    return found[0]


@router.get("/invoices/{id}", responses=problem_responses(404))
async def get_invoice(request: Request, caller: Caller, id: str) -> InvoiceOut:
    return InvoiceOut.model_validate(await own_invoice(request, caller.organization_id, id))


@router.get("/orders")
async def list_orders(
    request: Request, caller: Caller, customer_id: Filter = None, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
) -> Page[OrderOut]:
    """One order per paid invoice, newest first."""
    rows = await services_of(request).warehouse.run(
        orders, caller.organization_id, customer_id, limit + 1, decoded_after(cursor)
    )
    page = rows[:limit]
    following = encoded_place(page[-1].paid_at, page[-1].id) if len(rows) > limit else None
    data = [
        OrderOut(
            **{name: getattr(row, name) for name in OrderOut.model_fields if name != "amount_paid"},
            amount_paid=amount_text(row.amount_paid, row.currency),
        )
        for row in page
    ]
    return Page(data=data, next_cursor=following)
