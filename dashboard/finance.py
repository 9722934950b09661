"""issued invoices, what is open, what is used and not billed → the tables that finance closes its books with.

Each is of one organization, has names of columns, and cells that are plain text: amounts with the decimals of their
currency, instants in RFC 3339. The first three are views in ClickHouse too; an accrual is priced here, and kept in
`finance_accrual` where it is asked to be. They block: run them in a thread. Each raises WarehouseUnavailable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from dashboard.usage_queries import trimmed
from runtime.csv_text import csv_rows, safe_cell
from schemas.accrual import Accrual, AccruedLine
from schemas.currency import amount_text
from schemas.decimals import plain
from schemas.period import DAY_US, Cycle, format_rfc3339, parse_rfc3339
from warehouse.client import ClickHouseError, unavailable
from warehouse.shards import Store, shards_of

Cells = list[str]
Table = tuple[tuple[str, ...], Iterator[list[Cells]]]
"""Names of the columns, and rows, block by block."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- Cells ------------------------------------------------------------------------------------------------------------


def _text(value: Any, currency: str) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case datetime():
            moment = value if value.tzinfo else value.replace(tzinfo=UTC)
            return format_rfc3339((moment - _EPOCH) // timedelta(microseconds=1))
        case date():
            return value.strftime("%Y-%m")
        case Decimal():
            return amount_text(value, currency)
        case _:
            return str(value)


_NUMBERS = frozenset({"line", "quantity", "net", "tax", "paid", "amount_due", "amount_paid", "amount_open", "invoices"})
"""Columns that are no text: a negative amount stays a number in a spreadsheet."""


def csv_cells(columns: Sequence[str], cells: Cells) -> list[str]:
    """Safe to open in a spreadsheet: see safe_cell."""
    return [cell if name in _NUMBERS else safe_cell(cell) for name, cell in zip(columns, cells, strict=True)]


def csv_chunks(table: Table) -> Iterator[str]:
    """The CSV, block by block. An error on the way breaks it off: half a file must not look whole."""
    columns, blocks = table
    yield csv_rows([columns])
    for block in blocks:
        yield csv_rows(csv_cells(columns, row) for row in block)


def json_lines(table: Table) -> Iterator[str]:
    """An object a line, its cells as text, block by block."""
    columns, blocks = table
    for block in blocks:
        yield "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in block)


# --- Views ------------------------------------------------------------------------------------------------------------

_LINES = (
    "number", "invoice_id", "line", "customer_id", "subscription_id", "period_start", "period_end", "product", "meter",
    "description", "quantity", "net", "tax", "currency", "state", "paid", "issued_at", "paid_at",
)  # fmt: skip
_REVENUE = ("month", "meter_id", "meter", "quantity", "net", "currency", "invoices")
_OPEN_ITEMS = (
    "number", "invoice_id", "customer_id", "subscription_id", "period_start", "period_end", "net", "tax", "amount_due",
    "amount_paid", "amount_open", "currency", "state", "unpaid_reason", "issued_at", "due_at", "hosted_invoice_url",
)  # fmt: skip


# In µs, so that no year is beyond what the engine's types can hold.
_ISSUED = "toUnixTimestamp64Micro(issued_at) >= {start:Int64} AND toUnixTimestamp64Micro(issued_at) < {end:Int64}"
_BEGINS = "toInt64(toUnixTimestamp(toDateTime(month, 'UTC'))) * 1000000"


def lines(store: Store, organization_id: str, period: Cycle) -> Table:
    """Every line of the invoices issued in [from, to)."""
    return _view(store, "finance_lines", _LINES, organization_id, _ISSUED, "issued_at, invoice_id, line", period)


def revenue(store: Store, organization_id: str, period: Cycle) -> Table:
    """Net amounts by meter and the month of issue, void or credit note; months that begin in [from, to)."""
    return _revenue(store, "finance_revenue", organization_id, period)


def revenue_by_period(store: Store, organization_id: str, period: Cycle) -> Table:
    """Net amounts by meter and the month in which the cycle began, which later documents change."""
    return _revenue(store, "finance_revenue_by_period", organization_id, period)


def _revenue(store: Store, view: str, organization_id: str, period: Cycle) -> Table:
    condition = f"{_BEGINS} >= {{start:Int64}} AND {_BEGINS} < {{end:Int64}}"
    return _view(store, view, _REVENUE, organization_id, condition, "month, currency, meter", period)


def open_items(store: Store, organization_id: str, period: Cycle) -> Table:
    """Invoices issued in [from, to) of which something is still to be paid."""
    return _view(store, "finance_open_items", _OPEN_ITEMS, organization_id, _ISSUED, "issued_at, invoice_id", period)


def _view(
    store: Store,
    view: str,
    columns: tuple[str, ...],
    organization_id: str,
    condition: str,
    order: str,
    period: Cycle,
) -> Table:
    query = f"""
        SELECT {", ".join(columns)} FROM {view}
        WHERE organization_id = {{organization_id:String}} AND {condition} ORDER BY {order}
    """
    parameters = {"organization_id": organization_id, "start": period.start_us, "end": period.end_us}
    currency, quantity = columns.index("currency"), columns.index("quantity") if "quantity" in columns else None

    def rows() -> Iterator[list[Cells]]:
        try:
            with shards_of(store).first.query_row_block_stream(query, parameters=parameters) as blocks:
                for block in blocks:
                    yield [
                        [
                            plain(trimmed(cell)) if place == quantity else _text(cell, row[currency])
                            for place, cell in enumerate(row)
                        ]
                        for row in block
                    ]
        except ClickHouseError as error:
            raise unavailable(error) from error

    return columns, rows()


REPORTS: dict[str, Callable[[Store, str, Cycle], Table]] = {
    "lines": lines,
    "revenue": revenue,
    "revenue-by-period": revenue_by_period,
    "open-items": open_items,
}


# --- Accrual ----------------------------------------------------------------------------------------------------------


ACCRUAL_AHEAD_US_MAX = 366 * DAY_US


class TooFarAhead(ValueError):
    """An accrual was asked for at a date of which nobody can know what it will cost."""


def require_near(at_us: int, now_us: int) -> None:
    """Raises TooFarAhead."""
    if at_us > now_us + ACCRUAL_AHEAD_US_MAX:
        raise TooFarAhead("at most a year ahead")


ACCRUAL = (
    "customer_id", "subscription_id", "product_id", "meter_id", "meter", "period_start", "period_end", "quantity",
    "net", "currency",
)  # fmt: skip


NOT_COMPUTED = "not_computed"
"""In the place of a meter's name: of a subscription whose accrual is not known; its quantity and amount are empty."""


def accrual_table(accrual: Accrual) -> Table:
    rows = [
        [
            each.customer_id,
            each.subscription_id,
            each.product_id,
            each.meter_id,
            each.meter,
            each.period.start,
            each.period.end,
            plain(trimmed(each.quantity)),
            amount_text(each.net, each.currency),
            each.currency,
        ]
        for each in accrual.lines
    ]
    rows += [
        [each.customer_id, each.subscription_id, each.product_id, "", NOT_COMPUTED, "", "", "", "", ""]
        for each in accrual.missing
    ]
    return ACCRUAL, iter([rows] if rows else [])


def keep_accrual(
    store: Store, organization_id: str, at_us: int, computed_at_us: int, accrued: Sequence[AccruedLine]
) -> None:
    """Into `finance_accrual`; an accrual of the same date that was kept before is replaced as a whole."""

    def moment(us: int) -> datetime:
        return _EPOCH + timedelta(microseconds=us)

    rows = [
        {
            "organization_id": organization_id,
            "at": moment(at_us),
            "customer_id": each.customer_id,
            "subscription_id": each.subscription_id,
            "product_id": each.product_id,
            "line": each.line,
            "meter_id": each.meter_id,
            "meter": each.meter,
            "period_start": moment(each.period.start_us),
            "period_end": moment(each.period.end_us),
            "quantity": each.quantity,
            "net": each.net,
            "currency": each.currency,
            "computed_at": moment(computed_at_us),
        }
        for each in accrued
    ]
    first = shards_of(store).first
    try:
        if rows:
            data = [list(row.values()) for row in rows]
            first.insert("stored_accruals", data, column_names=list(rows[0]))
        else:  # no row says that there is none
            first.command(
                "DELETE FROM stored_accruals WHERE organization_id = {organization_id:String} AND at = "
                "fromUnixTimestamp64Micro({at_us:Int64})",
                parameters={"organization_id": organization_id, "at_us": at_us},
            )
    except ClickHouseError as error:
        raise unavailable(error) from error


def all_time(now_us: int) -> Cycle:
    return Cycle(parse_rfc3339("1970-01-01T00:00:00Z"), now_us + 1)
