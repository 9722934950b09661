"""catalog objects, invoices, orders, alerts, dead letters → rows of ClickHouse's stored_… tables. Pure.

A row is a mapping of column names; `version` decides which row of a key stays: writing one again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from catalog.record import CatalogObject
from ledger.benefits import unpaid
from ledger.invoice import Invoice
from ledger.snapshot import InvoiceFixed
from pricing.allocation import allocated
from schemas.alert import Alert
from schemas.currency import from_minor
from schemas.customer import Customer
from schemas.dead_letter import DeadLetter
from schemas.meter import Meter
from schemas.organization import Organization
from schemas.product import Product
from schemas.subscription import Subscription

Row = Mapping[str, Any]
TableRow = tuple[str, Row]
"""Name of the table, and a row of it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UINT64_MAX = 2**64 - 1


def instant(us: int) -> datetime:
    """µs since 1970 as ClickHouse's client takes a DateTime64(6)."""
    return _EPOCH + timedelta(microseconds=us)


def catalog_row(state: CatalogObject, version: int) -> TableRow | None:
    """The object's row; None for kinds that have no table: keys and rules are nothing for analysts."""
    common = {
        "id": state.id,
        "created_at": instant(state.created_at),
        "archived": state.archived,
        "version": version,
        "document": state.model_dump_json(),
    }
    tenant = {**common, "organization_id": state.organization_id}
    match state:
        case Organization():
            return "stored_organizations", {
                **common,
                "name": state.name,
                "time_zone": state.time_zone,
                "late_policy": state.late_policy,
                "stripe_account_id": state.stripe_account_id or "",
            }
        case Meter():
            return "stored_meters", {
                **tenant,
                "name": state.name,
                "event_name": state.event_name,
                "unit": state.unit,
                "aggregation": state.aggregation.value,
            }
        case Customer():
            return "stored_customers", {
                **tenant,
                "name": state.name,
                "email": state.email or "",
                "country": (state.address.country if state.address else None) or "",
                "stripe_customer_id": state.stripe_customer_id or "",
            }
        case Product():
            return "stored_products", {
                **tenant,
                "name": state.name,
                "currency": state.currency,
                "meter_ids": list(state.meter_ids),
                "prices": msgspec.json.encode([price.model_dump(mode="json") for price in state.prices]).decode(),
                "benefits": list(state.benefits),
            }
        case Subscription():
            return "stored_subscriptions", {
                **tenant,
                "customer_id": state.customer_id,
                "product_id": state.product_id,
                "started_at": instant(state.started_at),
                "ends_at": None if state.ends_at is None else instant(state.ends_at),
                "billing_interval": state.billing_interval,
                "collection_method": state.collection_method,
                "time_zone": state.time_zone,
            }
        case _:
            return None


def invoice_rows(invoice: Invoice, version: int) -> Iterator[TableRow]:
    """The invoice, its lines once they are fixed, its order once it is paid, and its adjustments.

    version: offset in the ledger.
    """
    key = {"organization_id": invoice.organization_id, "customer_id": invoice.customer_id}
    yield "stored_invoices", {**key, **_invoice_row(invoice), "version": version}
    fixed = invoice.fixed
    if fixed is None:
        return
    for row in _line_rows(invoice, fixed):
        yield "stored_invoice_lines", {**key, **row, "version": version}
    if order := invoice.order:
        yield (
            "stored_orders",
            {
                **key,
                "id": order.order_id,
                "invoice_id": order.invoice_id,
                "subscription_id": order.subscription_id,
                "currency": order.currency,
                "amount_paid": Decimal(order.amount_paid),
                "paid_at": instant(order.paid_at),
                "recorded_at": instant(order.recorded_at),
                "version": version,
            },
        )
    for each in invoice.adjustments.values():
        yield (
            "stored_adjustments",
            {
                **key,
                "invoice_id": invoice.id,
                "id": each.object_id,
                "type": each.adjustment,
                "amount": from_minor(each.amount_minor, each.currency),
                "net": None if each.net_minor is None else from_minor(each.net_minor, each.currency),
                "currency": each.currency,
                "status": each.status,
                "reason": each.reason or "",
                "number": each.number or "",
                "month": _month(fixed.cycle_start, fixed),
                "booked_month": _month(each.created_at, fixed),
                "created_at": instant(each.created_at),
                "version": version,
            },
        )


