"""Billing's requests, as pages, the API and commands make them.

Every method works on one context and raises billing's own errors, which the caller translates for a page or a command.
LedgerUnavailable, WarehouseUnavailable and KafkaException mean that a part does not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

from billing_job.close import CloseReport, close_cycles
from billing_job.close_run import Progress
from billing_job.collect import customer_changes
from billing_job.collect.requests import awaits_approval, is_held, may_retry, record_request
from billing_job.collect.steps import system_clock
from billing_job.context import BillingContext
from billing_job.invoice.accrual import accrue
from billing_job.invoice.cycle_audit import CyclesAudit, audit_cycles
from billing_job.invoice.explain import (
    NoSuchLine,
    event_text,
    events_csv,
    events_of_line,
    explain_invoice,
    explain_line,
)
from billing_job.invoice.preview import preview_invoices
from billing_job.invoice.simulate import simulate
from billing_job.invoice.to_do import is_ours_to_do
from billing_job.invoice.verify import Verification, verify_invoices
from ledger.invoice import Invoice
from ledger.snapshot import InvoiceFixed
from ledger.view import InvoiceLedger
from schemas.accrual import Accrual
from schemas.customer import Customer
from schemas.organization import Organization
from schemas.period import Cycle
from schemas.product import ProductSpec
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.watermark import Watermark


class UnknownInvoice(LookupError):
    """The ledger has no invoice of that id."""


class NotFixed(UnknownInvoice):
    """The ledger has the invoice, but not what it says: its cycle waits to be closed."""


@contextmanager
def open_service(settings: Settings, *, charging: bool = False) -> Generator[BillingService]:
    """For a command. charging: it charges invoices, so it takes its part of Stripe's rate beside the workers."""
    with BillingContext(settings, shares_rate=charging) as context:
        yield BillingService(context)


