"""catalog, ledger, ClickHouse → the invoices of cycles that run, as they would be fixed now. Nothing is recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from billing_job.invoice.builder import build_snapshots
from billing_job.invoice.due import owed_at
from billing_job.invoice.usage_reader import UsageReader
from catalog.view import CatalogView
from ledger.invoice import just_fixed
from ledger.snapshot import InvoiceFixed
from ledger.view import InvoiceLedger
from schemas.subscription import Subscription


def preview_invoices(
    view: CatalogView, ledger: InvoiceLedger, usage: UsageReader, subscriptions: Iterable[Subscription], at_us: int
) -> list[dict[str, Any]]:
    """The invoice of each subscription's cycle at that time, as it would be fixed with what is stored now.

    With the late usage of earlier cycles that is pending. After a subscription's end: its last cycle until that is
    invoiced, then its final invoice, while that is not made. A cycle that was invoiced is shown as it would be invoiced
    now, by itself.
    """

    def is_invoiced(invoice_id: str) -> bool:
        known = ledger.get(invoice_id)
        return known is not None and known.fixed is not None

    found = [due for each in subscriptions if (due := owed_at(each, at_us, is_invoiced)) is not None]
    if not found:
        return []
    watermark = usage.covered()
    is_fixed = {each.invoice_id for each in found if is_invoiced(each.invoice_id)}
    made: list[InvoiceFixed] = []
    for chosen, of_ledger in ((False, ledger), (True, InvoiceLedger())):
        due = [each for each in found if (each.invoice_id in is_fixed) is chosen and not (chosen and each.final)]
        made += build_snapshots(view, of_ledger, usage, due, watermark, now_us=at_us, writer="preview")
    return [preview_document(each) for each in made]


def preview_document(fixed: InvoiceFixed) -> dict[str, Any]:
    """The document of an invoice that is in no ledger: it has no id and no hash."""
    return {
        **just_fixed(fixed).document(),
        "id": None,
        "state": "preview",
        "hash": None,
        "as_of": fixed.watermark,
    }
