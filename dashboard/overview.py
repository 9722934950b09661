"""live totals × catalog → a table of customers and meters: what the overview shows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from catalog.view import CatalogView
from dashboard.live_view import LiveView
from runtime.one_by_one import OneByOne
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.period import Cycle
from schemas.totals import UsageTotal

ROWS_MAX = 50
COLUMNS_MAX = 8
_LOOP = OneByOne("overview", lambda _: False)


@dataclass(frozen=True, slots=True)
class Cell:
    """quantity of the newest cycle with usage."""

    quantity: Decimal
    cycle: Cycle


@dataclass(frozen=True, slots=True)
class CustomerRow:
    """name None: no customer of that id in force. cells: meter id → what it reads. cycle: the newest of its cells."""

    customer_id: str
    name: str | None
    cells: Mapping[str, Cell]
    cycle: Cycle
    updated_at: int


@dataclass(frozen=True, slots=True)
class UsageTable:
    """rows: by name, of those that changed last. more: customers that found no room."""

    meters: Sequence[Meter]
    rows: Sequence[CustomerRow]
    more: int


def usage_table(live: LiveView, view: CatalogView, organization_id: str) -> UsageTable:
    """The newest cycle of every customer and meter in force, of the customers that changed last."""
    meters = [meter for meter in view.all(Meter, organization_id) if not meter.archived][:COLUMNS_MAX]
    customers = live.customers(organization_id)
    shown = {each: [series[-1] for series in live.series_of(organization_id, each)] for each in customers[-ROWS_MAX:]}
    rows: list[CustomerRow] = []
    for customer_id, totals in shown.items():
        with _LOOP.one(f"customer {customer_id} of {organization_id}"):
            if (row := _row(view, organization_id, customer_id, totals, meters)) is not None:
                rows.append(row)
    return UsageTable(
        meters=meters,
        rows=sorted(rows, key=lambda row: ((row.name or row.customer_id).casefold(), row.customer_id)),
        more=max(0, len(customers) - ROWS_MAX),
    )


def _row(
    view: CatalogView, organization_id: str, customer_id: str, totals: Iterable[UsageTotal], meters: Sequence[Meter]
) -> CustomerRow | None:
    """None where no meter reads any of the totals."""
    by_event = {total.event_name: total for total in totals}
    cells = {
        meter.id: Cell(total.quantity(meter.aggregation), Cycle(total.cycle_start, total.cycle_end))
        for meter in meters
        if (total := by_event.get(meter.event_name))
    }
    if not cells:
        return None
    customer = view.get(Customer, organization_id, customer_id)
    return CustomerRow(
        customer_id=customer_id,
        name=None if customer is None or customer.archived else customer.name,
        cells=cells,
        cycle=max(cell.cycle for cell in cells.values()),
        updated_at=max(total.updated_at for total in by_event.values()),
    )
