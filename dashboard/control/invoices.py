"""/api/v1/invoices: approved, or tried again now. What else an invoice says or does is billing's."""

from __future__ import annotations

from typing import Literal

from fastapi import Request
from pydantic import BaseModel

from dashboard.auth import Caller, Principal
from dashboard.desk_access import answered, desk_of
from dashboard.problems import problem_responses
from dashboard.read.invoices import own_invoice
from dashboard.routing import AdminRoute, api_router
from dashboard.services import services_of

router = api_router(AdminRoute, "Invoices")


class AskedOut(BaseModel):
    """accepted: whether the invoice was waiting for it; the next close goes on with it."""

    accepted: bool


async def _ask(request: Request, caller: Principal, id_: str, what: Literal["approve", "retry"]) -> AskedOut:
    await own_invoice(request, caller.organization_id, id_)
    desk = desk_of(services_of(request))
    return AskedOut(accepted=await answered(lambda: desk.ask(id_, what, caller.key_id)))


@router.post("/invoices/{id}/approve", responses=problem_responses(404, 503))
async def approve_invoice(request: Request, caller: Caller, id: str) -> AskedOut:
    """Let it be charged, where the organization's `invoice_approval` is `manual`. Asking twice is asking once."""
    return await _ask(request, caller, id, "approve")


@router.post("/invoices/{id}/retry", responses=problem_responses(404, 503))
async def retry_invoice(request: Request, caller: Caller, id: str) -> AskedOut:
    """Try again, without the usual rest, what is held or failed; also what had failed for good."""
    return await _ask(request, caller, id, "retry")
