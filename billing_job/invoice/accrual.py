"""catalog, ledger, ClickHouse → what was used by a date and was on no issued invoice then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from billing_job.invoice.builder import trues_up
from billing_job.invoice.estimate import PricedCycle, meters_of, price_cycles
from billing_job.invoice.late import PendingLate, UsageSource, pending
from billing_job.loops import invoice_by_invoice
from catalog.view import CatalogView
from ledger.invoice import Invoice
from ledger.view import InvoiceLedger
from pricing.invoice_lines import InvoiceComputation
from schemas.accrual import LATE_LINE, LATE_USAGE, Accrual, AccruedLine, NotAccrued
from schemas.currency import from_minor
from schemas.period import Cycle
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.watermark import Watermark

SubscriptionCycle = tuple[Subscription, Cycle]


def accrue(
    view: CatalogView, ledger: InvoiceLedger, usage: UsageSource, organization_id: str, at_us: int, watermark: Watermark
) -> Accrual:
    """Price every cycle that no invoice issued by the date bills, as if it ended there; late usage is its own line.

    Flat fees and minimums are prorated up to the date. watermark: ClickHouse has every event below it. A subscription
    that can't be counted or priced is left out, with all its lines, and named. Raises WarehouseUnavailable.
    """
    subscriptions = view.all(Subscription, organization_id)
    problems: dict[str, str] = {}
    late = _late_usage(view, ledger, usage, organization_id, subscriptions, at_us, watermark, problems)
    invoiced = _invoiced_cycles(ledger, organization_id, subscriptions, at_us)

    def open_cycles(some: Sequence[Subscription]) -> list[AccruedLine]:
        cycles = [
            (subscription, cycle)
            for subscription in some
            for cycle in _started_cycles(subscription, at_us)
            if (subscription.id, cycle.start_us) not in invoiced
        ]
        return _priced(view, usage, organization_id, cycles, at_us, watermark)

    loop = invoice_by_invoice("accrual", problems.__setitem__)
    lines: list[AccruedLine] = []
    for part in loop.by_halves(subscriptions, open_cycles, lambda subscription: subscription.id):
        lines += part
    lines += map(_late_line, late)
    return Accrual(
        [line for line in lines if line.subscription_id not in problems],
        [
            NotAccrued(each.customer_id, each.id, each.product_id, problems[each.id])
            for each in subscriptions
            if each.id in problems
        ],
    )


def _late_usage(
    view: CatalogView,
    ledger: InvoiceLedger,
    usage: UsageSource,
    organization_id: str,
    subscriptions: Sequence[Subscription],
    at_us: int,
    watermark: Watermark,
    problems: dict[str, str],
) -> list[PendingLate]:
    """What invoiced cycles cost beyond their invoices; nothing where the organization does not bill late usage."""
    if not trues_up(view, organization_id):
        return []
    parts = invoice_by_invoice("accrual", problems.__setitem__).by_halves(
        [(organization_id, subscription.id) for subscription in subscriptions],
        lambda keys: pending(ledger, usage, keys, watermark, issued_by_us=at_us),
        key=lambda key: key[1],
    )
    return [late for part in parts for late in part]


def _invoiced_cycles(
    ledger: InvoiceLedger, organization_id: str, subscriptions: Sequence[Subscription], at_us: int
) -> frozenset[tuple[str, int]]:
    """(subscription, start in µs) of cycles that were billed by the date, or whose invoice is void for good."""
    invoices = [
        invoice for each in subscriptions for invoice in ledger.of_subscription(organization_id, each.id)
    ]  # fmt: skip
    return frozenset((each.subscription_id, each.cycle_start) for each in invoices if _is_billed(each, at_us))


def _is_billed(invoice: Invoice, by_us: int) -> bool:
    if invoice.state == "void":
        return not invoice.reissued
    return invoice.issued_at is not None and invoice.issued_at <= by_us


def _started_cycles(subscription: Subscription, at_us: int) -> Iterator[Cycle]:
    until = at_us if subscription.ends_at is None else min(at_us, subscription.ends_at)
    return subscription.calendar.between(subscription.charged_from, until)


def _priced(
    view: CatalogView,
    usage: UsageSource,
    organization_id: str,
    cycles: Sequence[SubscriptionCycle],
    at_us: int,
    watermark: Watermark,
) -> list[AccruedLine]:
    """The lines of each cycle; none of a product that is gone."""
    found: list[tuple[Subscription, Product, PricedCycle]] = []
    for subscription, cycle in cycles:
        product = view.get(Product, organization_id, subscription.product_at(cycle.start_us))
        if product is not None:
            ends = (cycle.end_us, subscription.ends_at, at_us)
            until = min(end for end in ends if end is not None)
            meters = meters_of(view, organization_id, product)
            found.append((subscription, product, PricedCycle(subscription.customer_id, product, meters, cycle, until)))
    computed = price_cycles(usage, organization_id, [priced for _, _, priced in found], watermark)
    return [
        line
        for (subscription, product, priced), invoice in zip(found, computed, strict=True)
        for line in _lines(subscription, product, priced, invoice)
    ]


def _lines(
    subscription: Subscription, product: Product, priced: PricedCycle, computed: InvoiceComputation
) -> Iterator[AccruedLine]:
    for number, line in enumerate(computed.lines):
        meter = priced.meters.get(line.meter_id) if line.meter_id else None
        yield AccruedLine(
            customer_id=subscription.customer_id,
            subscription_id=subscription.id,
            product_id=product.id,
            line=number,
            meter_id=line.meter_id or "",
            meter=meter.name if meter else line.model,
            period=Cycle(priced.cycle.start_us, priced.active_until),
            quantity=line.quantity,
            net=line.amount,
            currency=computed.currency,
        )


def _late_line(late: PendingLate) -> AccruedLine:
    fixed = late.fixed
    return AccruedLine(
        customer_id=fixed.customer_id,
        subscription_id=fixed.subscription_id,
        product_id=fixed.priced_product.id,
        line=LATE_LINE,
        meter_id="",
        meter=LATE_USAGE,
        period=Cycle(fixed.cycle_start, fixed.active_until),
        quantity=Decimal(1),
        net=from_minor(late.amount_minor, fixed.currency),
        currency=fixed.currency,
    )
