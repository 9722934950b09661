"""ledger → an invoice shown, explained, verified; catalog and ClickHouse → the open cycle's preview."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import msgspec

from billing_job.collect.steps import system_clock
from billing_job.context import open_billing
from billing_job.invoice.builder import build_snapshots
from billing_job.invoice.checks import Difference, quantity_differences
from billing_job.invoice.due import owed_at
from billing_job.invoice.explain import (
    NoSuchLine,
    event_text,
    events_csv,
    events_of_line,
    explained_invoice,
    explained_line,
)
from billing_job.invoice.late import Counted, billed_again, corrected_again, counted_for
from billing_job.invoice.pricing import recomputed
from billing_job.invoice.simulate import NotSimulable, simulated
from billing_job.invoice.usage_reader import Need, Quantities, UsageReader
from catalog.view import CatalogView
from ledger.invoice import Invoice, just_fixed
from ledger.snapshot import InvoiceFixed, canonical_hash
from ledger.store import LedgerLog
from ledger.view import InvoiceLedger
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import SECOND_US, Cycle
from schemas.product import Product, ProductSpec
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.watermark import Watermark


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


def _fixed(ledger: InvoiceLedger, invoice_id: str) -> InvoiceFixed:
    fixed = _found(ledger, invoice_id).fixed
    if fixed is None:
        raise UnknownInvoice(f"invoice {invoice_id} is not fixed yet")
    return fixed


def show(settings: Settings, invoice_id: str) -> dict[str, Any]:
    """The invoice as the API shows it. Raises UnknownInvoice, LedgerUnavailable."""
    with _ledger(settings) as ledger:
        return _found(ledger, invoice_id).document()


def explain(settings: Settings, invoice_id: str) -> list[str]:
    """How every amount came about, a line of text each. Raises UnknownInvoice, LedgerUnavailable."""
    with _ledger(settings) as ledger:
        return explained_invoice(_found(ledger, invoice_id))


@contextmanager
def line_events(settings: Settings, invoice_id: str, line: int | None = None) -> Generator[Iterator[str]]:
    """The events behind one line, or all of them, as CSV in blocks.

    Raises UnknownInvoice, NoSuchLine, LedgerUnavailable, WarehouseUnavailable; the last two of these on the way too.
    """
    with _ledger(settings) as ledger, UsageReader(settings) as usage:
        fixed = _fixed(ledger, invoice_id)
        if line is not None and not 0 <= line < len(fixed.lines):
            raise NoSuchLine(f"the invoice has {len(fixed.lines)} lines, numbered from 0")
        yield events_csv(ledger, usage, fixed, range(len(fixed.lines)) if line is None else range(line, line + 1))


def explain_events(settings: Settings, invoice_id: str, line: int | None = None) -> Iterator[str]:
    """`explain` with the events under each line; a line of text each. Raises as line_events."""
    with _ledger(settings) as ledger, UsageReader(settings) as usage:
        fixed = _fixed(ledger, invoice_id)
        for number in range(len(fixed.lines)) if line is None else (line,):
            blocks = events_of_line(ledger, usage, fixed, number)
            first = next(blocks, None)
            yield from explained_line(fixed, number)
            for meter, block in () if first is None else chain([first], blocks):
                for event in block:
                    yield f"  {event_text(event, meter)}"


def verify(settings: Settings, invoice_id: str) -> Verification:
    """Count the invoice's events again from raw rows, price them by its snapshot, and compare.

    Raises UnknownInvoice (also for one that is not fixed yet), LedgerUnavailable, WarehouseUnavailable.
    """
    with _ledger(settings) as ledger, UsageReader(settings) as usage:
        return verified(ledger, [_fixed(ledger, invoice_id)], usage)[0]


def verify_all(settings: Settings, organization_id: str | None = None) -> list[Verification]:
    """Every invoice that is fixed, of an organization or of all. Raises LedgerUnavailable, WarehouseUnavailable."""
    with _ledger(settings) as ledger, UsageReader(settings) as usage:
        fixed = [
            invoice.fixed
            for invoice in list(ledger.invoices.values())
            if invoice.fixed is not None and organization_id in (None, invoice.organization_id)
        ]
        return verified(ledger, fixed, usage)


def verified(ledger: InvoiceLedger, invoices: Sequence[InvoiceFixed], usage: UsageReader) -> list[Verification]:
    """`verify` of many, with what is open already: what they were counted by is counted once a watermark."""
    checks = {fixed.invoice_id: counted_for(ledger, fixed) for fixed in invoices}
    needs: dict[Watermark, dict[str, Need]] = {}
    for check in chain.from_iterable(checks.values()):
        needs.setdefault(check.watermark, {})[check.need.invoice_id] = check.need
    counted = {
        watermark: usage.independent_totals(list(of_watermark.values()), watermark)
        for watermark, of_watermark in needs.items()
    }
    return [_verified(ledger, fixed, checks[fixed.invoice_id], counted, usage) for fixed in invoices]


def _verified(
    ledger: InvoiceLedger,
    fixed: InvoiceFixed,
    checks: Sequence[Counted],
    counted: Mapping[Watermark, Quantities],
    usage: UsageReader,
) -> Verification:
    differences: list[str] = []
    for check in checks:
        unequal = quantity_differences(check, counted[check.watermark][check.need.invoice_id])
        differences += map(str, unequal)
        differences += _faults(usage, check, unequal)
    now = counted.get(fixed.counted_to, {})
    corrections = [corrected_again(ledger, each, now.get(each.corrects, {})) for each in fixed.corrections]
    if fixed.reissue is not None and (billed := billed_again(ledger, fixed)) != fixed.reissue.billed_minor:
        differences.append(
            f"billed on other invoices: {fixed.reissue.billed_minor} invoiced, {billed} by what they say"
        )
    again = recomputed(fixed, now.get(fixed.invoice_id, {}), corrections)
    if canonical_hash(fixed) != fixed.hash:
        differences.append("the record in the ledger is not what its hash says")
    differences += [f"{path}: {old} invoiced, {new} recomputed" for path, old, new in unlike(fixed, again)]
    return Verification(fixed.invoice_id, fixed.hash, again.hash, tuple(differences))


def _faults(usage: UsageReader, check: Counted, unequal: Iterable[Difference]) -> Iterator[str]:
    """The rows at fault, where a count is not what was invoiced."""
    names = {each.what.removeprefix(check.of) for each in unequal}
    seen: set[str] = set()
    for meter in check.need.meters:
        if meter.id in names and meter.event_name not in seen:
            seen.add(meter.event_name)
            yield from usage.row_faults(check.need, meter, check.watermark)


def unlike(fixed: InvoiceFixed, again: InvoiceFixed) -> Iterator[tuple[str, object, object]]:
    """Where two invoices differ: `lines.0.amount`, what the one says, what the other says. In the order of fields."""
    skipped = ("hash", "fixed_at", "writer")
    yield from _unlike(
        "", *({k: v for k, v in msgspec.to_builtins(each).items() if k not in skipped} for each in (fixed, again))
    )


def _unlike(path: str, one: object, other: object) -> Iterator[tuple[str, object, object]]:
    if one == other:
        return
    pairs: Iterable[tuple[object, object, object]]
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys([*one, *other])
        pairs = [(name, one.get(name), other.get(name)) for name in names]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = [(place, *both) for place, both in enumerate(zip_longest(one, other))]
    else:
        yield path, one, other
        return
    for name, left, right in pairs:
        yield from _unlike(f"{path}.{name}" if path else str(name), left, right)


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
    with open_billing(settings, charging=False) as context:
        found = [
            each
            for each in context.catalog.view.all(Subscription, organization_id)
            if (customer_id is None or each.customer_id == customer_id)
            and (subscription_id is None or each.id == subscription_id)
        ]
        made = previewed(context.catalog.view, context.log.state, context.usage, found, now)
    if not made:
        raise NothingToPreview("no subscription runs now")
    return made


def previewed(
    view: CatalogView, ledger: InvoiceLedger, usage: UsageReader, subscriptions: Iterable[Subscription], at_us: int
) -> list[dict[str, Any]]:
    """The invoice of each subscription's cycle at that time, as it would be fixed with what is stored now.

    With the late usage of earlier cycles that is pending. After a subscription's end: its last cycle until that is
    invoiced, then its final invoice, while that is not made. A cycle that was invoiced is shown as it would be invoiced
    now, by itself.
    """

    def is_invoiced(invoice_id: str) -> bool:
        known = ledger.get(invoice_id)
        return known is not None and known.fixed is not None

    found = [due for each in subscriptions if (due := owed_at(each, at_us, is_invoiced)) is not None]
    if not found:
        return []
    watermark = usage.covered()
    is_fixed = {each.invoice_id for each in found if is_invoiced(each.invoice_id)}
    made: list[InvoiceFixed] = []
    for chosen, of_ledger in ((False, ledger), (True, InvoiceLedger())):
        due = [each for each in found if (each.invoice_id in is_fixed) is chosen and not (chosen and each.final)]
        made += build_snapshots(view, of_ledger, usage, due, watermark, now_us=at_us, writer="preview")
    return [preview_document(each) for each in made]


def preview_document(fixed: InvoiceFixed) -> dict[str, Any]:
    """The document of an invoice that is in no ledger: it has no id and no hash."""
    return {
        **just_fixed(fixed).document(),
        "id": None,
        "state": "preview",
        "hash": None,
        "as_of": fixed.watermark,
    }


def simulate(
    settings: Settings,
    *,
    organization_id: str,
    customer_id: str,
    product: ProductSpec | str,
    period: Cycle | None = None,
) -> list[dict[str, Any]]:
    """What a product (or that of an id) would have charged for each cycle that began in the period, a year by default.

    Raises NotSimulable, and what `close` raises when a part is away.
    """
    with open_billing(settings, charging=False) as context:
        return simulation(
            context.catalog.view,
            context.log.state,
            context.usage,
            organization_id=organization_id,
            customer_id=customer_id,
            product=product,
            period=period or past_year(system_clock()),
        )


def past_year(now_us: int) -> Cycle:
    return Cycle(now_us - 366 * 86_400 * SECOND_US, now_us)


def simulation(
    view: CatalogView,
    ledger: InvoiceLedger,
    usage: UsageReader,
    *,
    organization_id: str,
    customer_id: str,
    product: ProductSpec | str,
    period: Cycle,
) -> list[dict[str, Any]]:
    """`simulate`, with what is open already."""
    spec = view.get(Product, organization_id, product) if isinstance(product, str) else product
    if spec is None:
        raise NotSimulable("product_id", f"there is no product {str(product)[:80]!r}")
    if not view.has_customer(organization_id, customer_id):
        raise NotSimulable("customer_id", f"there is no customer {customer_id[:80]!r}")
    found = simulated(
        view,
        ledger,
        usage,
        organization_id=organization_id,
        customer_id=customer_id,
        product=spec,
        period=period,
        watermark=usage.covered(),
    )
    return [each.document() for each in found]
