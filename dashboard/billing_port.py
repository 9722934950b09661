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
    """The ledger, ClickHouse or Stripe does not answer; trying again may help."""


@dataclass(frozen=True, slots=True)
class Verified:
    """An invoice recomputed from raw events. differences: from the invoice; empty: it is the same."""

    hash: str
    differences: tuple[str, ...]


class BillingRefused(ValueError):
    """The request can't be done. field: of the request; None: no single one. code: stable, for programs."""

    def __init__(self, field: str | None, message: str, code: str = "not_possible") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class BillingConflict(Exception):
    """The invoice's state does not allow it. code: stable, for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Possible:
    """Actions that an invoice's state allows now.

    credit: the largest credit note, major units, tax included; None: none.
    refund: the invoice was paid, so a credit note may be refunded.
    approve: it waits for a person's approval.
    approved: a person approved it, and it is not charged yet.
    approved_by: a key or user; None: not known.
    retry: a step failed, or the invoice is open and its payment was refused.
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
    """The result of billing every ended period, or what it would be.

    invoices: documents of those that were not settled before. problems: invoice id → why it could not go on. later: the
    number of ended periods that still wait for late events. waiting: why no more can be counted now.
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
    """Every method blocks, and raises BillingUnavailable. The caller checks whose invoice or customer it is."""

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
        """The amounts that a product (or that of an id) would have charged, cycle by cycle. Raises BillingRefused."""
        ...

    def accrue(self, organization_id: str, at_us: int) -> Accrual:
        """Usage before a date that is on no invoice issued by then; every event counts that is acknowledged now.

        Raises BillingUnavailable where ClickHouse does not have all of them within some seconds, no sink has read the
        log yet, or a restored backup takes the store's place meanwhile.
        """
        ...

    def cycles_billed(self, organization_id: str, stored: Watermark) -> CyclesBilled:
        """Count every invoice's events again, and compare the amounts billed for each cycle with its cost.

        stored: up to where ClickHouse has everything.
        """
        ...

    def ask(self, invoice_id: str, what: Literal["approve", "retry"], by: str) -> bool:
        """Have the next close charge the invoice, or retry it; False: it does not wait for that."""
        ...

    def check_customer(self, before: Customer | None, after: Customer) -> None:
        """Check a customer's new fields at Stripe: the given id exists and is its own, the card can be attached.

        before: as the catalog has it; None: it is new. Raises BillingRefused and BillingUnavailable: then nothing is
        changed.
        """
        ...

    def check_settings(self, before: Organization, after: Organization) -> None:
        """Check a new account and new tax rates at Stripe. Raises BillingRefused and BillingUnavailable."""
        ...

    def customer_changed(self, before: Customer | None, after: Customer, by: str) -> None:
        """Send the customer's changes to Stripe; the next close retries the invoices that waited for them."""
        ...

    def run_billing(self, organization_id: str, *, dry_run: bool) -> BillingRun:
        """Bill every period of the organization that has ended; dry_run: show what that would be."""
        ...

    def possible(self, invoice_id: str) -> Possible:
        """The actions that the invoice's state in the ledger allows."""
        ...

    def void(self, invoice_id: str, *, reason: str, reissue: bool, by: str) -> Voided:
        """Make it void, at Stripe too; with reissue the next close invoices its cycle again. Idempotent.

        by: key or user, for the log. Raises BillingConflict, BillingRefused.
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
        """End the hold of an invoice that was paid twice: a person has dealt with the second payment.

        Returns the invoice's document. Raises BillingConflict.
        """
        ...
