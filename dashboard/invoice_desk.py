"""What billing can tell about invoices, and be asked of them. The process that serves pages and API provides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from schemas.period import Cycle
from schemas.product import ProductSpec


class DeskUnavailable(Exception):
    """The ledger or ClickHouse does not answer; trying again may help."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An invoice recomputed from raw events. differences: what is not as it was invoiced; none: all is."""

    hash: str
    differences: tuple[str, ...]


class DeskRefused(ValueError):
    """What was asked for can't be done; field: of the request."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class InvoiceDesk(Protocol):
    """Every method blocks, and raises DeskUnavailable. The caller knows whose invoice or customer it is."""

    def verify(self, invoice_id: str) -> Verified:
        """Count its events again, price them by its snapshot, and compare."""
        ...

    def explain(self, invoice_id: str) -> list[str]:
        """How every amount came about, a line of text each."""
        ...

    def events(self, invoice_id: str, line: int | None) -> Iterator[str]:
        """The events behind one line or (None) all of them, as CSV in blocks. Raises DeskRefused."""
        ...

    def preview(self, organization_id: str, customer_id: str, at_us: int) -> list[dict[str, Any]]:
        """The invoice of each of the customer's subscriptions for the cycle of that time, late usage included."""
        ...

    def simulate(
        self, organization_id: str, customer_id: str, product: ProductSpec | str, period: Cycle
    ) -> list[dict[str, Any]]:
        """What a product (or that of an id) would have charged, cycle by cycle. Raises DeskRefused."""
        ...

    def ask(self, invoice_id: str, what: Literal["approve", "retry"], by: str) -> bool:
        """Let it be charged, or tried again now, by the next close; False: it was not waiting for that."""
        ...
