"""finance lines|revenue|open-items|accrual: what a finance team exports, as CSV or JSON on standard output."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated, Literal

from cyclopts import App, Parameter

from catalog.store import CatalogStore, CatalogUnavailable
from dashboard.billing_port import BillingUnavailable
from dashboard.finance import (
    REPORTS,
    Table,
    TooFarAhead,
    accrual_table,
    all_time,
    csv_chunks,
    json_lines,
    keep_accrual,
    require_near,
)
from ledger.store import LedgerLog, LedgerUnavailable
from runtime.clock import now_us
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import Cycle, InvalidTimestamp, parse_rfc3339
from usage_billing.billing_adapter import BillingAdapter
from usage_billing.console import DONE, fail, settings_for, wrong_usage
from warehouse.client import WarehouseUnavailable, connect
from warehouse.shards import open_shards

_NAMED_MAX = 20

app = App(name="finance", help="For finance: lines, revenue, open items, accruals.")

OrganizationId = Annotated[str, Parameter(name="--organization", help="Id of the organization.")]
From = Annotated[str | None, Parameter(name="--from", help="RFC 3339, inclusive.")]
To = Annotated[str | None, Parameter(name="--to", help="RFC 3339, exclusive.")]
Format = Annotated[
    Literal["csv", "json", "jsonl"],
    Parameter(name="--format", help="csv, or jsonl: one object per line; json is the same."),
]


@app.command
def lines(
    *, from_: From = None, to: To = None, organization: OrganizationId = DEFAULT_ORGANIZATION, format_: Format = "csv"
) -> int:
    """Print every line of the invoices issued in a period: number, product, meter, quantity, net, tax, paid."""
    return _report("lines", organization, from_, to, format_)


@app.command
def revenue(
    *,
    from_: From = None,
    to: To = None,
    by_period: Annotated[bool, Parameter(help="By the month in which the billing period began.", negative="")] = False,
    organization: OrganizationId = DEFAULT_ORGANIZATION,
    format_: Format = "csv",
) -> int:
    """Print the net revenue by meter and month of issue; voids and credit notes are subtracted in their own month."""
    return _report("revenue-by-period" if by_period else "revenue", organization, from_, to, format_)


@app.command
def open_items(
    *, from_: From = None, to: To = None, organization: OrganizationId = DEFAULT_ORGANIZATION, format_: Format = "csv"
) -> int:
    """Print the invoices issued in a period that are not paid in full."""
    return _report("open-items", organization, from_, to, format_)


@app.command
def accrual(
    *,
    at: Annotated[str, Parameter(help="RFC 3339: what was used before it and not invoiced by then.")],
    keep: Annotated[bool, Parameter(help="Keep it, for the view finance_accrual.", negative="")] = False,
    organization: OrganizationId = DEFAULT_ORGANIZATION,
    format_: Format = "csv",
) -> int:
    """Print usage that was not invoiced at a date, late usage included, priced as if every open cycle ended there.

    Ends with 1 when a subscription could not be counted or priced: its row is `not_computed`, and nothing is kept.
    """
    settings, at_us = settings_for("finance"), _instant("--at", at)
    try:
        require_near(at_us, now_us())
    except TooFarAhead as error:
        wrong_usage(f"--at: {error}")
    try:
        with CatalogStore(settings) as catalog, LedgerLog(settings) as ledger, open_shards(settings) as shards:
            _require(catalog, organization)
            with closing(BillingAdapter(settings, catalog, ledger)) as billing:
                accrued = billing.accrue(organization, at_us)
            if keep and not accrued.missing:
                keep_accrual(shards, organization, at_us, now_us(), accrued.lines)
        _print(accrual_table(accrued), format_)
        if accrued.missing:
            named = "; ".join(f"{each.subscription_id}: {each.reason}" for each in accrued.missing[:_NAMED_MAX])
            fail(f"{len(accrued.missing)} subscriptions are not computed{' and nothing is kept' * keep}: {named}")
    except (CatalogUnavailable, BillingUnavailable, LedgerUnavailable, WarehouseUnavailable) as error:
        fail(str(error))
    return DONE


def _report(name: str, organization: str, from_: str | None, to: str | None, format_: str) -> int:
    settings, whole = settings_for("finance"), all_time(now_us())
    start = whole.start_us if from_ is None else _instant("--from", from_)
    end = whole.end_us if to is None else _instant("--to", to)
    if end <= start:
        wrong_usage("--to must lie after --from")
    try:
        with CatalogStore(settings) as catalog:
            _require(catalog, organization)
        with connect(settings) as client:
            _print(REPORTS[name](client, organization, Cycle(start, end)), format_)
    except (CatalogUnavailable, WarehouseUnavailable) as error:
        fail(str(error))
    return DONE


def _print(table: Table, format_: str) -> None:
    sys.stdout.writelines(csv_chunks(table) if format_ == "csv" else json_lines(table))


def _require(catalog: CatalogStore, organization: str) -> None:
    if catalog.view.organization(organization) is None:
        wrong_usage(f"there is no organization {organization!r}")


def _instant(name: str, text: str) -> int:
    try:
        return parse_rfc3339(text)
    except InvalidTimestamp as error:
        wrong_usage(f"{name}: {error}")
