"""/export: usage and invoices as CSV, streamed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response

from dashboard.files import BYTE_ORDER_MARK, csv_response
from dashboard.finance import REPORTS, all_time, csv_chunks
from dashboard.pages.rendering import render
from dashboard.pages.session import Visitor, organization_of
from dashboard.pages.usage import local_period, newest_period
from dashboard.read.invoices import invoice_place
from dashboard.services import Services, services_of
from dashboard.usage_export import ExportFormat, usage_csv, usage_file
from dashboard.usage_queries import EventFilter, InvoiceFilter, invoice_documents, require_usage
from runtime.clock import now_us
from runtime.csv_text import csv_rows, safe_cell
from runtime.problem import Problem

router = APIRouter(include_in_schema=False)
INVOICES_A_BLOCK = 1000
_INVOICE_COLUMNS = (
    "id", "customer_id", "subscription_id", "cycle_start", "cycle_end", "state", "currency", "total", "tax",
    "amount_due", "amount_paid", "number", "stripe_invoice_id", "hash",
)  # fmt: skip


def _download(chunks: Iterator[str], name: str) -> Response:
    """A file that is opened by a double click."""
    return csv_response(itertools.chain((BYTE_ORDER_MARK,), chunks), name)


@router.get("/export")
async def export(request: Request, visitor: Visitor) -> Response:
    zone = organization_of(request, visitor).time_zone
    period = newest_period(services_of(request), visitor.organization_id, zone)
    return render(request, "export.html", visitor, period=period)


@router.get("/export/finance/{report}.csv")
async def export_finance(
    request: Request, visitor: Visitor, report: str, from_date: str = "", to_date: str = ""
) -> Response:
    """What finance closes its books with; without days, all of it."""
    services, organization = services_of(request), visitor.organization_id
    if report not in REPORTS:
        raise Problem(404, "not_found", f"there is no report {report[:80]}")
    period = local_period(from_date, to_date, organization_of(request, visitor).time_zone, all_time(now_us()))
    await services.warehouse.run(lambda shards: shards.first.command("SELECT 1"))
    table = await services.warehouse.run(REPORTS[report], organization, period)
    return _download(csv_chunks(table), f"{report}.csv")


@router.get("/export/usage.{kind}")
async def export_usage(
    request: Request,
    visitor: Visitor,
    kind: ExportFormat,
    customer_id: str = "",
    event_name: str = "",
    from_date: str = "",
    to_date: str = "",
) -> Response:
    services, organization = services_of(request), visitor.organization_id
    zone = organization_of(request, visitor).time_zone
    period = local_period(from_date, to_date, zone, newest_period(services, organization, zone))
    await services.warehouse.run(require_usage, organization, customer_id or None)
    wanted = EventFilter(period, customer_id or None, event_name or None)
    if kind == "csv":
        return _download(usage_csv(services, organization, wanted), "usage.csv")
    return usage_file(services, organization, wanted, kind)


def _invoices(services: Services, organization_id: str, wanted: InvoiceFilter) -> Iterator[str]:
    """Every invoice, a block at a time."""
    yield csv_rows([_INVOICE_COLUMNS])
    shards, after = services.warehouse.aside_shards(), None
    for _ in itertools.count():
        block = invoice_documents(shards, organization_id, wanted, INVOICES_A_BLOCK, after)
        yield csv_rows(
            [
                safe_cell(str(value)) if isinstance(value, str) and name in ("customer_id", "number") else value
                for name, value in _cells(document)
            ]
            for document in block
        )
        if len(block) < INVOICES_A_BLOCK:
            return
        after = invoice_place(block[-1])


def _cells(document: dict[str, object]) -> list[tuple[str, object]]:
    cycle = document["cycle"]
    assert isinstance(cycle, dict)
    flat = {**document, "cycle_start": cycle["start"], "cycle_end": cycle["end"]}
    return [(name, "" if flat.get(name) is None else flat[name]) for name in _INVOICE_COLUMNS]


@router.get("/export/invoices.csv")
async def export_invoices(request: Request, visitor: Visitor, customer_id: str = "", state: str = "") -> Response:
    services = services_of(request)
    await services.warehouse.run(lambda shards: shards.first.command("SELECT 1"))
    wanted = InvoiceFilter(customer_id=customer_id or None, state=state or None)
    return _download(_invoices(services, visitor.organization_id, wanted), "invoices.csv")