def _invoice_row(invoice: Invoice) -> Row:
    document, seen, order, owed = invoice.document(), invoice.stripe, invoice.order, unpaid(invoice)
    settled_at = order.paid_at if order else None
    return {
        "cycle_start": instant(invoice.cycle_start),
        "cycle_end": instant(invoice.cycle_end),
        "id": invoice.id,
        "subscription_id": invoice.subscription_id,
        "state": invoice.state,
        "reason": invoice.reason or "",
        "currency": document["currency"] or "",
        **{
            name: _decimal(document[name]) for name in ("total", "tax", "amount_due", "amount_paid", "amount_remaining")
        },
        "stripe_invoice_id": invoice.stripe_invoice_id or "",
        "number": document["number"] or "",
        "hosted_invoice_url": document["hosted_invoice_url"] or "",
        "watermark": msgspec.json.encode(document["watermark"]).decode() if invoice.fixed else "",
        "hash": document["hash"] or "",
        "updated_at": instant(invoice.updated_at),
        "document": msgspec.json.encode(document).decode(),
        "active_until": instant(invoice.fixed.active_until if invoice.fixed else invoice.cycle_end),
        "event_names": _event_names(invoice.fixed),
        "trued_up": invoice.fixed is not None and invoice.fixed.trued_up,
        "revision": invoice.revision,
        "reissued": invoice.reissued,
        "product_id": _product(invoice.fixed, "id"),
        "issued_at": _instant(invoice.issued_at),
        "booked_month": _booked(invoice.issued_at, invoice.fixed),
        "void_month": _booked(_voided_at(invoice), invoice.fixed),
        "due_at": _instant(seen.due_date if seen else None),
        "paid_at": _instant(settled_at),
        "unpaid_reason": owed.reason if owed else "",
        "unpaid_since": _instant(owed.since if owed else None),
    }


def _event_names(fixed: InvoiceFixed | None) -> list[str]:
    """What is billed of its own cycle; a final invoice has none, it bills what came late for others."""
    if fixed is None or fixed.final:
        return []
    return sorted({meter["event_name"] for meter in fixed.meters})


def _line_rows(invoice: Invoice, fixed: InvoiceFixed) -> Iterator[Row]:
    tax = invoice.stripe.tax_minor if invoice.stripe else None
    taxes = allocated(tax, [line.amount_minor for line in fixed.lines]) if tax is not None else None
    names = {meter["id"]: meter["name"] for meter in fixed.meters}
    for number, line in enumerate(fixed.lines):
        # A correction is about another time, and another cycle's meter.
        own = line.period_start is None or line.period_end is None
        meter_id = line.meter_id or line.late_meter_id
        yield {
            "cycle_start": instant(invoice.cycle_start if own else line.period_start or 0),
            "cycle_end": instant(invoice.cycle_end if own else line.period_end or 0),
            "invoice_id": invoice.id,
            "line": number,
            "subscription_id": invoice.subscription_id,
            "meter_id": meter_id or "",
            "model": line.model,
            "description": line.description,
            "quantity": Decimal(line.late_quantity or line.quantity),
            "included": Decimal(line.included),
            "priced_quantity": Decimal(line.priced_quantity),
            "currency": fixed.currency,
            "amount": Decimal(line.amount),
            "tiers": msgspec.json.encode(line.tiers).decode(),
            "product_id": _product(fixed, "id"),
            "product_name": _product(fixed, "name"),
            "meter_name": line.late_meter or names.get(meter_id or "", meter_id) or line.model,
            "month": _month(fixed.cycle_start, fixed),
            "tax": None if taxes is None else from_minor(taxes[number], fixed.currency),
        }


def _product(fixed: InvoiceFixed | None, name: str) -> str:
    return fixed.product.get(name, "") if fixed else ""


def _voided_at(invoice: Invoice) -> int | None:
    """By us, or as Stripe's state was seen; µs."""
    if invoice.state != "void":
        return None
    by_us = invoice.attempt("void")
    if by_us is not None:
        return by_us.begun_at
    return invoice.stripe.seen_at if invoice.stripe else None


def _booked(at_us: int | None, fixed: InvoiceFixed | None) -> date | None:
    return None if at_us is None or fixed is None else _month(at_us, fixed)


def _month(at_us: int, fixed: InvoiceFixed) -> date:
    """First day of the month of an instant (µs), where the subscription is."""
    return instant(at_us).astimezone(ZoneInfo(fixed.time_zone)).date().replace(day=1)


def alert_row(alert: Alert, offset: int) -> TableRow:
    """The first of an id stays: a repeated firing has a later offset and the lesser version."""
    return "stored_alerts", {
        "organization_id": alert.organization_id,
        "id": alert.id,
        "rule_id": alert.rule_id,
        "customer_id": alert.customer_id,
        "meter_id": alert.meter_id,
        "kind": alert.kind.value,
        "threshold": Decimal(alert.threshold),
        "quantity": Decimal(alert.quantity),
        "cycle_start": instant(alert.cycle_start),
        "cycle_end": instant(alert.cycle_end),
        "fired_at": instant(alert.fired_at),
        "version": _UINT64_MAX - offset,
    }


def dead_letter_row(letter: DeadLetter) -> TableRow:
    """A message that was set aside again after a crash has the same key; the later finding stays."""
    return "stored_dead_letters", {
        "kafka_topic": letter.topic,
        "kafka_epoch": letter.epoch,
        "kafka_partition": letter.partition,
        "kafka_offset": letter.offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "key": letter.key,
        "payload": letter.payload,
        "found_at": instant(letter.found_at),
        "version": letter.found_at,
    }


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _instant(us: int | None) -> datetime | None:
    return None if us is None else instant(us)
