"""/api/v1/finance/…: issued lines, revenue, open items and accruals, as JSON or CSV."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response
from pydantic import BaseModel

from dashboard.auth import Caller
from dashboard.billing_access import answered, billing_of
from dashboard.files import JSON_LINES, csv_response, file_response
from dashboard.finance import (
    REPORTS,
    Table,
    TooFarAhead,
    accrual_table,
    all_time,
    csv_chunks,
    json_lines,
    require_near,
)
from dashboard.problems import field_problem
from dashboard.read.parameters import From, To, instant, period
from dashboard.routing import ReadRoute, api_router
from dashboard.services import services_of
from runtime.clock import now_us
from runtime.problem import Problem

router = api_router(ReadRoute, "Finance")

JSON_ROWS_MAX = 10_000
Format = Annotated[
    Literal["json", "csv", "jsonl"], Query(description="csv and jsonl are streamed, json is limited in length")
]
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {media_type: {"schema": {"type": "string"}} for media_type in ("text/csv", JSON_LINES)}}
}


class FinanceRows(BaseModel):
    """Rows by name of the column; cells as in the CSV: amounts in major units."""

    data: list[dict[str, str]]


class AccrualRows(FinanceRows):
    """problems: subscription → why what it accrued is not known; its row says `not_computed` and has no amount."""

    problems: dict[str, str]


def _answer(table: Table, name: str, wanted: str) -> Response | FinanceRows:
    if wanted == "csv":
        return csv_response(csv_chunks(table), f"{name}.csv")
    if wanted == "jsonl":
        return file_response(json_lines(table), f"{name}.jsonl", JSON_LINES)
    columns, blocks = table
    rows: list[dict[str, str]] = []
    for block in blocks:
        rows += [dict(zip(columns, row, strict=True)) for row in block]
        if len(rows) > JSON_ROWS_MAX:
            raise Problem(422, "too_many_rows", f"more than {JSON_ROWS_MAX} rows: narrow the period, or take csv")
    return FinanceRows(data=rows)


@router.get("/finance/accrual", response_model=AccrualRows, responses=_STREAMED)
async def get_finance_accrual(
    request: Request,
    caller: Caller,
    at: Annotated[str, Query(description="RFC 3339; what was used before it and not invoiced by then", max_length=64)],
    format: Format = "json",
) -> Any:
    """Usage priced as if every open cycle ended at a date, flat fees and minimums prorated up to it.

    `late_usage`: what came late for a cycle that was invoiced by then, and was on no invoice. Every event counts that
    was accepted before the request; where ClickHouse does not have them all within some seconds the answer is a 503.
    A subscription that can't be counted or priced has one row, `not_computed`, without an amount.
    """
    services, when = services_of(request), instant("at", at)
    try:
        require_near(when, now_us())
    except TooFarAhead as error:
        raise field_problem("at", "at_range", str(error)) from None
    billing, organization_id = billing_of(services), caller.organization_id
    found = await answered(lambda: billing.accrue(organization_id, when))
    answer = _answer(accrual_table(found), "accrual", format)
    if isinstance(answer, FinanceRows):
        problems = {each.subscription_id: each.reason for each in found.missing}
        return AccrualRows(data=answer.data, problems=problems)
    return answer


@router.get("/finance/{report}", response_model=FinanceRows, responses=_STREAMED)
async def get_finance_report(
    request: Request,
    caller: Caller,
    report: Literal["lines", "revenue", "revenue-by-period", "open-items"],
    from_: From = None,
    to: To = None,
    format: Format = "json",
) -> Any:
    """Lines of issued invoices, net revenue by meter and month, or what is still to be paid.

    Revenue is by the month of issue, void or credit note, so a month that is over stays as it is; `revenue-by-period`
    is by the month in which the billing period began. from, to: when an invoice was issued; of revenue, the months.
    """
    services = services_of(request)
    wanted = period(from_, to, all_time(now_us()))
    await services.warehouse.run(lambda shards: shards.first.command("SELECT 1"))  # 503 before the answer has begun
    return await services.warehouse.run(
        lambda shards: _answer(REPORTS[report](shards, caller.organization_id, wanted), report, format)
    )
