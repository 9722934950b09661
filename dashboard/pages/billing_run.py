"""/invoices/run: what has ended and is not billed yet, and a button that bills it."""

from __future__ import annotations

import asyncio
from collections import Counter

from fastapi import APIRouter, Request, Response

from dashboard.billing_access import answered, billing_of
from dashboard.billing_port import BillingRun
from dashboard.pages.invoices import shown
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.services import services_of
from runtime.problem import Problem

router = APIRouter(include_in_schema=False)
LISTED_MAX = 200


def _running(request: Request, visitor: Session, *, dry_run: bool) -> asyncio.Task[BillingRun]:
    """One at a time for an organization: a second click waits for the first one's run."""
    services, organization = services_of(request), visitor.organization_id
    billing = billing_of(services)

    async def run() -> BillingRun:
        return await answered(lambda: billing.run_billing(organization, dry_run=dry_run))

    return services.runs.begun((organization, dry_run), run)


def _page(request: Request, visitor: Session, template: str, run: BillingRun | None, problem: str | None) -> Response:
    view = services_of(request).catalog.view
    invoices = [shown(document, view) for document in run.invoices] if run else []
    states = Counter(invoice["state"] for invoice in invoices)
    return render(
        request,
        template,
        visitor,
        status=503 if problem else 200,
        run=run,
        problem=problem,
        invoices=invoices[:LISTED_MAX],
        count=len(invoices),
        states=", ".join(f"{count} {state.replace('_', ' ')}" for state, count in sorted(states.items())),
    )


async def _answer(request: Request, visitor: Session, template: str, *, dry_run: bool) -> Response:
    try:
        run = await asyncio.shield(_running(request, visitor, dry_run=dry_run))
    except Problem as problem:
        return _page(request, visitor, template, None, problem.detail)
    return _page(request, visitor, template, run, None)


@router.get("/invoices/run")
async def billing_run_page(request: Request, visitor: Visitor, wait: bool = False) -> Response:
    if wait:
        return await _answer(request, visitor, "billing_run.html", dry_run=True)
    return _page(request, visitor, "billing_run.html", None, None)


@router.get("/invoices/run/due")
async def billing_due(request: Request, visitor: Visitor) -> Response:
    """What would be billed alone, when it is counted."""
    return await _answer(request, visitor, "billing_due.html", dry_run=True)


@router.post("/invoices/run")
async def run_billing(request: Request, visitor: Visitor, _: Form) -> Response:
    """Asking twice is asking once: what is billed already is not billed again."""
    return await _answer(request, visitor, "billing_done.html", dry_run=False)
