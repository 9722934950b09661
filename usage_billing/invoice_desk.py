"""billing_job → what the dashboard asks of an invoice: the two stages meet here and nowhere else."""

from __future__ import annotations

from billing_job import invoices
from billing_job.ledger import LedgerUnavailable
from dashboard.invoice_desk import DeskUnavailable, Verified
from schemas.settings import Settings
from warehouse.client import WarehouseUnavailable


class LedgerDesk:
    """Reads the ledger for each question: they are few, and what is told is then what the log says now."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def verify(self, invoice_id: str) -> Verified:
        try:
            found = invoices.verify(self._settings, invoice_id)
        except invoices.UnknownInvoice as error:
            return Verified("", (str(error),))
        except (LedgerUnavailable, WarehouseUnavailable) as error:
            raise DeskUnavailable(str(error)) from error
        return Verified(found.recomputed, found.differences)

    def explain(self, invoice_id: str) -> list[str]:
        try:
            return invoices.explain(self._settings, invoice_id)
        except invoices.UnknownInvoice as error:
            return [str(error)]
        except LedgerUnavailable as error:
            raise DeskUnavailable(str(error)) from error
