"""/invoices: closed cycles with their state, line by line; and open ones as they would be invoiced now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from dashboard.pages.rendering import render
from dashboard.pages.session import Visitor
from dashboard.preview import open_cycles, preview_document, previews
from dashboard.read.invoices import decoded_place, encoded_place, invoice_place
from dashboard.services import now_us, services_of
from dashboard.usage_queries import InvoiceFilter, invoice_documents, invoice_summary
from runtime.problem import Problem
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.period import Cycle, parse_rfc3339

router = APIRouter(include_in_schema=False)
PAGE = 50
STATES = ("paid", "open", "payment_failed", "mismatch", "waiting", "draft", "computed", "uncollectible", "void")


def shown(document: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """An invoice's document, with the customer's name and the cycle as a value."""
    cycle = Cycle(parse_rfc3339(document["cycle"]["start"]), parse_rfc3339(document["cycle"]["end"]))
    return {**document, "customer": names.get(document["customer_id"], document["customer_id"]), "cycle": cycle}


def _names(request: Request, organization_id: str) -> dict[str, str]:
    customers = services_of(request).catalog.view.all(Customer, organization_id)
    return {customer.id: customer.name for customer in customers}


@router.get("/invoices")
async def invoices(
    request: Request, visitor: Visitor, customer_id: str = "", state: str = "", cursor: str | None = None
) -> Response:
    services, organization = services_of(request), visitor.organization_id
    wanted = InvoiceFilter(customer_id=customer_id or None, state=state or None)
    found = await services.warehouse.run(invoice_documents, organization, wanted, PAGE + 1, decoded_place(cursor))
    names = _names(request, organization)
    upcoming: list[dict[str, Any]] = []
    if customer_id:
        cycles = open_cycles(services.catalog.view, organization, customer_id, now_us())
        watermark = await services.warehouse.stored()
        made = await services.warehouse.run(previews, services.catalog.view, cycles, watermark)
        upcoming = [shown(preview_document(each, watermark), names) for each in made]
    return render(
        request,
        "invoices.html",
        visitor,
        invoices=[shown(document, names) for document in found[:PAGE]],
        following=encoded_place(*invoice_place(found[PAGE - 1])) if len(found) > PAGE else None,
        summary=await services.warehouse.run(invoice_summary, organization),
        upcoming=upcoming,
        meters={meter.id: meter for meter in services.catalog.view.all(Meter, organization)},
        customer_id=customer_id,
        state=state,
        states=STATES,
    )


@router.get("/invoices/{id}")
async def invoice(request: Request, visitor: Visitor, id: str) -> Response:
    services, organization = services_of(request), visitor.organization_id
    found = await services.warehouse.run(invoice_documents, organization, InvoiceFilter(id=id), 1)
    if not found:
        raise Problem(404, "not_found", f"there is no invoice {id[:80]}")
    return render(
        request,
        "invoice.html",
        visitor,
        invoice=shown(found[0], _names(request, organization)),
        meters={meter.id: meter for meter in services.catalog.view.all(Meter, organization)},
    )
