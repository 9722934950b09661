"""billing_job → what the dashboard asks of invoices: the two stages meet here and nowhere else."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Literal, TypeVar

import structlog
from confluent_kafka import KafkaException

from billing_job import service as desk
from billing_job.collect import customer_changes as customer_desk
from billing_job.collect import void_credit
from billing_job.collect.steps import Billing, InvoiceStopped
from billing_job.collect.void_credit import NotPossible, NotPossibleCode
from billing_job.invoice import late as late_usage
from billing_job.invoice import verify as invoices
from billing_job.invoice.builder import trues_up
from billing_job.invoice.cycle_audit import audit_cycles
from billing_job.invoice.explain import NoSuchLine, events_csv, explained_invoice
from billing_job.invoice.simulate import NotSimulable
from billing_job.invoice.usage_reader import UsageReader
from billing_job.loops import invoice_by_invoice
from billing_job.stripe.api import StripeApi
from billing_job.stripe.errors import IdempotencyMisuse, StripeDeclined, StripeFailure, StripeRefused
from catalog.store import CatalogStore
from dashboard.invoice_desk import (
    BillingRun,
    Credited,
    CyclesBilled,
    DeskConflict,
    DeskRefused,
    DeskUnavailable,
    InvoicedBy,
    LateUsage,
    Possible,
    Verified,
    Voided,
)
from ledger.invoice import Invoice
from ledger.records import CreditFor
from ledger.snapshot import InvoiceFixed
from ledger.store import LedgerLog, LedgerUnavailable
from schemas.currency import from_minor
from schemas.customer import Customer
from schemas.organization import Organization
from schemas.period import Cycle
from schemas.product import ProductSpec
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.watermark import Watermark
from usage_billing.billing_run import run_billing
from warehouse.client import WarehouseUnavailable

T = TypeVar("T")
log = structlog.get_logger(__name__)

_AWAY = (LedgerUnavailable, WarehouseUnavailable, KafkaException)
_STRIPE_RETRY_SECONDS_MAX = 5.0
_COVERAGE_SECONDS_MAX = 10.0
"""Someone waits for the answer, and can ask again."""


class LedgerDesk:
    """ledger: followed by its owner, so that what is told is what the log says now."""

    def __init__(self, settings: Settings, catalog: CatalogStore, ledger: LedgerLog) -> None:
        self._settings, self._catalog, self._ledger = settings, catalog, ledger
        self._lock = threading.Lock()
        self._open: UsageReader | None = None
        self._stripe: StripeApi | None = None

    def close(self) -> None:
        """Close what it has opened."""
        with self._lock:
            if self._open is not None:
                self._open.__exit__()
                self._open = None
            if self._stripe is not None:
                self._stripe.close()
                self._stripe = None

    def verify(self, invoice_id: str) -> Verified:
        fixed = self._fixed(invoice_id)
        if fixed is None:
            return Verified("", ("the invoice is not fixed yet",))
        (found,) = self._answered(lambda: invoices.verified(self._ledger.state, [fixed], self._counts()))
        return Verified(found.recomputed, found.differences)

    def explain(self, invoice_id: str) -> list[str]:
        return explained_invoice(self._invoice(invoice_id))

    def events(self, invoice_id: str, line: int | None) -> Iterator[str]:
        fixed = self._fixed(invoice_id)
        if fixed is None:
            raise DeskRefused("id", "the invoice is not fixed yet")
        numbers = range(len(fixed.lines)) if line is None else range(line, line + 1)
        blocks = events_csv(self._ledger.state, self._answered(self._counts), fixed, numbers)
        try:
            head = self._answered(lambda: next(blocks))
            first = self._answered(lambda: next(blocks, ""))  # what is wrong is told before an answer has begun
        except NoSuchLine as error:
            raise DeskRefused("line", str(error)) from error
        return _chained(head + first, blocks)

    def preview(self, organization_id: str, customer_id: str, at_us: int) -> list[dict[str, Any]]:
        view = self._catalog.view
        subscriptions = view.subscriptions_of(organization_id, customer_id)
        return self._answered(
            lambda: invoices.previewed(view, self._ledger.state, self._counts(), subscriptions, at_us)
        )

    def simulate(
        self, organization_id: str, customer_id: str, product: ProductSpec | str, period: Cycle
    ) -> list[dict[str, Any]]:
        try:
            return self._answered(
                lambda: invoices.simulation(
                    self._catalog.view,
                    self._ledger.state,
                    self._counts(),
                    organization_id=organization_id,
                    customer_id=customer_id,
                    product=product,
                    period=period,
                )
            )
        except NotSimulable as error:
            raise DeskRefused(error.field, str(error)) from error

    @contextmanager
    def everything_stored(self) -> Generator[Watermark]:
        try:
            counts = self._counts()
            with counts.one_store():
                watermark = counts.watermark()
                counts.wait_until_covered(watermark, threading.Event())
                yield watermark
        except _AWAY as error:
            raise DeskUnavailable(str(error)) from error

    def invoiced_by(self, organization_id: str, at_us: int, watermark: Watermark) -> InvoicedBy:
        view, ledger = self._catalog.view, self._ledger.state
        keys = [(organization_id, each.id) for each in view.all(Subscription, organization_id)]
        known = [invoice for key in keys for invoice in ledger.of_subscription(*key)]
        late: list[late_usage.PendingLate] = []
        problems: dict[str, str] = {}
        if trues_up(view, organization_id):
            parts = invoice_by_invoice("accrual", problems.__setitem__).by_halves(
                keys,
                lambda some: late_usage.pending(ledger, self._counts(), some, watermark, issued_by_us=at_us),
                key=lambda key: key[1],
            )
            late = self._answered(lambda: [each for part in parts for each in part])
        return InvoicedBy(
            cycles=frozenset((each.subscription_id, each.cycle_start) for each in known if _is_billed(each, at_us)),
            late=tuple(map(_late, late)),
            problems=problems,
        )

    def cycles_billed(self, organization_id: str, stored: Watermark) -> CyclesBilled:
        found = self._answered(lambda: audit_cycles(self._ledger.state, self._counts(), stored, organization_id))
        return CyclesBilled(found.ok, found.document())

    def ask(self, invoice_id: str, what: Literal["approve", "retry"], by: str) -> bool:
        invoice = self._invoice(invoice_id)
        wanted = desk.awaits_approval(self._catalog.view, invoice) if what == "approve" else desk.may_retry(invoice)
        if not wanted or (what == "retry" and invoice.fixed is None):  # what waits is tried every few seconds
            return False
        return self._answered(lambda: desk.asked(self._ledger, invoice, what, by))

    def check_customer(self, before: Customer | None, after: Customer) -> None:
        self._asked(lambda: customer_desk.check(self._billing, self._catalog.view, before, after))

    def check_settings(self, before: Organization, after: Organization) -> None:
        self._asked(lambda: customer_desk.check_settings(self._billing, before, after))

    def _asked(self, question: Callable[[], None]) -> None:
        """What Stripe says of something that is entered, in the dashboard's words."""
        try:
            self._answered(question)
        except customer_desk.StripeDoesNotTake as refused:
            raise DeskRefused(refused.field, str(refused), refused.code) from refused
        except StripeFailure as failure:
            raise DeskUnavailable(f"Stripe can't be asked now, nothing is changed: {failure.reason}") from failure

    def customer_changed(self, before: Customer | None, after: Customer, by: str) -> None:
        self._answered(lambda: customer_desk.changed(self._billing, self._catalog.view, before, after, by))

    def run_billing(self, organization_id: str, *, dry_run: bool) -> BillingRun:
        return self._answered(
            lambda: run_billing(self._settings, self._catalog, self._ledger, organization_id, dry_run=dry_run)
        )

    def possible(self, invoice_id: str) -> Possible:
        invoice = self._invoice(invoice_id)
        left = void_credit.creditable_minor(invoice)
        return Possible(
            void=void_credit.may_void(invoice),
            credit=from_minor(left, invoice.fixed.currency) if left and invoice.fixed else None,
            refund=invoice.stripe is not None and invoice.stripe.status == "paid",
            approve=desk.awaits_approval(self._catalog.view, invoice),
            approved=invoice.approved and invoice.state == "computed",
            approved_by=invoice.approved_by,
            retry=invoice.fixed is not None and desk.may_retry(invoice),
        )

    def void(self, invoice_id: str, *, reason: str, reissue: bool, by: str) -> Voided:
        def voided() -> Voided:
            billing = self._billing()
            invoice = void_credit.void(billing, self._invoice(invoice_id), reason, by=by)
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
            invoice = self._invoice(invoice_id)
            asked = _digest(invoice.organization_id, secrets.token_hex(16) if request is None else request)
            amount_minor = void_credit.credit_amount(invoice, amount)
            after = void_credit.credit(
                self._billing(),
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
            after = void_credit.settle_paid_twice(self._billing(), self._invoice(invoice_id), reason, by=by)
            return after.document()

        log.info("invoice_settle_asked", invoice=invoice_id, reason=reason, by=by)
        return self._changed(settled)

    def _changed(self, change: Callable[[], T]) -> T:
        """A change at Stripe, or why there is none, in the dashboard's words."""
        try:
            return self._answered(change)
        except NotPossible as refused:
            if refused.code in _OF_A_FIELD:
                field, code = _OF_A_FIELD[refused.code]
                raise DeskRefused(field, str(refused), code) from refused
            raise DeskConflict(_CONFLICTS[refused.code], str(refused)) from refused
        except InvoiceStopped as stopped:
            raise DeskConflict("invoice_busy", str(stopped)) from stopped
        except IdempotencyMisuse as misuse:  # ours, with Stripe; the invoice stops there until someone has looked at it
            raise DeskConflict("stripe_idempotency_error", misuse.reason) from misuse
        except (StripeRefused, StripeDeclined) as refused:
            if refused.status in (400, 402):
                raise DeskRefused(None, f"Stripe refused it: {refused.reason}", "stripe_refused") from refused
            raise DeskUnavailable(f"Stripe did not take it, nothing was done: {refused.reason}") from refused
        except StripeFailure as failure:
            raise DeskUnavailable(
                f"whether Stripe did it is unknown: {failure.reason}. It was begun and is finished within minutes; "
                "to ask again is safe, for a credit note with the same Idempotency-Key"
            ) from failure

    def _billing(self) -> Billing:
        """The ledger and Stripe, which is connected to when it is first needed."""
        with self._lock:
            if self._stripe is None:
                quick = {"stripe_retry_seconds": min(self._settings.stripe_retry_seconds, _STRIPE_RETRY_SECONDS_MAX)}
                self._stripe = StripeApi(self._settings.model_copy(update=quick))
            return Billing(self._ledger, self._stripe)

    def _invoice(self, invoice_id: str) -> Invoice:
        found = self._ledger.state.get(invoice_id)
        if found is None:  # the tables that its caller found it in were quicker
            raise DeskUnavailable(f"the ledger has not been read up to invoice {invoice_id}")
        return found

    def _fixed(self, invoice_id: str) -> InvoiceFixed | None:
        return self._invoice(invoice_id).fixed

    def _counts(self) -> UsageReader:
        """ClickHouse, asked when it is first needed."""
        with self._lock:
            if self._open is None:
                waiting = min(self._settings.coverage_timeout_seconds, _COVERAGE_SECONDS_MAX)
                quick = self._settings.model_copy(update={"coverage_timeout_seconds": waiting})
                self._open = UsageReader(quick, prompt=True)
            return self._open

    def _answered(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except _AWAY as error:
            raise DeskUnavailable(str(error)) from error


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


def _is_billed(invoice: Invoice, by_us: int) -> bool:
    """Whether its cycle is billed by then, or held for good."""
    if invoice.state == "void":
        return not invoice.reissued
    return invoice.issued_at is not None and invoice.issued_at <= by_us


def _late(pending: late_usage.PendingLate) -> LateUsage:
    fixed = pending.fixed
    return LateUsage(
        customer_id=fixed.customer_id,
        subscription_id=fixed.subscription_id,
        product_id=fixed.priced_product.id,
        period=Cycle(fixed.cycle_start, fixed.active_until),
        net=from_minor(pending.amount_minor, fixed.currency),
        currency=fixed.currency,
    )


def _digest(organization_id: str, request: str) -> str:
    return hashlib.sha256(f"{organization_id}\0{request}".encode()).hexdigest()[:32]


def _chained(first: str, blocks: Iterator[str]) -> Iterator[str]:
    yield first
    yield from blocks
