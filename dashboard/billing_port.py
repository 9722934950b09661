"""The port through which pages and API reach billing. The process that serves them provides its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol

from ledger.records import CreditFor
from schemas.accrual import Accrual
from schemas.customer import Customer
from schemas.organization import Organization
from schemas.period import Cycle
from schemas.product import ProductSpec
from schemas.watermark import Watermark


class BillingUnavailable(Exception):
    """The ledger or ClickHouse does not answer; trying again may help."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An invoice recomputed from raw events. differences: what is not as it was invoiced; none: all is."""

    hash: str
    differences: tuple[str, ...]


class BillingRefused(ValueError):
    """What was asked for can't be done. field: of the request; None: no single one. code: stable, for programs."""

    def __init__(self, field: str | None, message: str, code: str = "not_possible") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class BillingConflict(Exception):
    """The invoice is in no state in which that could be done. code: stable, for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Possible:
    """What may be done to an invoice now. credit: up to how much, tax included; None: nothing. refund: it was paid.

    approve: it waits for someone's approval. approved: someone approved it, and it is not charged yet. approved_by: a
    key or user; None: not known.
    retry: something failed, or it is open and its payment was refused.
    """

    void: bool
    credit: Decimal | None
    refund: bool
    approve: bool = False
    approved: bool = False
    approved_by: str | None = None
    retry: bool = False


NOTHING_POSSIBLE = Possible(void=False, credit=None, refund=False)


@dataclass(frozen=True, slots=True)
class CyclesBilled:
    """Whether every cycle was billed what it cost. ok: none differs. document: as the audit shows it."""

    ok: bool
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BillingRun:
    """What billing every ended period came to, or would come to.

    invoices: documents of those that were not settled before. problems: invoice id → why it could not go on. later: how
    many periods have ended and still wait for late events. waiting: why nothing more can be counted now.
    """

    invoices: tuple[dict[str, Any], ...]
    problems: Mapping[str, str]
    later: int
    waiting: str | None


@dataclass(frozen=True, slots=True)
class Voided:
    """invoice: its document. reissued_as: id of the invoice that its cycle will have; None: the cycle has none."""

    invoice: dict[str, Any]
    reissued_as: str | None


@dataclass(frozen=True, slots=True)
class Credited:
    """The documents of the credit note that was issued and of the invoice."""

    credit_note: dict[str, Any]
    invoice: dict[str, Any]


class BillingPort(Protocol):
    """Every method blocks, and raises BillingUnavailable. The caller knows whose invoice or customer it is."""

    def verify(self, invoice_id: str) -> Verified:
        """Count its events again, price them by its snapshot, and compare."""
        ...

    def explain(self, invoice_id: str) -> list[str]:
        """How every amount came about, a line of text each."""
        ...

    def events(self, invoice_id: str, line: int | None) -> Iterator[str]:
        """The events behind one line or (None) all of them, as CSV in blocks. Raises BillingRefused."""
        ...

    def preview(self, organization_id: str, customer_id: str, at_us: int) -> list[dict[str, Any]]:
        """The invoice of each of the customer's subscriptions for the cycle of that time, late usage included."""
        ...

    def simulate(
        self, organization_id: str, customer_id: str, product: ProductSpec | str, period: Cycle
    ) -> list[dict[str, Any]]:
        """What a product (or that of an id) would have charged, cycle by cycle. Raises BillingRefused."""
        ...

    def accrue(self, organization_id: str, at_us: int) -> Accrual:
        """What was used by a date and on no invoice issued by then; every event counts that is acknowledged now.

        Raises BillingUnavailable where ClickHouse does not have all of them within some seconds, no sink has read the
        log yet, or a restored backup takes the store's place meanwhile.
        """
        ...

    def cycles_billed(self, organization_id: str, stored: Watermark) -> CyclesBilled:
        """Count again what every invoice counted, and hold what was billed for each cycle against what it costs.

        stored: up to where ClickHouse has everything.
        """
        ...

    def ask(self, invoice_id: str, what: Literal["approve", "retry"], by: str) -> bool:
        """Let it be charged, or tried again now, by the next close; False: it was not waiting for that."""
        ...

    def check_customer(self, before: Customer | None, after: Customer) -> None:
        """Have Stripe look at what is new of a customer: the id given exists and is its own, the card can be attached.

        before: as the catalog has it; None: it is new. Raises BillingRefused and BillingUnavailable: then nothing is
        changed.
        """
        ...

    def check_settings(self, before: Organization, after: Organization) -> None:
        """Have Stripe look at a new account and new tax rates. Raises BillingRefused and BillingUnavailable."""
        ...

    def customer_changed(self, before: Customer | None, after: Customer, by: str) -> None:
        """What the catalog has now reaches Stripe, and what waited for it is tried again by the next close."""
        ...

    def run_billing(self, organization_id: str, *, dry_run: bool) -> BillingRun:
        """Bill every period of the organization that has ended; dry_run: show what that would be."""
        ...

    def possible(self, invoice_id: str) -> Possible:
        """What the invoice's state allows, as far as the ledger knows."""
        ...

    def void(self, invoice_id: str, *, reason: str, reissue: bool, by: str) -> Voided:
        """Make it void, at Stripe too; with reissue the next close invoices its cycle anew. Twice is once.

        by: who asks, for the log. Raises BillingConflict, BillingRefused.
        """
        ...

    def credit(
        self,
        invoice_id: str,
        amount: Decimal,
        *,
        reason: str,
        refund: bool,
        credit_for: CreditFor,
        request: str | None,
        by: str,
    ) -> Credited:
        """Have Stripe issue a credit note. amount: major units, tax included. refund: back to how it was paid.

        credit_for: `usage` counts as billed less, `goodwill` does not.

        request: the client's Idempotency-Key; the same one is answered with the credit note that it made before.
        Raises BillingConflict, BillingRefused.
        """
        ...

    def settle(self, invoice_id: str, *, reason: str, by: str) -> dict[str, Any]:
        """End the hold of an invoice that was paid twice: someone has dealt with the money. Its document.

        Raises BillingConflict.
        """
        ...
