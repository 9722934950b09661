"""Polls Stripe for changes whose webhooks were missed; finishes interrupted voids and credit notes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import structlog

from billing_job.collect.charge import discard, observe
from billing_job.collect.steps import Billing, InvoiceStopped
from billing_job.collect.stripe_events import OF_AN_ADJUSTMENT, apply_event, read_adjustment, record_adjustment
from billing_job.collect.void_credit import NotPossible, finish_credits, unfinished_credits, void
from billing_job.loops import stripe_is_away
from billing_job.stripe.errors import StripeFailure, StripeRefused
from ledger.invoice import Invoice
from runtime.one_by_one import OneByOne
from schemas.period import SECOND_US

log = structlog.get_logger(__name__)

EVENTS_KEPT_SECONDS = 30 * 86400
"""How long Stripe lists events; where nobody listened for longer, credits and disputes are to be looked up by hand."""
_FIRST_SECONDS = 15.0
_EVENTS_LATE_SECONDS = 3600
"""An event may be listed some time after it was created."""


def awaits_payment(invoice: Invoice) -> bool:
    """Whether Stripe may still change it without us."""
    return invoice.stripe is not None and invoice.stripe.status in ("open", "uncollectible") and not invoice.voiding


def is_unfinished(invoice: Invoice) -> bool:
    """Whether a void or a credit was begun by a command that was killed, or a draft is left of a void one."""
    left = invoice.state == "void" and invoice.stripe is not None and invoice.stripe.status == "draft"
    return left or (invoice.voiding and invoice.state != "void") or bool(unfinished_credits(invoice))


def rest_seconds(readings_in_vain: int, every_seconds: float) -> float:
    """Until an invoice is read again."""
    return min(every_seconds, _FIRST_SECONDS * 2.0 ** min(readings_in_vain, 20))


class Poller:
    """Reads open invoices and events at Stripe: soon after a change, then ever less often, down to `every_seconds`.

    A payment that is made by hand is made soon after the bill; what is open for weeks is worth few calls.

    is_mine: (organization_id, customer_id) → whether this process bills the customer.
    """

    def __init__(
        self, billing: Billing, every_seconds: float, is_mine: Callable[[str, str], bool] = lambda *_: True
    ) -> None:
        self._billing = billing
        self._every = every_seconds
        self._is_mine = is_mine
        self._read_at: dict[str, float] = {}
        self._in_vain: dict[str, int] = {}  # invoice → readings since its last change
        self._listed_at: dict[str | None, float] = {}
        self._listed_to: dict[str | None, int] = {}
        self._applied: dict[str, int] = {}  # event id → when it was created, s
        self._refused: set[str | None] = set()  # accounts whose events can't be listed
        self._loop = OneByOne("sweep", stripe_is_away)

    def run(self, stopping: threading.Event | None = None) -> int:
        """Number of invoices whose state changed. Ends early when Stripe does not answer; the next run continues."""
        changed = 0
        stopped = stopping.is_set if stopping is not None else lambda: False
        try:
            for invoice in self._due():
                if stopped():
                    return changed
                after = self._followed(invoice)
                changed += after.state != invoice.state
            for account in self._accounts():
                if stopped():
                    return changed
                with self._loop.one(f"events of {account or 'the own account'}"):
                    self._list_events(account)
        except StripeFailure as failure:
            log.warning("sweep_stopped", reason=failure.reason)
        return changed

    # -- invoices ------------------------------------------------------------------------------------------------------

    def _due(self) -> Iterator[Invoice]:
        for invoice in list(self._billing.log.state.invoices.values()):
            mine = self._is_mine(invoice.organization_id, invoice.customer_id)
            if mine and self._wanted(invoice) and self._is_time(invoice.id):
                yield invoice

    def _wanted(self, invoice: Invoice) -> bool:
        unsettled = any(not each.settled for each in invoice.adjustments.values())
        return awaits_payment(invoice) or is_unfinished(invoice) or unsettled

    def _is_time(self, invoice_id: str) -> bool:
        wait = rest_seconds(self._in_vain.get(invoice_id, 0), self._every)
        return time.monotonic() - self._read_at.get(invoice_id, -wait) >= wait

    def _followed(self, invoice: Invoice) -> Invoice:
        self._read_at[invoice.id] = time.monotonic()
        for what in (self._finish, self._read_invoice, self._read_adjustments):
            with self._loop.one(invoice.id):
                self._attempted(what, invoice)
        after = self._billing.invoice(invoice.id)
        self._in_vain[invoice.id] = 0 if after is not invoice else self._in_vain.get(invoice.id, 0) + 1
        return after

    def _attempted(self, what: Callable[[Invoice], None], invoice: Invoice) -> None:
        """A refusal for one invoice does not stop the others. Raises StripeFailure when Stripe does not answer."""
        try:
            what(self._billing.invoice(invoice.id))
        except StripeRefused as refused:
            log.warning("sweep_refused", invoice=invoice.id, reason=refused.reason)
        except (InvoiceStopped, NotPossible) as stopped:
            log.warning("sweep_left", invoice=invoice.id, reason=str(stopped))

    def _finish(self, invoice: Invoice) -> None:
        if not is_unfinished(invoice):
            return
        assert invoice.fixed is not None
        if invoice.state == "void" and invoice.stripe_invoice_id is not None:
            seen = self._billing.api.invoice(invoice.stripe_invoice_id, invoice.fixed.seller.stripe_account_id)
            discard(self._billing, invoice.fixed, seen)
        elif invoice.voiding:
            memo = invoice.steps["void", 0].memo
            void(self._billing, invoice, memo or "asked for")
        finish_credits(self._billing, self._billing.invoice(invoice.id))

    def _read_invoice(self, invoice: Invoice) -> None:
        if awaits_payment(invoice):
            assert invoice.fixed is not None
            assert invoice.stripe_invoice_id is not None
            seen = self._billing.api.invoice(invoice.stripe_invoice_id, invoice.fixed.seller.stripe_account_id)
            observe(self._billing, invoice, seen)

    def _read_adjustments(self, invoice: Invoice) -> None:
        assert invoice.fixed is not None
        for each in list(invoice.adjustments.values()):
            if not each.settled:
                account = invoice.fixed.seller.stripe_account_id
                seen = read_adjustment(self._billing, each.adjustment, each.object_id, account)
                record_adjustment(self._billing, invoice, seen)

    # -- events --------------------------------------------------------------------------------------------------------

    def _accounts(self) -> list[str | None]:
        """Those that invoices were made in; a list of events is of one account."""
        ledger = self._billing.log.state
        used = {
            fixed.seller.stripe_account_id for i in list(ledger.invoices.values()) if i.stripe and (fixed := i.fixed)
        }
        return sorted(used - self._refused, key=str)

    def _list_events(self, account: str | None) -> None:
        """Apply credit notes, refunds and disputes whose webhooks were missed. (Invoices are read one by one.)"""
        if time.monotonic() - self._listed_at.get(account, -self._every) < self._every:
            return
        now = self._billing.clock() // SECOND_US
        since = self._listed_to.get(account, now - EVENTS_KEPT_SECONDS + _EVENTS_LATE_SECONDS) - _EVENTS_LATE_SECONDS
        try:
            events = self._billing.api.events_since(since, tuple(OF_AN_ADJUSTMENT), account)
        except StripeRefused as refused:
            # A restricted key may not list events. Webhooks and reading open invoices work without.
            log.warning("events_not_listed", account=account, reason=refused.reason)
            self._refused.add(account)
            return
        for event in events:
            if event["id"] not in self._applied:
                with self._loop.one(event["id"]):
                    apply_event(self._billing, {**event, "account": account})
                    self._applied[event["id"]] = event["created"]
        self._listed_at[account], self._listed_to[account] = time.monotonic(), now
        self._applied = {id_: at for id_, at in self._applied.items() if at >= now - 2 * EVENTS_KEPT_SECONDS}