class BillingService:
    """See the module. Thread-safe; the context stays its owner's."""

    def __init__(self, context: BillingContext) -> None:
        self.context = context

    @property
    def _ledger(self) -> InvoiceLedger:
        return self.context.log.state

    # -- one invoice ---------------------------------------------------------------------------------------------------

    def invoice(self, invoice_id: str) -> Invoice:
        """The invoice as the ledger has it now. Raises UnknownInvoice."""
        invoice = self._ledger.get(invoice_id)
        if invoice is None:
            raise UnknownInvoice(f"there is no invoice {invoice_id!r}")
        return invoice

    def snapshot(self, invoice_id: str) -> InvoiceFixed:
        """What the invoice says. Raises UnknownInvoice, NotFixed."""
        fixed = self.invoice(invoice_id).fixed
        if fixed is None:
            raise NotFixed(f"invoice {invoice_id} is not fixed yet")
        return fixed

    def explain(self, invoice_id: str) -> list[str]:
        """How every amount came about, a line of text each. Raises UnknownInvoice."""
        return explain_invoice(self.invoice(invoice_id))

    def explain_events(self, invoice_id: str, line: int | None = None) -> Iterator[str]:
        """`explain` with the events under each line; a line of text each. Raises as line_events."""
        fixed = self.snapshot(invoice_id)
        for number in range(len(fixed.lines)) if line is None else (line,):
            blocks = events_of_line(self._ledger, self.context.usage, fixed, number)
            first = next(blocks, None)
            yield from explain_line(fixed, number)
            for meter, block in () if first is None else chain([first], blocks):
                for event in block:
                    yield f"  {event_text(event, meter)}"

    def line_events(self, invoice_id: str, line: int | None = None) -> Iterator[str]:
        """The events behind one line, or (None) all of them, as CSV in blocks.

        Raises UnknownInvoice, NotFixed, NoSuchLine at once, WarehouseUnavailable at any block.
        """
        fixed = self.snapshot(invoice_id)
        if line is not None and not 0 <= line < len(fixed.lines):
            raise NoSuchLine(f"the invoice has {len(fixed.lines)} lines, numbered from 0")
        numbers = range(len(fixed.lines)) if line is None else range(line, line + 1)
        return events_csv(self._ledger, self.context.usage, fixed, numbers)

    def verify(self, invoice_id: str) -> Verification:
        """Count the invoice's events again from raw rows, price them by its snapshot, and compare.

        Raises UnknownInvoice, NotFixed.
        """
        (found,) = verify_invoices(self._ledger, [self.snapshot(invoice_id)], self.context.usage)
        return found

    def verify_all(self, organization_id: str | None = None) -> list[Verification]:
        """`verify` for every invoice that is fixed, of an organization or of all."""
        snapshots = [
            invoice.fixed
            for invoice in list(self._ledger.invoices.values())
            if invoice.fixed is not None and organization_id in (None, invoice.organization_id)
        ]
        return verify_invoices(self._ledger, snapshots, self.context.usage)

    # -- invoices that are not made ------------------------------------------------------------------------------------

    def preview(self, subscriptions: Iterable[Subscription], at_us: int) -> list[dict[str, Any]]:
        """The invoice of each subscription's cycle at that time, as it would be now; see preview_invoices."""
        return preview_invoices(self.context.catalog.view, self._ledger, self.context.usage, subscriptions, at_us)

    def simulate(
        self, organization_id: str, customer_id: str, product: ProductSpec | str, period: Cycle
    ) -> list[dict[str, Any]]:
        """The amounts that a product (or that of an id) would have charged for each cycle that began in the period.

        Raises NotSimulable.
        """
        found = simulate(
            self.context.catalog.view,
            self._ledger,
            self.context.usage,
            organization_id=organization_id,
            customer_id=customer_id,
            product=product,
            period=period,
        )
        return [cycle.document() for cycle in found]

    @contextmanager
    def all_stored(self) -> Generator[Watermark]:
        """The end of the log now, once ClickHouse has everything below it. One store answers what is asked within.

        Raises NotCovered: that takes too long, no sink has read the log yet, or (at the end) a restored backup took the
        store's place meanwhile.
        """
        usage = self.context.usage
        with usage.one_store():
            watermark = usage.watermark()
            usage.wait_until_covered(watermark, threading.Event())
            yield watermark

    def accrue(self, organization_id: str, at_us: int) -> Accrual:
        """Usage before a date that is on no invoice issued by then; every event counts that is acknowledged by now.

        Raises NotCovered.
        """
        with self.all_stored() as watermark:
            view = self.context.catalog.view
            return accrue(view, self._ledger, self.context.usage, organization_id, at_us, watermark)

    def audit_cycles(self, organization_id: str | None, stored: Watermark) -> CyclesAudit:
        """Count again what every invoice counted, and compare what each cycle was billed with what it costs."""
        return audit_cycles(self._ledger, self.context.usage, stored, organization_id)

    # -- requests of people --------------------------------------------------------------------------------------------

    def request(self, invoice_id: str, step: Literal["approve", "retry"], by: str) -> bool:
        """Let the next close charge the invoice, or try it again; False: it does not wait for that."""
        invoice = self.invoice(invoice_id)
        # An invoice that waits for its cycle is tried every few seconds anyway.
        wanted = (
            self.awaits_approval(invoice) if step == "approve" else invoice.fixed is not None and may_retry(invoice)
        )
        return wanted and record_request(self.context.log, invoice, step, by)

    def awaits_approval(self, invoice: Invoice) -> bool:
        return awaits_approval(self.context.catalog.view, invoice)

    def approve(self, ids: Sequence[str], *, organization_id: str | None, by: str) -> list[Invoice]:
        """Approve invoices for charging: the named ones, or all that await approval. Raises UnknownInvoice."""
        waiting = [each for each in self._named(ids, organization_id) if self.awaits_approval(each)]
        return [each for each in waiting if record_request(self.context.log, each, "approve", by)]

    def retry(
        self, ids: Sequence[str], *, organization_id: str | None, by: str, progress: Progress | None = None
    ) -> CloseReport:
        """Try again now what waits, is held or failed: those named, or all of them. Raises UnknownInvoice.

        A refused payment is tried again only where its invoice is named.
        """
        is_wanted = may_retry if ids else is_held
        held = [invoice for invoice in self._named(ids, organization_id) if is_wanted(invoice)]
        for invoice in held:
            if invoice.fixed is not None:
                record_request(self.context.log, invoice, "retry", by)
        wanted = {invoice.id for invoice in held}
        return close_cycles(
            self.context,
            system_clock(),
            organization_id=organization_id,
            progress=progress,
            only=lambda due: due.invoice_id in wanted,
        )

    def _named(self, ids: Collection[str], organization_id: str | None) -> list[Invoice]:
        """Those named, or all of the organization. Raises UnknownInvoice."""
        if not ids:
            invoices = list(self._ledger.invoices.values())
            return [invoice for invoice in invoices if organization_id in (None, invoice.organization_id)]
        named = [self.invoice(invoice_id) for invoice_id in dict.fromkeys(ids)]
        for invoice in named:
            if organization_id not in (None, invoice.organization_id):
                raise UnknownInvoice(f"there is no invoice {invoice.id!r}")
        return named

    def run_billing(self, organization_id: str, *, dry_run: bool) -> tuple[CloseReport, frozenset[str]]:
        """Bill every cycle that has ended, or (dry_run) compute what that would be. Workers beside it do no harm.

        Returns the report, and the ids of invoices that were settled before.
        """
        settled = frozenset(
            invoice.id for invoice in self._ledger.invoices.values() if invoice.fixed and not is_ours_to_do(invoice)
        )
        own = self.context
        # Its own connections: it takes longer than a page waits, and its part of Stripe's rate.
        with BillingContext(own.settings, catalog=own.catalog, ledger=own.log, shares_rate=not dry_run) as context:
            report = close_cycles(context, system_clock(), organization_id=organization_id, dry_run=dry_run)
        return report, settled

    # -- customers and settings ----------------------------------------------------------------------------------------

    def check_customer(self, before: Customer | None, after: Customer) -> None:
        """See customer_changes."""
        customer_changes.check_customer(self.context, before, after)

    def check_settings(self, before: Organization, after: Organization) -> None:
        """See customer_changes."""
        customer_changes.check_settings(self.context, before, after)

    def apply_customer_change(self, before: Customer | None, after: Customer, by: str) -> None:
        """See customer_changes."""
        customer_changes.apply_customer_change(self.context, before, after, by)
