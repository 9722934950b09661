"""/invoices: closed cycles with their state, line by line; and open ones as they would be invoiced now."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from catalog.view import CatalogView
from dashboard.billing_port import NOTHING_POSSIBLE, BillingPort, BillingUnavailable, Possible, Verified
from dashboard.counting import soon
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.read.invoices import decoded_after, invoice_place, own_invoice, previewed
from dashboard.read.parameters import encoded_place
from dashboard.services import Services, Upcoming, services_of
from dashboard.usage_queries import InvoiceFilter, invoice_documents, invoice_summary
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.customer import Customer
from schemas.organization import ApiKey
from schemas.period import Cycle, parse_rfc3339

router = APIRouter(include_in_schema=False)
PAGE = 50
WAIT_SECONDS = 0.01
"""A page comes with open cycles when they are counted as soon as the rest of it; else they come to it."""
_SOON = "It is charged within a minute."
STATES = ("paid", "open", "payment_failed", "mismatch", "waiting", "draft", "computed", "uncollectible", "void")


def shown(document: dict[str, Any], view: CatalogView) -> dict[str, Any]:
    """An invoice's document, with the customer's name and the cycle as a value."""
    cycle = Cycle(parse_rfc3339(document["cycle"]["start"]), parse_rfc3339(document["cycle"]["end"]))
    customer = view.get(Customer, document["organization_id"], document["customer_id"])
    return {**document, "customer": customer.name if customer else document["customer_id"], "cycle": cycle}


@router.get("/invoices")
async def invoices(
    request: Request,
    visitor: Visitor,
    customer_id: str = "",
    state: str = "",
    cursor: str | None = None,
    wait: bool = False,
) -> Response:
    services, organization = services_of(request), visitor.organization_id
    counting = _counting(services, organization, customer_id) if customer_id else None
    wanted = InvoiceFilter(customer_id=customer_id or None, state=state or None)
    run, view = services.warehouse.run, services.catalog.view
    found, summary = await asyncio.gather(
        run(invoice_documents, organization, wanted, PAGE + 1, decoded_after(cursor)),
        run(invoice_summary, organization),
    )
    upcoming = counting and (await counting if wait else await soon(counting, WAIT_SECONDS))
    return render(
        request,
        "invoices.html",
        visitor,
        invoices=[shown(document, view) for document in found[:PAGE]],
        following=encoded_place(*invoice_place(found[PAGE - 1])) if len(found) > PAGE else None,
        summary=summary,
        upcoming=upcoming and _shown_upcoming(upcoming, view),
        customer_id=customer_id,
        state=state,
        states=STATES,
    )


@router.get("/invoices/upcoming")
async def upcoming_invoices(request: Request, visitor: Visitor, customer_id: str) -> Response:
    """The open cycles alone, when they are counted."""
    services = services_of(request)
    upcoming = await _counting(services, visitor.organization_id, customer_id)
    shown_now = _shown_upcoming(upcoming, services.catalog.view)
    return render(request, "invoices_upcoming.html", visitor, upcoming=shown_now)


def _counting(services: Services, organization_id: str, customer_id: str) -> asyncio.Task[Upcoming]:
    return services.upcoming.begun(
        (organization_id, customer_id), lambda: _upcoming(services, organization_id, customer_id)
    )


async def _upcoming(services: Services, organization_id: str, customer_id: str) -> Upcoming:
    try:
        return Upcoming(await previewed(services, organization_id, customer_id, now_us()))
    except Problem as problem:
        if problem.status != 503:
            raise
        return Upcoming([], problem.detail)  # what is closed can be shown all the same


def _shown_upcoming(upcoming: Upcoming, view: CatalogView) -> Upcoming:
    return Upcoming([shown(document, view) for document in upcoming.invoices], upcoming.unpriced)


async def invoice_page(
    request: Request,
    visitor: Session,
    document: dict[str, Any],
    *,
    status: int = 200,
    verified: Verified | None = None,
    explained: list[str] | None = None,
    problem: str | None = None,
    done: str | None = None,
) -> Response:
    """verified, explained: None unless they were asked for. problem: why it could not be done. done: what was."""
    services = services_of(request)
    possible, view = await _possible(services.billing, document["id"]), services.catalog.view
    return render(
        request,
        "invoice.html",
        visitor,
        status=status,
        invoice=shown(document, view),
        can_verify=services.billing is not None and document.get("hash") is not None,
        verified=verified,
        explained=explained,
        problem=problem,
        done=done,
        can_retry=possible.retry and not possible.approve,
        can_approve=possible.approve,
        approved=_approved_text(view, visitor.organization_id, possible.approved_by) if possible.approved else None,
        can_void=possible.void,
        can_credit=possible.credit is not None,
    )


def _approved_text(view: CatalogView, organization_id: str, by: str | None) -> str:
    """by: a key or user, as the ledger has it; None: not known."""
    if by is None:
        return f"Approved. {_SOON}"
    key = view.get(ApiKey, organization_id, by.removeprefix("dashboard, "))
    return f"Approved by {f'{key.name} (key …{key.hint})' if key else by}. {_SOON}"


async def _possible(billing: BillingPort | None, id_: str) -> Possible:
    """Nothing, where the ledger can't be asked: what is known is shown all the same."""
    if billing is None:
        return NOTHING_POSSIBLE
    try:
        return await asyncio.to_thread(billing.possible, id_)
    except BillingUnavailable:
        return NOTHING_POSSIBLE


@router.get("/invoices/{id}")
async def invoice(request: Request, visitor: Visitor, id: str) -> Response:
    return await invoice_page(request, visitor, await own_invoice(request, visitor.organization_id, id))


@router.post("/invoices/{id}/verify")
async def verify_invoice(request: Request, visitor: Visitor, _: Form, id: str) -> Response:
    """Count its events again and compare; and tell how its amounts came about."""
    document = await own_invoice(request, visitor.organization_id, id)
    billing = services_of(request).billing
    if billing is None:
        raise Problem(404, "not_found", "this process has no access to billing's ledger")
    try:
        verified, explained = await asyncio.gather(
            asyncio.to_thread(billing.verify, id), asyncio.to_thread(billing.explain, id)
        )
    except BillingUnavailable as error:
        return await invoice_page(request, visitor, document, status=503, problem=str(error))
    return await invoice_page(request, visitor, document, verified=verified, explained=explained)


_ASKED = {
    ("approve", False): "This invoice was already approved.",
    ("retry", True): "Retrying within a minute.",
    ("retry", False): "There is nothing to retry.",
}


@router.post("/invoices/{id}/{what}")
async def ask_for_invoice(
    request: Request, visitor: Visitor, _: Form, id: str, what: Literal["approve", "retry"]
) -> Response:
    """Let it be charged, or tried again, by the next close."""
    document = await own_invoice(request, visitor.organization_id, id)
    billing = services_of(request).billing
    if billing is None:
        raise Problem(404, "not_found", "this process has no access to billing's ledger")
    try:
        by = f"dashboard, {visitor.key_id}"
        asked = await asyncio.to_thread(billing.ask, id, what, by)
    except BillingUnavailable as error:
        return await invoice_page(request, visitor, document, status=503, problem=str(error))
    if what == "approve" and asked:
        done = _approved_text(services_of(request).catalog.view, visitor.organization_id, by)
    else:
        done = _ASKED[what, asked]
    return await invoice_page(request, visitor, document, done=done)
