"""/invoices/{id}/void, /invoices/{id}/credit: an issued invoice that is wrong, put right by a form of its own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from dashboard.billing_access import answered, billing_of
from dashboard.billing_port import Credited, Possible, Voided
from dashboard.control.common import validated
from dashboard.control.invoices import InvoiceCreditRequest, InvoiceSettleRequest, InvoiceVoidRequest
from dashboard.pages.formats import money
from dashboard.pages.forms import NO_ERRORS, REQUEST_FIELD, Errors, attempted, filled, new_request_key, request_key
from dashboard.pages.invoices import invoice_page, shown
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.read.invoices import own_invoice
from dashboard.services import services_of

router = APIRouter(include_in_schema=False)


async def _possible(request: Request, id_: str) -> Possible:
    billing = billing_of(services_of(request))
    return await answered(lambda: billing.possible(id_))


async def _not_possible(request: Request, visitor: Session, document: dict[str, Any], problem: str) -> Response:
    return await invoice_page(request, visitor, document, status=409, problem=problem)


# --- Void -------------------------------------------------------------------------------------------------------------


def _void_page(
    request: Request, visitor: Session, document: dict[str, Any], values: Any, errors: Errors, status: int = 200
) -> Response:
    invoice = shown(document, services_of(request).catalog.view)
    return render(request, "invoice_void.html", visitor, status=status, invoice=invoice, values=values, errors=errors)


@router.get("/invoices/{id}/void")
async def void_form(request: Request, visitor: Visitor, id: str) -> Response:
    document = await own_invoice(request, visitor.organization_id, id)
    if not (await _possible(request, id)).void:
        return await _not_possible(request, visitor, document, "Only an invoice that is not paid can be voided.")
    return _void_page(request, visitor, document, {}, NO_ERRORS)


@router.post("/invoices/{id}/void")
async def void_invoice(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    document = await own_invoice(request, visitor.organization_id, id)

    async def voiding() -> Voided:
        wanted, billing = validated(InvoiceVoidRequest, dict(filled(form))), billing_of(services_of(request))
        by = f"dashboard, {visitor.key_id}"
        return await answered(lambda: billing.void(id, reason=wanted.reason, reissue=wanted.reissue, by=by))

    made, errors, status = await attempted(voiding())
    if status == 409:
        return await _not_possible(request, visitor, document, errors[""])
    if made is None:
        return _void_page(request, visitor, document, form, errors, status)
    done = "Invoice voided."
    if made.reissued_as is not None:
        done += " A corrected one follows with the next billing run."
    return await invoice_page(request, visitor, made.invoice, done=done)


# --- Credit -----------------------------------------------------------------------------------------------------------


def _credit_page(
    request: Request,
    visitor: Session,
    document: dict[str, Any],
    possible: Possible,
    values: Any,
    errors: Errors = NO_ERRORS,
    status: int = 200,
) -> Response:
    return render(
        request,
        "invoice_credit.html",
        visitor,
        status=status,
        invoice=shown(document, services_of(request).catalog.view),
        possible=possible,
        values=values,
        errors=errors,
        # A refused credit gets a new key; one that may have been issued is repeated with the same key.
        request_key=values.get(REQUEST_FIELD) if status == 503 else new_request_key(),
    )


@router.get("/invoices/{id}/credit")
async def credit_form(request: Request, visitor: Visitor, id: str) -> Response:
    document = await own_invoice(request, visitor.organization_id, id)
    possible = await _possible(request, id)
    if possible.credit is None:
        return await _not_possible(
            request, visitor, document, "This invoice hasn't been issued, so there is nothing to credit."
        )
    return _credit_page(request, visitor, document, possible, {})


@router.post("/invoices/{id}/credit")
async def credit_invoice(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    document = await own_invoice(request, visitor.organization_id, id)

    async def crediting() -> Credited:
        wanted, billing = validated(InvoiceCreditRequest, dict(filled(form))), billing_of(services_of(request))
        key, by = request_key(form), f"dashboard, {visitor.key_id}"
        return await answered(
            lambda: billing.credit(
                id,
                wanted.amount,
                reason=wanted.reason,
                refund=wanted.refund,
                credit_for=wanted.credit_for,
                request=key,
                by=by,
            )
        )

    made, errors, status = await attempted(crediting())
    if status == 409:
        return await _not_possible(request, visitor, document, errors[""])
    if made is None:
        return _credit_page(request, visitor, document, await _possible(request, id), form, errors, status)
    note = made.credit_note
    done = f"Credit note {note['number'] or note['id']} for {money(note['amount'], note['currency'])} issued."
    return await invoice_page(request, visitor, made.invoice, done=done)


# --- Paid twice -------------------------------------------------------------------------------------------------------


@router.post("/invoices/{id}/settle")
async def settle_invoice(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    document = await own_invoice(request, visitor.organization_id, id)

    async def settling() -> dict[str, Any]:
        wanted, billing = validated(InvoiceSettleRequest, dict(filled(form))), billing_of(services_of(request))
        return await answered(lambda: billing.settle(id, reason=wanted.reason, by=f"dashboard, {visitor.key_id}"))

    made, errors, _ = await attempted(settling())
    if made is None:
        return await _not_possible(request, visitor, document, next(iter(errors.values())))
    return await invoice_page(request, visitor, made, done="The second payment is settled.")
