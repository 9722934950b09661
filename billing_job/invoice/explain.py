"""an invoice → how every amount came about: the arithmetic, and the events behind each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing_job.invoice.late import counted_before, fixed_invoice_of
from billing_job.invoice.usage_reader import Need, UsageReader, need_of
from ledger.invoice import Invoice
from ledger.snapshot import Correction, InvoiceFixed, Line, Reissue
from ledger.view import InvoiceLedger
from runtime.csv_text import csv_rows, safe_cell
from schemas.currency import amount_text, from_minor
from schemas.decimals import decimal_text, plain
from schemas.meter import Meter
from schemas.period import format_rfc3339
from schemas.watermark import Watermark
from warehouse.evidence import CountedEvent

EVENT_COLUMNS = (
    "line", "meter_id", "customer_id", "event_name", "event_id", "timestamp", "value", "role", "received_at",
    "epoch", "partition", "offset", "index", "properties",
)  # fmt: skip


class NoSuchLine(LookupError):
    """The invoice has no line of that number."""


def explain_invoice(invoice: Invoice) -> list[str]:
    """How every amount came about, a line of text each. Pure."""
    fixed = invoice.fixed
    if fixed is None:
        return [_head(invoice), f"{invoice.state}: {invoice.reason}"]
    told = [_head(invoice)]
    for number in range(len(fixed.lines)):
        told += explain_line(fixed, number)
    offsets = ", ".join(f"{p}: {o}" for p, o in fixed.counted_to.offsets.items())
    told.append(f"total before tax: {fixed.total} {fixed.currency}")
    told.append(f"counted: events of epoch {fixed.counted_to.epoch} before offsets {{{offsets}}} of their partitions")
    told.append(f"hash: {fixed.hash}")
    told.append(f"state: {invoice.state}" + (f" ({invoice.reason})" if invoice.reason else ""))
    return told


def _head(invoice: Invoice) -> str:
    begins, ends = format_rfc3339(invoice.cycle_start), format_rfc3339(invoice.cycle_end)
    final = ", final" if invoice.fixed and invoice.fixed.final else ""
    return f"{invoice.id}: {invoice.customer_id}, {begins} to {ends} (exclusive){final}"


def explain_line(fixed: InvoiceFixed, number: int) -> list[str]:
    """One line: what it is, and the arithmetic behind it. Pure."""
    line = fixed.lines[number]
    told = [f"{line.description}: {line.amount} {fixed.currency}"]
    if line.meter_id is not None:
        meter = fixed.priced_meters[line.meter_id]
        begins, ends = format_rfc3339(fixed.cycle_start), format_rfc3339(fixed.active_until)
        told.append(
            f"  {meter.aggregation} of {meter.event_name} from {begins} to {ends}, each event once: {line.quantity}"
        )
        told += [f"  {text}" for text in _priced(line, fixed.currency)]
    elif line.corrects is not None:
        told += [f"  {text}" for text in _corrected(correction_of_line(fixed, line), fixed.currency)]
    elif line.model in ("billed_elsewhere", "carried_credit"):
        told += [f"  {text}" for text in _taken_off(fixed, line.model)]
    return told


def _priced(line: Line, currency: str) -> list[str]:
    told: list[str] = []
    if Decimal(line.included):
        told.append(f"{line.quantity} - {line.included} included = {line.priced_quantity} priced")
    for tier in line.tiers:
        amount = amount_text(Decimal(tier.amount), currency)
        upper = "and more" if tier.up_to_inclusive is None else f"to {tier.up_to_inclusive}"
        told.append(f"above {tier.from_exclusive} {upper}: {tier.quantity} x {tier.unit_amount} = {amount}")
    if not line.tiers:
        told.append(f"{line.model} of {line.priced_quantity} = {line.amount}")
    return told


def _corrected(correction: Correction, currency: str) -> list[str]:
    now, before = (from_minor(minor, currency) for minor in (correction.total_minor, correction.before_minor))
    counted = ", ".join(f"{meter_id}: {number}" for meter_id, number in correction.quantities.items())
    whole = f"the whole cycle as it is counted now, by the prices of {correction.corrects} ({counted}): {plain(now)}"
    if not counted and not correction.total_minor:
        whole = f"the cycle costs nothing, since its invoice {correction.corrects} is void: {plain(now)}"
    return [
        whole,
        f"billed for it before, by {', '.join(correction.counted)}{_less(correction, currency)}: {plain(before)}",
        f"{plain(now)} - {plain(before)} = {plain(from_minor(correction.difference_minor, currency))}",
    ]


def _less(said: Correction | Reissue, currency: str) -> str:
    """What credit notes for usage took off."""
    if not said.credited_minor:
        return ""
    return f", less {plain(from_minor(said.credited_minor, currency))} of credit notes {', '.join(said.credit_notes)}"


def _taken_off(fixed: InvoiceFixed, model: str) -> list[str]:
    assert fixed.reissue is not None
    if model == "billed_elsewhere":
        said = f"billed for the cycle by {', '.join(fixed.reissue.billed_by)}{_less(fixed.reissue, fixed.currency)}"
        return [f"{said}: {plain(from_minor(fixed.reissue.billed_minor, fixed.currency))}"]
    return [f"credit note {each.credit_note_id} of {each.invoice_id}" for each in fixed.reissue.credits]


def correction_of_line(fixed: InvoiceFixed, line: Line) -> Correction:
    return next(each for each in fixed.corrections if each.corrects == line.corrects)


# --- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Basis:
    """The events behind a line's amount. invoiced: events at or after it came late; None: no event is marked late."""

    need: Need
    meters: tuple[Meter, ...]
    invoiced: Watermark | None


