"""What billing can tell about an invoice, for pages that show one. The process that serves them provides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class DeskUnavailable(Exception):
    """The ledger or ClickHouse does not answer; trying again may help."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An invoice recomputed from raw events. differences: what is not as it was invoiced; none: all is."""

    hash: str
    differences: tuple[str, ...]


class InvoiceDesk(Protocol):
    """Both methods block, and raise DeskUnavailable. The caller knows whose invoice it is."""

    def verify(self, invoice_id: str) -> Verified:
        """Count its events again, price them by its snapshot, and compare."""
        ...

    def explain(self, invoice_id: str) -> list[str]:
        """How every amount came about, a line of text each."""
        ...
