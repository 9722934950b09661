"""invoice void|credit: an invoice that was wrong is put right at Stripe and in the ledger."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated

from cyclopts import Parameter

from billing_job.collect.steps import Billing, InvoiceStopped
from billing_job.collect.void_credit import NotPossible, credit_amount, reissue, settle_paid_twice
from billing_job.collect.void_credit import credit as credit_invoice
from billing_job.collect.void_credit import void as void_invoice
from billing_job.service import UnknownInvoice, open_service
from billing_job.stripe.errors import StripeFailure
from ledger.invoice import Invoice
from ledger.records import CreditFor
from ledger.store import LedgerUnavailable
from usage_billing.console import DONE, fail, settings_for, wrong_usage

InvoiceId = Annotated[str, Parameter(help="Id of the invoice, inv_…", name="ID")]
Reason = Annotated[str, Parameter(help="Why; kept in the ledger, and printed on a credit note.")]


def void(
    invoice_id: InvoiceId,
    /,
    *,
    reason: Reason,
    reissue_it: Annotated[
        bool, Parameter(help="Have the next close invoice its cycle anew.", name="--reissue", negative="")
    ] = False,
) -> int:
    """Void an invoice that is not paid, at Stripe too. With --reissue its cycle is invoiced again, as a revision."""

    def done(billing: Billing, invoice: Invoice) -> str:
        voided = void_invoice(billing, invoice, reason, by=getpass.getuser())
        again = f"; its cycle is invoiced anew as {reissue(billing, voided)}" if reissue_it else ""
        return f"{invoice_id} is void{again}"

    return _done(invoice_id, done)


def credit(
    invoice_id: InvoiceId,
    /,
    *,
    amount: Annotated[str, Parameter(help="In major units (12.34), tax included.")],
    reason: Reason,
    refund: Annotated[
        bool, Parameter(help="Of a paid invoice: back to the card, not to the balance.", negative="")
    ] = False,
    for_: Annotated[
        CreditFor,
        Parameter(
            name="--for",
            help="usage: billed by mistake, void its events too; goodwill: what was billed stays.",
        ),
    ] = "goodwill",
) -> int:
    """Have Stripe issue a credit note: less is to pay, now or with the next invoice, or it is refunded."""
    try:
        wanted = Decimal(amount)
    except InvalidOperation:
        wrong_usage(f"--amount: {amount!r} is no decimal number")
    if not wanted.is_finite():
        wrong_usage(f"--amount: {amount!r} is no amount")

    def done(billing: Billing, invoice: Invoice) -> str:
        before = set(invoice.adjustments)
        after = credit_invoice(
            billing,
            invoice,
            credit_amount(invoice, wanted),
            refund=refund,
            reason=reason,
            credit_for=for_,
            by=getpass.getuser(),
        )
        notes = [each for id_, each in after.adjustments.items() if id_ not in before]
        issued = ", ".join(f"{each.adjustment} {each.number or each.object_id}" for each in notes)
        return f"{invoice_id} is credited: {issued}; it is {after.state}"

    return _done(invoice_id, done)


def settle(invoice_id: InvoiceId, /, *, reason: Reason) -> int:
    """End the hold of an invoice that was paid twice: the second payment was dealt with. A full refund ends it, too."""

    def done(billing: Billing, invoice: Invoice) -> str:
        after = settle_paid_twice(billing, invoice, reason, by=getpass.getuser())
        return f"{invoice_id}: the second payment is settled; it is {after.state}"

    return _done(invoice_id, done)


def _done(invoice_id: str, act: Callable[[Billing, Invoice], str]) -> int:
    try:
        with open_service(settings_for("invoice")) as service:
            invoice = service.invoice(invoice_id)
            print(act(service.context.billing(), invoice))
    except (NotPossible, UnknownInvoice) as error:
        wrong_usage(str(error))
    except StripeFailure as failure:
        fail(f"{invoice_id}: {failure.reason}")
    except (InvoiceStopped, LedgerUnavailable) as error:
        fail(f"{invoice_id}: {error}")
    return DONE
