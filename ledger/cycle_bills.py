"""A subscription's invoices → the amounts that its valid documents have billed for each cycle. Pure.

For every cycle, Σ of its own invoice, of corrections on later ones, and less credit notes for usage, is what the cycle
costs; what is not yet so, the subscription's next invoice makes so. A void invoice bills nothing. A cycle whose own
invoice is void and is not reissued is waived: it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ledger.records import CarriedCredit, InvoiceAdjusted, InvoiceFixed, Reissue
from schemas.watermark import Watermark

if TYPE_CHECKING:
    from ledger.view import Invoice


@dataclass(frozen=True, slots=True)
class Share:
    """What one invoice bills for one cycle, before credit notes. quantities: meter id → the cycle's total."""

    cycle_start: int
    amount_minor: int
    quantities: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CycleBill:
    """The amounts billed for one cycle of a subscription so far.

    fixed: the cycle's own invoice; of a waived cycle the void one. counted: ids of the invoices that bill it, in the
    order of the log. billed_minor: their sum for this cycle, less credited_minor. credited_minor, credit_notes: of
    notes for usage. quantities: meter id → the cycle's total as it was counted last, below quantities_at. counted_to:
    events of the cycle at or after it are late and not billed yet.
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
    return own + [Share(each.cycle_start, each.difference_minor, each.quantities) for each in fixed.corrections]


def cycle_bills(invoices: Iterable[Invoice]) -> dict[int, CycleBill]:
    """Start of a cycle → what billed it. invoices: of one subscription, void ones too, in the order of the log.

    Not among them: a cycle that is to be reissued and is not yet, and a waived one that no other invoice bills.
    """
    found = _bills(list(invoices))
    return {start: bill for start, (bill, is_open) in found.items() if not is_open}


def reissue_of(invoices: Iterable[Invoice], cycle_start: int, *, final: bool) -> Reissue:
    """What the next revision of a cycle has to take off: what others billed for it, and credits that were given.

    invoices: as of `cycle_bills`; the cycle's own is void. final: the revision is of a final invoice.
    """
    known = list(invoices)
    bill, _ = _bills(known).get(cycle_start, (None, False))
    carried = tuple(_carried(each for each in known if _is_own(each, cycle_start, final=final)))
    if bill is None or final:
        return Reissue(credits=carried)
    return Reissue(bill.counted, bill.billed_minor, bill.credited_minor, bill.credit_notes, carried)


def _is_own(invoice: Invoice, cycle_start: int, *, final: bool) -> bool:
    fixed = invoice.fixed
    return fixed is not None and (fixed.cycle_start, fixed.final) == (cycle_start, final)


def _bills(invoices: Sequence[Invoice]) -> dict[int, tuple[CycleBill, bool]]:
    """Start of a cycle → what billed it, and whether it is to be reissued and is not yet."""
    own: dict[int, Invoice] = {}
    for invoice in invoices:
        if invoice.fixed is not None and not invoice.fixed.final:
            known = own.get(invoice.cycle_start)
            if known is None or known.revision < invoice.revision:
                own[invoice.cycle_start] = invoice
    bills: dict[int, CycleBill] = {}
    unlooked: set[int] = set()  # cycles whose last correction is void: those who looked after it had relied on it
    for invoice in invoices:
        fixed = invoice.fixed
        if fixed is None:
            continue
        if invoice.state == "void":
            unlooked |= {each.cycle_start for each in fixed.corrections}
            continue
        at = fixed.counted_to
        if fixed.trued_up:  # it looked at every cycle before it
            bills = {s: bill if s in unlooked else replace(bill, counted_to=at) for s, bill in bills.items()}
        credits = credited(invoice)
        for share in shares_of(fixed):
            start = share.cycle_start
            of_own = own.get(start)
            if of_own is None or of_own.fixed is None:
                continue
            unlooked.discard(start)
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
    """Credit notes that say that usage should not have been billed."""
    return [each for each in _issued_notes(invoice) if each.credit_for == "usage"]


def _issued_notes(invoice: Invoice) -> Iterator[InvoiceAdjusted]:
    for each in invoice.adjustments.values():
        if each.adjustment == "credit_note" and each.status == "issued":
            yield each


def _net_minor(note: InvoiceAdjusted) -> int:
    return note.amount_minor if note.net_minor is None else note.net_minor


def credited(invoice: Invoice) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Start of a cycle → what notes for usage took off what the invoice bills for it, before tax, and their ids.

    A note lowers the invoice's own cycle first, then the cycles that it corrects, each down to nothing.
    """
    notes = usage_notes(invoice)
    if not notes or invoice.fixed is None:
        return {}
    left, ids = sum(map(_net_minor, notes)), tuple(each.object_id for each in notes)
    shares = shares_of(invoice.fixed)
    taken: dict[int, int] = {}
    for share in shares:
        part = min(left, max(0, share.amount_minor))
        taken[share.cycle_start] = part
        left -= part
    if left and shares:  # more than it billed at all
        taken[shares[0].cycle_start] += left
    return {start: (minor, ids) for start, minor in taken.items() if minor}


def _carried(revisions: Iterable[Invoice]) -> Iterator[CarriedCredit]:
    """Goodwill that was credited on an invoice before it was void: whoever got it keeps it.

    What a revision had carried itself is on the notes of those before it.
    """
    for invoice in revisions:
        if invoice.state == "void":
            for each in _issued_notes(invoice):
                if each.credit_for != "usage":
                    yield CarriedCredit(invoice.id, each.object_id, _net_minor(each))
