"""ledger → an invoice shown, explained, verified; catalog and ClickHouse → the open cycle's preview."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing_job.close import Stage, fixed_now, need_of, opened
from billing_job.compute import recomputed
from billing_job.counts import Counts
from billing_job.due import open_cycle
from billing_job.gate import quantity_differences
from billing_job.ledger import LedgerLog
from billing_job.steps import system_clock
from schemas.ledger import Invoice, InvoiceFixed, InvoiceLedger, Line, canonical_hash
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import format_rfc3339
from schemas.settings import Settings
from schemas.subscription import Subscription


class UnknownInvoice(LookupError):
    """The ledger has no invoice of that id."""


class NothingToPreview(LookupError):
    """The customer has no subscription that runs now, or the subscription does not."""


@dataclass(frozen=True, slots=True)
class Verification:
    """recorded, recomputed: hashes of the canonical form. differences: what differs, for people; empty when equal."""

    invoice_id: str
    recorded: str
    recomputed: str
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.recorded == self.recomputed and not self.differences


@contextmanager
def _ledger(settings: Settings) -> Generator[InvoiceLedger]:
    with LedgerLog(settings) as log:
        yield log.state


def _found(ledger: InvoiceLedger, invoice_id: str) -> Invoice:
    invoice = ledger.get(invoice_id)
    if invoice is None:
        raise UnknownInvoice(f"there is no invoice {invoice_id!r}")
    return invoice


def show(settings: Settings, invoice_id: str) -> dict[str, Any]:
    """The invoice as the API shows it. Raises UnknownInvoice, LedgerUnavailable."""
    with _ledger(settings) as ledger:
        return _found(ledger, invoice_id).document()


def explain(settings: Settings, invoice_id: str) -> list[str]:
    """How every amount came about, a line of text each. Raises UnknownInvoice, LedgerUnavailable."""
    with _ledger(settings) as ledger:
        return explained_invoice(_found(ledger, invoice_id))


def explained_invoice(invoice: Invoice) -> list[str]:
    """`explain`, from what is known. Pure."""
    head = f"{invoice.id}: {invoice.customer_id}, {_day(invoice.cycle_start)} to {_day(invoice.cycle_end)} (exclusive)"
    fixed = invoice.fixed
    if fixed is None:
        return [head, f"{invoice.state}: {invoice.reason}"]
    meters = fixed.priced_meters
    told = [head]
    for line in fixed.lines:
        told.append(f"{line.description}: {line.amount} {fixed.currency}")
        if line.meter_id is not None:
            meter = meters[line.meter_id]
            told.append(
                f"  {meter.aggregation} of {meter.event_name} from {_day(fixed.cycle_start)} to "
                f"{_day(fixed.active_until)}, each event once: {line.quantity}"
            )
        told.extend(f"  {text}" for text in _priced(line))
    offsets = ", ".join(f"{p}: {o}" for p, o in fixed.counted_to.offsets.items())
    told.append(f"total before tax: {fixed.total} {fixed.currency}")
    told.append(f"counted: events of epoch {fixed.counted_to.epoch} before offsets {{{offsets}}} of their partitions")
    told.append(f"hash: {fixed.hash}")
    told.append(f"state: {invoice.state}" + (f" ({invoice.reason})" if invoice.reason else ""))
    return told


def _day(us: int) -> str:
    return format_rfc3339(us)


def _priced(line: Line) -> list[str]:
    if line.meter_id is None:
        return []
    told: list[str] = []
    if Decimal(line.included):
        told.append(f"{line.quantity} - {line.included} included = {line.priced_quantity} priced")
    for tier in line.tiers:
        upper = "and more" if tier.up_to_inclusive is None else f"to {tier.up_to_inclusive}"
        told.append(f"above {tier.from_exclusive} {upper}: {tier.quantity} x {tier.unit_amount} = {tier.amount}")
    if not line.tiers:
        told.append(f"{line.model} of {line.priced_quantity} = {line.amount}")
    return told


def verify(settings: Settings, invoice_id: str) -> Verification:
    """Count the invoice's events again from raw rows, price them by its snapshot, and compare.

    Raises UnknownInvoice (also for one that is not fixed yet), LedgerUnavailable, WarehouseUnavailable.
    """
    with _ledger(settings) as ledger:
        fixed = _found(ledger, invoice_id).fixed
    if fixed is None:
        raise UnknownInvoice(f"invoice {invoice_id} is not fixed yet")
    with Counts(settings) as counts:
        counted = counts.independent_totals([need_of(fixed)], fixed.counted_to)[fixed.invoice_id]
    again = recomputed(fixed, counted)
    differences = [str(each) for each in quantity_differences(fixed, counted)]
    if canonical_hash(fixed) != fixed.hash:
        differences.append("the record in the ledger is not what its hash says")
    if again.total_minor != fixed.total_minor:
        differences.append(f"total: {fixed.total} invoiced, {again.total} recomputed")
    return Verification(invoice_id, fixed.hash, again.hash, tuple(differences))


def preview(
    settings: Settings,
    *,
    customer_id: str | None = None,
    subscription_id: str | None = None,
    organization_id: str = DEFAULT_ORGANIZATION,
    now_us: int | None = None,
) -> list[dict[str, Any]]:
    """The invoices of the cycles that run now, as they would be with what ClickHouse has, priced as if they ended.

    One of customer_id and subscription_id. Raises NothingToPreview, and what `close` raises when a part is away.
    """
    now = system_clock() if now_us is None else now_us
    with opened(settings) as stage:
        found = [
            each
            for each in stage.catalog.view.all(Subscription, organization_id)
            if (customer_id is None or each.customer_id == customer_id)
            and (subscription_id is None or each.id == subscription_id)
        ]
        return [{**fixed_document(fixed), "as_of": fixed.watermark} for fixed in previewed(stage, found, now)]


def previewed(stage: Stage, subscriptions: list[Subscription], now_us: int) -> list[InvoiceFixed]:
    """What would be fixed now. Raises NothingToPreview."""
    open_cycles = [due for each in subscriptions if (due := open_cycle(each, now_us)) is not None]
    if not open_cycles:
        raise NothingToPreview("no subscription runs now")
    watermark = stage.counts.covered()
    return fixed_now(stage, open_cycles, watermark, now_us)


def fixed_document(fixed: InvoiceFixed) -> dict[str, Any]:
    """The document of an invoice that is in no ledger."""
    scratch = InvoiceLedger()
    scratch.apply(fixed)
    return scratch.invoices[fixed.invoice_id].document()
