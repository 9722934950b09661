"""/v1/credit_notes: what an issued invoice is reduced by.

Source: Stripe API reference, "Credit Notes". Before payment a credit note lowers what remains to be paid, and the
invoice is paid when nothing remains; after payment its amount is split into a credit to the customer's balance, a
refund and money given back elsewhere.
"""

from __future__ import annotations

from stripe_standin import collection, customers, payments
from stripe_standin.errors import InvalidParameter, refused
from stripe_standin.invoice_view import render as render_invoice
from stripe_standin.paging import in_range, listed, matching, newest, page
from stripe_standin.params import merged
from stripe_standin.records import (
    Charge,
    CreditNote,
    CreditNoteLine,
    Customer,
    Invoice,
    InvoiceItem,
    PaymentIntent,
    Refund,
)
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id


def _line(line: CreditNoteLine) -> Json:
    return {
        "id": line.id,
        "object": "credit_note_line_item",
        "amount": line.amount,
        "description": line.description,
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice_line_item": line.invoice_line_item,
        "livemode": False,
        "metadata": {},
        "pretax_credit_amounts": [],
        "quantity": line.quantity,
        "tax_rates": [],
        "taxes": [],
        "type": "custom_line_item" if line.invoice_line_item is None else "invoice_line_item",
        "unit_amount": None,
        "unit_amount_decimal": None,
    }


def render(scope: Scope, note: CreditNote) -> Json:
    kind = (
        "mixed"
        if note.pre_payment_amount and note.post_payment_amount
        else ("pre_payment" if note.pre_payment_amount else "post_payment")
    )
    refunds: list[Json] = []
    if note.refund is not None:
        refund = payments.render_refund(scope, scope.shown(Refund, note.refund))
        refunds = [
            {
                "amount_refunded": refund["amount"],
                "payment_record_refund": None,
                "refund": note.refund,
                "type": "refund",
            }
        ]
    return {
        "id": note.id,
        "object": "credit_note",
        "amount": note.amount,
        "amount_shipping": 0,
        "created": note.created,
        "currency": note.currency,
        "customer": note.customer,
        "customer_account": None,
        "customer_balance_transaction": note.balance_transaction,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": note.created,
        "invoice": note.invoice,
        "lines": listed(
            f"/v1/credit_notes/{note.id}/lines", [_line(li) for li in note.lines[:10]], len(note.lines) > 10
        ),
        "livemode": False,
        "memo": note.memo,
        "metadata": note.metadata,
        "number": note.number,
        "out_of_band_amount": note.out_of_band_amount,
        "pdf": f"https://pay.stripe.com/credit_notes/{scope.account.public_id}/test_{note.id}/pdf?s=ap",
        "post_payment_amount": note.post_payment_amount,
        "pre_payment_amount": note.pre_payment_amount,
        "pretax_credit_amounts": [],
        "reason": note.reason,
        "refunds": refunds,
        "shipping_cost": None,
        "status": note.status,
        "subtotal": note.amount,
        "subtotal_excluding_tax": note.amount,
        "total": note.amount,
        "total_excluding_tax": note.amount,
        "total_taxes": [],
        "type": kind,
        "voided_at": note.voided_at,
    }


def _lines(scope: Scope, invoice: Invoice, params: Json) -> list[CreditNoteLine]:
    by_line = {i.line_id: i for i in (scope.shown(InvoiceItem, id_) for id_ in invoice.items)}
    lines: list[CreditNoteLine] = []
    for index, given in enumerate(params.get("lines") or ()):
        param = f"lines[{index}]"
        if given["type"] == "invoice_line_item":
            item = by_line.get(given.get("invoice_line_item") or "")
            if item is None:
                raise refused(
                    f"No such invoice line item: '{given.get('invoice_line_item')}'",
                    code="resource_missing",
                    param=f"{param}[invoice_line_item]",
                )
            amount: int = given.get("amount", item.amount)
            lines.append(
                CreditNoteLine(new_id("cnli_1"), amount, item.description, item.line_id, given.get("quantity"))
            )
        else:
            amount = given.get("amount", given.get("unit_amount", 0) * given.get("quantity", 1))
            lines.append(
                CreditNoteLine(new_id("cnli_1"), amount, given.get("description"), None, given.get("quantity"))
            )
    if not lines:
        if params.get("amount") is None:
            raise InvalidParameter("Missing required param: amount.", "amount", "parameter_missing")
        lines = [CreditNoteLine(new_id("cnli_1"), params["amount"], "Credit", None, 1)]
    return lines


