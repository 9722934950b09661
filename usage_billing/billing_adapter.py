"""billing's service → the dashboard's port: its answers and errors in the dashboard's words. The stages meet here."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal, TypeVar

import structlog
from confluent_kafka import KafkaException

from billing_job.collect import void_credit
from billing_job.collect.customer_changes import StripeDoesNotTake
from billing_job.collect.requests import may_retry
from billing_job.collect.steps import InvoiceStopped
from billing_job.collect.void_credit import NotPossible, NotPossibleCode
from billing_job.context import BillingContext
from billing_job.invoice.explain import NoSuchLine
from billing_job.invoice.simulate import NotSimulable
from billing_job.service import BillingService, NotFixed, UnknownInvoice
from billing_job.stripe.errors import IdempotencyMisuse, StripeDeclined, StripeFailure, StripeRefused
from catalog.store import CatalogStore
from dashboard.billing_port import (
    BillingConflict,
    BillingRefused,
    BillingRun,
    BillingUnavailable,
    Credited,
    CyclesBilled,
    Possible,
    Verified,
    Voided,
)
from ledger.records import CreditFor
from ledger.store import LedgerLog, LedgerUnavailable
from schemas.accrual import Accrual
from schemas.currency import from_minor
from schemas.customer import Customer
from schemas.organization import Organization
from schemas.period import Cycle
from schemas.product import ProductSpec
from schemas.settings import Settings
from schemas.watermark import Watermark
from warehouse.client import WarehouseUnavailable

T = TypeVar("T")
log = structlog.get_logger(__name__)

_AWAY = (LedgerUnavailable, WarehouseUnavailable, KafkaException)


class BillingAdapter:
    """A BillingPort on the ledger and the catalog of this process, which their owner follows and closes."""

    def __init__(self, settings: Settings, catalog: CatalogStore, ledger: LedgerLog) -> None:
        self._context = BillingContext(settings, catalog=catalog, ledger=ledger, interactive=True)
        self._service = BillingService(self._context)

    def close(self) -> None:
        """Close the connections to ClickHouse and Stripe."""
        self._context.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def verify(self, invoice_id: str) -> Verified:
        try:
            found = self._answered(lambda: self._service.verify(invoice_id))
        except NotFixed:
            return Verified("", ("the invoice is not fixed yet",))
        return Verified(found.recomputed, found.differences)

    def explain(self, invoice_id: str) -> list[str]:
        return self._answered(lambda: self._service.explain(invoice_id))

    def events(self, invoice_id: str, line: int | None) -> Iterator[str]:
        try:
            blocks = self._answered(lambda: self._service.line_events(invoice_id, line))
        except NotFixed as error:
            raise BillingRefused("id", "the invoice is not fixed yet") from error
        except NoSuchLine as error:
            raise BillingRefused("line", str(error)) from error
        # The head and the first block before the answer begins: an error after that could not be reported.
        first = self._answered(lambda: next(blocks) + next(blocks, ""))
        return _chained(first, blocks)

    def preview(self, organization_id: str, customer_id: str, at_us: int) -> list[dict[str, Any]]:
        subscriptions = self._context.catalog.view.subscriptions_of(organization_id, customer_id)
        return self._answered(lambda: self._service.preview(subscriptions, at_us))

    def simulate(
        self, organization_id: str, customer_id: str, product: ProductSpec | str, period: Cycle
    ) -> list[dict[str, Any]]:
        try:
            return self._answered(lambda: self._service.simulate(organization_id, customer_id, product, period))
        except NotSimulable as error:
            raise BillingRefused(error.field, str(error)) from error

    def accrue(self, organization_id: str, at_us: int) -> Accrual:
        return self._answered(lambda: self._service.accrue(organization_id, at_us))

    def cycles_billed(self, organization_id: str, stored: Watermark) -> CyclesBilled:
        found = self._answered(lambda: self._service.audit_cycles(organization_id, stored))
        return CyclesBilled(found.ok, found.document())

    def possible(self, invoice_id: str) -> Possible:
        invoice = self._answered(lambda: self._service.invoice(invoice_id))
        left = void_credit.creditable_minor(invoice)
        return Possible(
            void=void_credit.may_void(invoice),
            credit=from_minor(left, invoice.fixed.currency) if left and invoice.fixed else None,
            refund=invoice.stripe is not None and invoice.stripe.status == "paid",
            approve=self._service.awaits_approval(invoice),
            approved=invoice.approved and invoice.state == "computed",
            approved_by=invoice.approved_by,
            retry=invoice.fixed is not None and may_retry(invoice),
        )

    # -- customers and settings ----------------------------------------------------------------------------------------

    def check_customer(self, before: Customer | None, after: Customer) -> None:
        self._checked(lambda: self._service.check_customer(before, after))

    def check_settings(self, before: Organization, after: Organization) -> None:
        self._checked(lambda: self._service.check_settings(before, after))

    def customer_changed(self, before: Customer | None, after: Customer, by: str) -> None:
        self._answered(lambda: self._service.apply_customer_change(before, after, by))

    # -- invoices ------------------------------------------------------------------------------------------------------

    def ask(self, invoice_id: str, what: Literal["approve", "retry"], by: str) -> bool:
        return self._answered(lambda: self._service.request(invoice_id, what, by))

    def run_billing(self, organization_id: str, *, dry_run: bool) -> BillingRun:
        report, settled = self._answered(lambda: self._service.run_billing(organization_id, dry_run=dry_run))
        return BillingRun(
            invoices=tuple(invoice.document() for invoice in report.invoices if invoice.id not in settled),
            problems=report.problems,
            later=len(report.in_grace),
            waiting=report.waiting,
        )

    def void(self, invoice_id: str, *, reason: str, reissue: bool, by: str) -> Voided:
        def voided() -> Voided:
            billing = self._context.billing()
            invoice = void_credit.void(billing, self._service.invoice(invoice_id), reason, by=by)
            next_id = void_credit.reissue(billing, invoice) if reissue else None
            return Voided(billing.invoice(invoice_id).document(), next_id)

        log.info("invoice_void_asked", invoice=invoice_id, reason=reason, reissue=reissue, by=by)
        return self._changed(voided)

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
        def credited() -> Credited:
            invoice = self._service.invoice(invoice_id)
            asked = _digest(invoice.organization_id, secrets.token_hex(16) if request is None else request)
            amount_minor = void_credit.credit_amount(invoice, amount)
            after = void_credit.credit(
                self._context.billing(),
                invoice,
                amount_minor,
                refund=refund,
                reason=reason,
                credit_for=credit_for,
                request=asked,
                by=by,
            )
            return Credited(void_credit.credit_note_of(after, asked).document(), after.document())

        log.info("invoice_credit_asked", invoice=invoice_id, amount=str(amount), reason=reason, refund=refund, by=by)
        return self._changed(credited)

    def settle(self, invoice_id: str, *, reason: str, by: str) -> dict[str, Any]:
        def settled() -> dict[str, Any]:
            after = void_credit.settle_paid_twice(
                self._context.billing(), self._service.invoice(invoice_id), reason, by=by
            )
            return after.document()

        log.info("invoice_settle_asked", invoice=invoice_id, reason=reason, by=by)
        return self._changed(settled)

    # -- errors --------------------------------------------------------------------------------------------------------

    def _changed(self, change: Callable[[], T]) -> T:
        """Make a change at Stripe; its errors in the dashboard's words."""
        try:
            return self._answered(change)
        except NotPossible as refused:
            if refused.code in _OF_A_FIELD:
                field, code = _OF_A_FIELD[refused.code]
                raise BillingRefused(field, str(refused), code) from refused
            raise BillingConflict(_CONFLICTS[refused.code], str(refused)) from refused
        except InvoiceStopped as stopped:
            raise BillingConflict("invoice_busy", str(stopped)) from stopped
        except IdempotencyMisuse as misuse:  # ours, with Stripe; the invoice stops there until someone has looked at it
            raise BillingConflict("stripe_idempotency_error", misuse.reason) from misuse
        except (StripeRefused, StripeDeclined) as refused:
            if refused.status in (400, 402):
                raise BillingRefused(None, f"Stripe refused it: {refused.reason}", "stripe_refused") from refused
            raise BillingUnavailable(f"Stripe did not take it, nothing was done: {refused.reason}") from refused
        except StripeFailure as failure:
            raise BillingUnavailable(
                f"whether Stripe did it is unknown: {failure.reason}. It was begun and is finished within minutes; "
                "to ask again is safe, for a credit note with the same Idempotency-Key"
            ) from failure

    def _checked(self, question: Callable[[], None]) -> None:
        """A refusal by Stripe as an error of the field that was entered."""
        try:
            self._answered(question)
        except StripeDoesNotTake as refused:
            raise BillingRefused(refused.field, str(refused), refused.code) from refused
        except StripeFailure as failure:
            raise BillingUnavailable(f"Stripe can't be asked now, nothing is changed: {failure.reason}") from failure

    def _answered(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except NotFixed:
            raise
        except UnknownInvoice as error:  # the caller found it in ClickHouse's tables: they are ahead of this ledger
            raise BillingUnavailable(f"the ledger has not been read that far: {error}") from error
        except _AWAY as error:
            raise BillingUnavailable(str(error)) from error


_OF_A_FIELD: Mapping[NotPossibleCode, tuple[str, str]] = {
    "invalid_amount": ("amount", "invalid_amount"),
    "request_reused": ("Idempotency-Key", "idempotency_key_reused"),
}
"""What is wrong with the request, whatever the state of the invoice: field and code."""
_CONFLICTS: Mapping[NotPossibleCode, str] = {
    "not_fixed": "invoice_not_computed",
    "paid": "invoice_paid",
    "not_void": "invoice_not_void",
    "not_paid_twice": "invoice_not_paid_twice",
    "not_issued": "invoice_not_issued",
    "not_paid": "invoice_not_paid",
    "unfinished": "credit_note_unfinished",
}


def _digest(organization_id: str, request: str) -> str:
    return hashlib.sha256(f"{organization_id}\0{request}".encode()).hexdigest()[:32]


def _chained(first: str, blocks: Iterator[str]) -> Iterator[str]:
    yield first
    yield from blocks
