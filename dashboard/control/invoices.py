"""/api/v1/invoices: approved, tried again now, voided or credited. What else an invoice says or does is billing's."""

from __future__ import annotations

from typing import Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from dashboard.auth import Caller, Principal
from dashboard.billing_access import answered, billing_of
from dashboard.control.common import IdempotencyKey
from dashboard.problems import problem_responses
from dashboard.read.invoices import InvoiceOut, own_invoice
from dashboard.routing import AdminRoute, api_router
from dashboard.services import services_of
from dashboard.writes import require_idempotency_key
from ledger.records import CreditFor
from schemas.decimals import Amount
from schemas.event import Label

router = api_router(AdminRoute, "Invoices")


class InvoiceVoidRequest(BaseModel):
    """Why, and whether to create a corrected invoice with the next billing run."""

    model_config = ConfigDict(extra="forbid")

    reason: Label
    reissue: bool = False


class InvoiceVoidedOut(BaseModel):
    """reissued_as: ID of the corrected invoice; null when none is created."""

    invoice: InvoiceOut
    reissued_as: str | None


class InvoiceSettleRequest(BaseModel):
    """How the second payment was dealt with, for the ledger."""

    model_config = ConfigDict(extra="forbid")

    reason: Label


class InvoiceCreditRequest(BaseModel):
    """amount: major units, tax included. refund: of a paid invoice, back to how it was paid, not to the balance.

    for: `usage` that should not have been billed (void its events too, or the next invoice bills it again), or
    `goodwill`, which changes nothing about what was billed.
    """

    model_config = ConfigDict(extra="forbid")

    amount: Amount
    reason: Label
    refund: bool = False
    credit_for: CreditFor = Field(default="goodwill", alias="for")


class CreditNoteOut(BaseModel):
    """A credit note as Stripe issued it. amount: major units, tax included. number: the document's, at Stripe."""

    type: Literal["credit_note"]
    id: str
    amount: str
    currency: str
    status: str
    reason: str | None
    number: str | None
    created_at: str
    credit_for: CreditFor = Field(alias="for")


class InvoiceCreditedOut(BaseModel):
    """The credit note, and the invoice as it is with it."""

    credit_note: CreditNoteOut
    invoice: InvoiceOut


class AskedOut(BaseModel):
    """accepted: whether the invoice was waiting for it; the next close goes on with it."""

    accepted: bool


async def _ask(request: Request, caller: Principal, id_: str, what: Literal["approve", "retry"]) -> AskedOut:
    await own_invoice(request, caller.organization_id, id_)
    billing = billing_of(services_of(request))
    return AskedOut(accepted=await answered(lambda: billing.ask(id_, what, caller.key_id)))


@router.post("/invoices/{id}/approve", responses=problem_responses(404, 503))
async def approve_invoice(request: Request, caller: Caller, id: str) -> AskedOut:
    """Approve an invoice for charging (`invoice_approval`: `manual`). Idempotent."""
    return await _ask(request, caller, id, "approve")


@router.post("/invoices/{id}/retry", responses=problem_responses(404, 503))
async def retry_invoice(request: Request, caller: Caller, id: str) -> AskedOut:
    """Retry an invoice that is held or failed now, instead of waiting for the next attempt."""
    return await _ask(request, caller, id, "retry")


@router.post("/invoices/{id}/void", responses=problem_responses(404, 409, 503))
async def void_invoice(
    request: Request, caller: Caller, id: str, body: InvoiceVoidRequest, idempotency_key: IdempotencyKey = None
) -> InvoiceVoidedOut:
    """Void an unpaid invoice, in Stripe too. Idempotent, with or without an Idempotency-Key."""
    require_idempotency_key(idempotency_key)
    await own_invoice(request, caller.organization_id, id)
    billing = billing_of(services_of(request))
    made = await answered(lambda: billing.void(id, reason=body.reason, reissue=body.reissue, by=caller.key_id))
    return InvoiceVoidedOut(invoice=InvoiceOut.model_validate(made.invoice), reissued_as=made.reissued_as)


@router.post("/invoices/{id}/settle", responses=problem_responses(404, 409, 503))
async def settle_invoice(request: Request, caller: Caller, id: str, body: InvoiceSettleRequest) -> InvoiceOut:
    """Release an invoice that was paid twice (`charged_twice`) once the second payment has been dealt with.

    A full refund at Stripe ends it without this.
    """
    await own_invoice(request, caller.organization_id, id)
    billing = billing_of(services_of(request))
    return InvoiceOut.model_validate(await answered(lambda: billing.settle(id, reason=body.reason, by=caller.key_id)))


@router.post("/invoices/{id}/credit", status_code=201, responses=problem_responses(404, 409, 503))
async def credit_invoice(
    request: Request, caller: Caller, id: str, body: InvoiceCreditRequest, idempotency_key: IdempotencyKey = None
) -> InvoiceCreditedOut:
    """Issue a credit note in Stripe: reduce the amount due, add to the customer's balance, or refund.

    Without an Idempotency-Key every request is another credit note.
    """
    require_idempotency_key(idempotency_key)
    await own_invoice(request, caller.organization_id, id)
    billing = billing_of(services_of(request))
    made = await answered(
        lambda: billing.credit(
            id,
            body.amount,
            reason=body.reason,
            refund=body.refund,
            credit_for=body.credit_for,
            request=idempotency_key,
            by=caller.key_id,
        )
    )
    return InvoiceCreditedOut(
        credit_note=CreditNoteOut.model_validate(made.credit_note), invoice=InvoiceOut.model_validate(made.invoice)
    )
