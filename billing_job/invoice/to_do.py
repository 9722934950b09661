"""ledger, due cycles → what a close still has to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from billing_job.invoice.due import DueCycle
from ledger.invoice import Invoice
from ledger.view import InvoiceLedger


def unfixed(ledger: InvoiceLedger, due: Sequence[DueCycle]) -> list[DueCycle]:
    """Cycles whose invoice is not in the ledger yet."""
    return [each for each in due if (found := ledger.get(each.invoice_id)) is None or not found.fixed]


def in_force(ledger: InvoiceLedger, due: DueCycle) -> DueCycle:
    """The cycle with the revision of the invoice that bills it."""
    invoice_id, revision = ledger.in_force(due.organization_id, due.subscription_id, due.cycle.start_us)
    if invoice_id == due.invoice_id:
        return due
    return msgspec.structs.replace(due, invoice_id=invoice_id, revision=revision)


def split_begun(ledger: InvoiceLedger, in_grace: Iterable[DueCycle]) -> tuple[list[DueCycle], tuple[DueCycle, ...]]:
    """Cycles within their grace whose invoice is fixed already, and those without one.

    A fixed invoice does not wait for late events: a person closed the cycle, and may have approved the invoice.
    """
    begun: list[DueCycle] = []
    waited_for: list[DueCycle] = []
    for cycle in in_grace:
        current = in_force(ledger, cycle)
        known = ledger.get(current.invoice_id)
        if known is not None and known.fixed is not None:
            begun.append(current)
        else:
            waited_for.append(cycle)
    return begun, tuple(waited_for)


def is_ours_to_do(invoice: Invoice) -> bool:
    """Whether a close has anything left to do. Stripe collects an open invoice once its payment was tried."""
    if invoice.finished or invoice.voiding:
        return not invoice.finished
    status = None if invoice.stripe is None else invoice.stripe.status
    paid = invoice.attempt("pay")
    if status == "uncollectible":  # given up, until someone asks for another attempt
        return paid is not None and paid.phase != "done" and invoice.state != "mismatch"
    if status == "open" and invoice.state != "mismatch":
        assert invoice.fixed is not None
        tried = paid is not None and paid.phase == "done"
        return invoice.fixed.seller.collection_method == "charge_automatically" and not tried
    return status != "void"