def create(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    invoice = scope.get(Invoice, params["invoice"], "invoice", status=400)
    if invoice.status not in ("open", "paid", "uncollectible"):
        raise refused("You can only create credit notes for open, paid or uncollectible invoices.", param="invoice")
    lines = _lines(scope, invoice, params)
    amount = sum(line.amount for line in lines)
    if params.get("amount") not in (None, amount):
        raise refused("The sum of the lines must equal `amount`.", param="amount")
    if amount <= 0:
        raise refused("The credit note amount must be positive.", param="amount")
    # Source: "the sum of pre_payment_amount and post_payment_amount"; what remains open is credited first.
    before = min(amount, invoice.amount_remaining)
    after = amount - before
    left = invoice.total - invoice.pre_payment_credit - invoice.post_payment_credit
    if amount > left:
        raise refused(f"The credit note amount ({amount}) is greater than what is left of the invoice ({left}).")
    credit, refund, elsewhere = (params.get(n) or 0 for n in ("credit_amount", "refund_amount", "out_of_band_amount"))
    if credit + refund + elsewhere != after:
        raise refused(
            f"The sum of credit amount, refund amount and out of band amount ({credit + refund + elsewhere}) must "
            f"equal the post payment credit note amount ({after}).",
        )
    count = len(scope.children(CreditNote, invoice.id)) + 1
    note = CreditNote(
        id=new_id("cn_1"),
        created=scope.now,
        invoice=invoice.id,
        customer=invoice.customer,
        currency=invoice.currency,
        number=f"{invoice.number}-CN-{count:02d}",
        amount=amount,
        lines=lines,
        pre_payment_amount=before,
        post_payment_amount=after,
        credit_amount=credit,
        out_of_band_amount=elsewhere or None,
        memo=params.get("memo"),
        reason=params.get("reason"),
        metadata=merged({}, params.get("metadata")),
    )
    _give_back(scope, invoice, note, refund)
    scope.put(note)
    scope.put(invoice)
    scope.emit("credit_note.created", render(scope, note))
    if invoice.status == "open" and invoice.amount_remaining == 0:
        payments.cancel(scope, invoice, "void_invoice")
        collection.paid(scope, invoice)
    else:
        scope.emit("invoice.updated", render_invoice(scope, invoice))
    return render(scope, note)


def _give_back(scope: Scope, invoice: Invoice, note: CreditNote, refund: int) -> None:
    invoice.pre_payment_credit += note.pre_payment_amount
    invoice.post_payment_credit += note.post_payment_amount
    if note.credit_amount:
        customer = scope.get(Customer, invoice.customer)
        note.balance_transaction = customers.move_balance(
            scope,
            customer,
            -note.credit_amount,
            invoice.currency,
            "credit_note",
            invoice=invoice.id,
            credit_note=note.id,
        ).id
    if refund:
        intent = scope.get(PaymentIntent, invoice.payment_intent or "", "refund_amount", status=400)
        charge = scope.get(Charge, intent.latest_charge or "", "refund_amount", status=400)
        note.refund = payments.refund_charge(scope, charge, refund, "requested_by_customer", {}).id


def void(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    note = scope.get(CreditNote, path[0], "id")
    if note.status == "void":
        raise refused("This credit note has already been voided.")
    if note.post_payment_amount:
        raise refused("You cannot void a credit note that credits a paid invoice.")
    note.status = "void"
    note.voided_at = scope.now
    invoice = scope.get(Invoice, note.invoice)
    if invoice.status != "open":
        raise refused("You can only void credit notes of open invoices.")
    invoice.pre_payment_credit -= note.pre_payment_amount
    scope.put(note)
    scope.put(invoice)
    scope.emit("credit_note.voided", render(scope, note))
    return render(scope, note)


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope, scope.get(CreditNote, path[0], "id"))


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    same = matching(params, customer="customer", invoice="invoice")
    return page(
        newest(scope.all(CreditNote)),
        params,
        "/v1/credit_notes",
        lambda n: render(scope, n),
        CreditNote.NOUN,
        lambda n: same(n) and in_range(n.created, params.get("created")),
    )


ROUTES = (
    Route(
        "POST",
        "/v1/credit_notes",
        "CreditNoteCreateParams",
        "invoice amount credit_amount refund_amount out_of_band_amount memo reason metadata lines.type lines.amount"
        " lines.invoice_line_item lines.quantity lines.unit_amount lines.description",
        create,
    ),
    Route(
        "GET",
        "/v1/credit_notes",
        "CreditNoteListParams",
        "customer invoice created limit starting_after ending_before",
        list_all,
    ),
    Route("GET", "/v1/credit_notes/{}", "CreditNoteRetrieveParams", "", retrieve),
    Route("POST", "/v1/credit_notes/{}/void", "CreditNoteVoidCreditNoteParams", "", void),
)