def _basis(ledger: InvoiceLedger, fixed: InvoiceFixed, line: Line) -> _Basis | None:
    if line.meter_id is not None:
        return _Basis(need_of(fixed), (fixed.priced_meters[line.meter_id],), None)
    if line.corrects is None:
        return None
    correction = correction_of_line(fixed, line)
    need = need_of(fixed_invoice_of(ledger, correction.corrects))
    return _Basis(need, need.meters, counted_before(ledger, correction).quantities_at)


def events_of_line(
    ledger: InvoiceLedger, usage: UsageReader, fixed: InvoiceFixed, number: int
) -> Iterator[tuple[Meter, list[CountedEvent]]]:
    """Every event that counts for a line, oldest first, in blocks; of a correction those of the whole cycle, with late
    and voided ones marked. Nothing for a flat fee or minimum. Raises WarehouseUnavailable, NoSuchLine.
    """
    if not 0 <= number < len(fixed.lines):
        raise NoSuchLine(f"the invoice has {len(fixed.lines)} lines, numbered from 0")
    basis = _basis(ledger, fixed, fixed.lines[number])
    for meter in () if basis is None else basis.meters:
        assert basis is not None
        for block in usage.events(basis.need, meter, fixed.counted_to, basis.invoiced):
            yield meter, block


def event_text(event: CountedEvent, meter: Meter) -> str:
    """One event for people."""
    value = "" if event.value is None else f" {decimal_text(event.value)}"
    named = f" {event.event_id}" if event.event_id else ""
    place = f"epoch {event.epoch}, partition {event.partition}, offset {event.offset}, index {event.index}"
    role = "" if event.role == "counted" else f", {event.role}"
    return f"{format_rfc3339(event.timestamp)} {meter.event_name}{value}{named} ({place}){role}"


def events_csv(
    ledger: InvoiceLedger, usage: UsageReader, fixed: InvoiceFixed, numbers: Iterator[int] | range
) -> Iterator[str]:
    """The events behind lines as CSV, a block at a time, with a head. Raises as events_of_line."""
    yield csv_rows([EVENT_COLUMNS])
    for number in numbers:
        for meter, block in events_of_line(ledger, usage, fixed, number):
            yield csv_rows(_cells(number, meter, fixed.customer_id, event) for event in block)


def _cells(number: int, meter: Meter, customer_id: str, event: CountedEvent) -> list[Any]:
    properties = json.dumps(event.properties, ensure_ascii=False) if event.properties else ""
    return [
        number, meter.id, safe_cell(customer_id), safe_cell(meter.event_name), safe_cell(event.event_id),
        format_rfc3339(event.timestamp), "" if event.value is None else decimal_text(event.value),
        event.role, format_rfc3339(event.received_at),
        event.epoch, event.partition, event.offset, event.index, safe_cell(properties),
    ]  # fmt: skip
