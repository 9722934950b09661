"""/api/v1/invoices, /simulations, /orders: what was billed and paid; previewed, recomputed, explained, simulated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dashboard.auth import Caller
from dashboard.billing_access import answered, billing_of
from dashboard.control.common import PAGE_DEFAULT, Cursor, Filter, Limit
from dashboard.files import csv_response
from dashboard.objects import Instant, Page
from dashboard.problems import problem_responses
from dashboard.read.parameters import decoded_place, encoded_place, instant, period
from dashboard.routing import ReadRoute, api_router
from dashboard.services import Services, services_of
from dashboard.usage_queries import InvoiceFilter, invoice_documents, orders
from dashboard.writes import found
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.currency import amount_text
from schemas.customer import Customer
from schemas.organization import Identifier
from schemas.period import DAY_US, Cycle, parse_rfc3339
from schemas.product import ProductSpec

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


class SimulationRequest(BaseModel):
    """A customer's past usage and a product: one that exists, or one as it would be posted."""

    model_config = ConfigDict(extra="forbid")

    customer_id: Identifier
    product_id: Identifier | None = None
    product: ProductSpec | None = None
    from_: Annotated[str | None, Field(alias="from", description="RFC 3339; a year ago without it")] = None
    to: Annotated[str | None, Field(description="RFC 3339; now without it")] = None

    @model_validator(mode="after")
    def _one_product(self) -> SimulationRequest:
        if (self.product_id is None) == (self.product is None):
            raise ValueError("give one of product_id and product")
        return self


class SimulatedCycle(BaseModel):
    """One cycle. billed: by invoices and corrections, null where none was; difference: total less billed."""

    model_config = ConfigDict(extra="allow")

    cycle: CycleText
    currency: str
    lines: list[dict[str, Any]]
    total: str
    billed: str | None
    difference: str | None


class VerificationOut(BaseModel):
    """hash: of what was recomputed. differences: how it differs from the invoice, in the order of the lines."""

    ok: bool
    hash: str
    differences: list[str]


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
    """Documents of a customer's invoices as they would be. Raises Problem 503 in a process without a ledger."""
    billing = billing_of(services)
    return await answered(lambda: billing.preview(organization_id, customer_id, at))


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


@router.post("/simulations", responses=problem_responses(404, 503))
async def simulate_invoices(request: Request, caller: Caller, body: SimulationRequest) -> Page[SimulatedCycle]:
    """Price a customer's past usage with any product, beside what was billed."""
    services, now = services_of(request), now_us()
    found(services.catalog, Customer, caller.organization_id, body.customer_id)
    wanted = period(body.from_, body.to, Cycle(now - 366 * DAY_US, now))
    product = body.product if body.product is not None else body.product_id
    assert product is not None
    billing = billing_of(services)
    made = await answered(lambda: billing.simulate(caller.organization_id, body.customer_id, product, wanted))
    return Page(data=[SimulatedCycle.model_validate(each) for each in made], next_cursor=None)


@router.get("/invoices/{id}/verify", responses=problem_responses(404, 503))
async def verify_invoice(request: Request, caller: Caller, id: str) -> VerificationOut:
    """Recalculate the invoice from raw events with the prices that it was created with, and compare."""
    await own_invoice(request, caller.organization_id, id)
    billing = billing_of(services_of(request))
    verified = await answered(lambda: billing.verify(id))
    return VerificationOut(ok=not verified.differences, hash=verified.hash, differences=list(verified.differences))


@router.get(
    "/invoices/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **problem_responses(404, 503)},
)
async def list_invoice_events(
    request: Request,
    caller: Caller,
    id: str,
    line: Annotated[int | None, Query(ge=0, description="only this line's, numbered from 0")] = None,
) -> Response:
    """The events behind an invoice's lines as CSV: counted, late, or voided since."""
    await own_invoice(request, caller.organization_id, id)
    billing = billing_of(services_of(request))
    return csv_response(await answered(lambda: billing.events(id, line)), "events.csv")
