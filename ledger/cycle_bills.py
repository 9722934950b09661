"""A subscription's invoices → the amounts that its valid documents have billed for each cycle. Pure.

The cost of a cycle is the sum of its own invoice and of corrections on later invoices, less credit notes for usage. The
subscription's next invoice adds what is missing. A void invoice bills nothing. A cycle is waived, and costs nothing,
when its own invoice is void and not reissued.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ledger.invoice import Invoice
from ledger.records import InvoiceAdjusted
from ledger.snapshot import CarriedCredit, InvoiceFixed, Reissue
from schemas.watermark import Watermark


@dataclass(frozen=True, slots=True)
class Share:
    """The amount of one invoice for one cycle, before credit notes. quantities: meter id → the cycle's total."""

    cycle_start: int
    amount_minor: int
    quantities: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CycleBill:
    """The amounts billed for one cycle of a subscription so far.

    fixed: the cycle's own invoice; the void one of a waived cycle.
    counted: ids of the invoices that bill it, in log order.
    billed_minor: their sum for this cycle, less credited_minor.
    quantities: meter id → the cycle's total at its last count.
    quantities_at: watermark of that count.
    counted_to: events of the cycle at or after this watermark are late and not billed yet.
    credited_minor, credit_notes: sum and ids of credit notes for usage.
    """

    fixed: InvoiceFixed
    counted: tuple[str, ...]
    billed_minor: int
    quantities: Mapping[str, str]
    quantities_at: Watermark
    counted_to: Watermark
    waived: bool = False
    credited_minor: int = 0
    credit_notes: tuple[str, ...] = ()


def shares_of(fixed: InvoiceFixed) -> list[Share]:
    """The amounts that an invoice bills, by cycle: its own first, then those that it corrects."""
    own = [] if fixed.final else [Share(fixed.cycle_start, fixed.own_minor, fixed.quantities)]
    return own + [Share(part.cycle_start, part.difference_minor, part.quantities) for part in fixed.corrections]


def cycle_bills(invoices: Iterable[Invoice]) -> dict[int, CycleBill]:
    """Start of a cycle → its bill. invoices: of one subscription, void ones too, in log order.

    Left out: a cycle whose reissue is pending, and a waived cycle that no other invoice bills.
    """
    bills = _bills(list(invoices))
    return {start: bill for start, (bill, is_pending) in bills.items() if not is_pending}


def reissue_of(invoices: Iterable[Invoice], cycle_start: int, *, final: bool) -> Reissue:
    """Amounts that the next revision of a cycle subtracts: bills of other invoices for it, and credits that were given.

    invoices: as for `cycle_bills`; the cycle's own is void. final: the revision replaces a final invoice.
    """
    known = list(invoices)
    bill, _ = _bills(known).get(cycle_start, (None, False))
    carried = tuple(_carried(invoice for invoice in known if _is_own(invoice, cycle_start, final=final)))
    if bill is None or final:
        return Reissue(credits=carried)
    return Reissue(bill.counted, bill.billed_minor, bill.credited_minor, bill.credit_notes, carried)


def _is_own(invoice: Invoice, cycle_start: int, *, final: bool) -> bool:
    fixed = invoice.fixed
    return fixed is not None and (fixed.cycle_start, fixed.final) == (cycle_start, final)


def _bills(invoices: Sequence[Invoice]) -> dict[int, tuple[CycleBill, bool]]:
    """Start of a cycle → its bill, and whether its reissue is pending."""
    own: dict[int, Invoice] = {}
    for invoice in invoices:
        if invoice.fixed is not None and not invoice.fixed.final:
            known = own.get(invoice.cycle_start)
            if known is None or known.revision < invoice.revision:
                own[invoice.cycle_start] = invoice
    bills: dict[int, CycleBill] = {}
    # Cycles whose last correction is void: invoices that compared them later had relied on it.
    unverified: set[int] = set()
    for invoice in invoices:
        fixed = invoice.fixed
        if fixed is None:
            continue
        if invoice.state == "void":
            unverified |= {correction.cycle_start for correction in fixed.corrections}
            continue
        at = fixed.counted_to
        if fixed.trued_up:  # it compared every earlier cycle
            bills = {s: bill if s in unverified else replace(bill, counted_to=at) for s, bill in bills.items()}
        credits = credits_by_cycle(invoice)
        for share in shares_of(fixed):
            start = share.cycle_start
            of_own = own.get(start)
            if of_own is None or of_own.fixed is None:
                continue
            unverified.discard(start)
            known = bills.get(start)
            credited_minor, notes = credits.get(start, (0, ()))
            bills[start] = CycleBill(
                fixed=of_own.fixed,
                counted=(*(known.counted if known else ()), invoice.id),
                billed_minor=share.amount_minor - credited_minor + (known.billed_minor if known else 0),
                quantities=share.quantities,
                quantities_at=at,
                counted_to=at,
                waived=of_own.state == "void",
                credited_minor=credited_minor + (known.credited_minor if known else 0),
                credit_notes=(*(known.credit_notes if known else ()), *notes),
            )
    return {start: (bill, own[start].state == "void" and own[start].reissued) for start, bill in bills.items()}


# --- Credit notes -----------------------------------------------------------------------------------------------------


def usage_notes(invoice: Invoice) -> list[InvoiceAdjusted]:
    """Credit notes for usage that should not have been billed."""
    return [note for note in _issued_notes(invoice) if note.credit_for == "usage"]


def _issued_notes(invoice: Invoice) -> Iterator[InvoiceAdjusted]:
    for adjustment in invoice.adjustments.values():
        if adjustment.adjustment == "credit_note" and adjustment.status == "issued":
            yield adjustment


def _net_minor(note: InvoiceAdjusted) -> int:
    return note.amount_minor if note.net_minor is None else note.net_minor


def credits_by_cycle(invoice: Invoice) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Start of a cycle → sum, before tax, and ids of the credit notes for usage that lower the invoice's bill for it.

    A note lowers the invoice's own cycle first, then the cycles that it corrects, each down to 0.
    """
    notes = usage_notes(invoice)
    if not notes or invoice.fixed is None:
        return {}
    left, ids = sum(map(_net_minor, notes)), tuple(note.object_id for note in notes)
    shares = shares_of(invoice.fixed)
    taken: dict[int, int] = {}
    for share in shares:
        part = min(left, max(0, share.amount_minor))
        taken[share.cycle_start] = part
        left -= part
    if left and shares:  # more than the whole invoice
        taken[shares[0].cycle_start] += left
    return {start: (minor, ids) for start, minor in taken.items() if minor}


def _carried(revisions: Iterable[Invoice]) -> Iterator[CarriedCredit]:
    """Goodwill that was credited on an invoice before it became void: the customer keeps it.

    Credits that a revision carried over are credit notes of the revisions before it, so they are not counted twice.
    """
    for invoice in revisions:
        if invoice.state == "void":
            for note in _issued_notes(invoice):
                if note.credit_for != "usage":
                    yield CarriedCredit(invoice.id, note.object_id, _net_minor(note))
