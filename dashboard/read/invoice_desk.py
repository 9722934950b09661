"""/api/v1/invoices, /api/v1/simulations: previewed, recomputed, explained; by the engine that invoices."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dashboard.auth import Caller
from dashboard.desk_access import answered, desk_of
from dashboard.objects import Page
from dashboard.problems import problem_responses
from dashboard.read.invoices import CycleText, own_invoice
from dashboard.read.parameters import period
from dashboard.read.usage import csv_response
from dashboard.routing import ReadRoute, api_router
from dashboard.services import services_of
from dashboard.writes import found
from runtime.clock import now_us
from schemas.customer import Customer
from schemas.organization import Identifier
from schemas.period import DAY_US, Cycle
from schemas.product import ProductSpec

router = api_router(ReadRoute, "Invoices")


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
    """hash: of what was recomputed. differences: what is not as it was invoiced, the first one first."""

    ok: bool
    hash: str
    differences: list[str]


@router.post("/simulations", responses=problem_responses(404, 503))
async def simulate_invoices(request: Request, caller: Caller, body: SimulationRequest) -> Page[SimulatedCycle]:
    """Price a customer's past usage with any product, beside what was billed."""
    services, now = services_of(request), now_us()
    found(services.catalog, Customer, caller.organization_id, body.customer_id)
    wanted = period(body.from_, body.to, Cycle(now - 366 * DAY_US, now))
    product = body.product if body.product is not None else body.product_id
    assert product is not None
    desk = desk_of(services)
    made = await answered(lambda: desk.simulate(caller.organization_id, body.customer_id, product, wanted))
    return Page(data=[SimulatedCycle.model_validate(each) for each in made], next_cursor=None)


@router.get("/invoices/{id}/verify", responses=problem_responses(404, 503))
async def verify_invoice(request: Request, caller: Caller, id: str) -> VerificationOut:
    """Recalculate the invoice from raw events with the prices that it was created with, and compare."""
    await own_invoice(request, caller.organization_id, id)
    desk = desk_of(services_of(request))
    verified = await answered(lambda: desk.verify(id))
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
    desk = desk_of(services_of(request))
    return csv_response(await answered(lambda: desk.events(id, line)), "events.csv")
