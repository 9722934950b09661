"""close, invoice show|explain|verify|preview|…: cycles closed by hand, invoices looked at and recomputed."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from billing_job import invoices
from billing_job.close import CloseReport, UnknownOrganization
from billing_job.close import close as close_due
from billing_job.due import AsOfInFuture
from billing_job.ledger import LedgerUnavailable
from catalog.store import CatalogUnavailable
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import InvalidTimestamp, parse_rfc3339
from usage_billing.console import DONE, FAILED, fail, out, settings_for, wrong_usage
from warehouse.client import WarehouseUnavailable

T = TypeVar("T")
AWAY = (CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable)
InvoiceId = Annotated[str, Parameter(help="Id of the invoice, inv_…", name="ID")]


def close(
    *,
    as_of: Annotated[str, Parameter(help="RFC 3339 with offset; cycles that ended by then are closed.")],
    organization: Annotated[str | None, Parameter(help="Only this organization's.")] = None,
    dry_run: Annotated[bool, Parameter(help="Compute and show, write nothing.", negative="")] = False,
) -> int:
    """Close every cycle due at a time: price it, fix its invoice, have Stripe charge it.

    Running it again changes nothing. Cycles whose grace is not over are listed, not closed.
    """
    settings = settings_for("close")
    try:
        instant = parse_rfc3339(as_of)
    except InvalidTimestamp as error:
        wrong_usage(f"--as-of: {error}")
    bar = Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=out
    )
    try:
        with bar:
            report = close_due(
                settings, instant, organization_id=organization, dry_run=dry_run, progress=_shown_on(bar)
            )
    except (AsOfInFuture, UnknownOrganization) as error:
        wrong_usage(str(error))
    except AWAY as error:
        fail(str(error))
    _print_report(report)
    return DONE if report.ok else FAILED


def _shown_on(bar: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def show(part: str, done: int, total: int) -> None:
        if part not in tasks:
            tasks[part] = bar.add_task(part, total=total)
        bar.update(tasks[part], completed=done, total=total)

    return show


def _print_report(report: CloseReport) -> None:
    kind = "would be" if report.dry_run else "are"
    states = ", ".join(f"{count} {state}" for state, count in report.by_state.items()) or "nothing due"
    out.print(f"  invoices {kind}: {states}; {report.fixed} fixed by this run", soft_wrap=True)
    if report.in_grace:
        out.print(f"  {len(report.in_grace)} cycles are within their grace and are closed later", soft_wrap=True)
    if report.waiting:
        out.print(f"  waiting: {report.waiting}", style="yellow", markup=False, soft_wrap=True)
    for invoice in report.invoices:
        if invoice.state == "mismatch":
            out.print(f"  {invoice.id}: {invoice.reason}", style="red", markup=False, soft_wrap=True)
    for invoice_id, problem in report.problems.items():
        out.print(f"  {invoice_id}: {problem}", style="red", markup=False, soft_wrap=True)


# -- invoice -----------------------------------------------------------------------------------------------------------

app = App(name="invoice", help="Invoices: show, explain, verify, preview, void, credit.")
app.command("usage_billing.commands.void_credit:void", help="Void an invoice that is not paid, at Stripe too.")
app.command("usage_billing.commands.void_credit:credit", help="Have Stripe issue a credit note, and refund it.")


def _asked(question: Callable[[], T]) -> T:
    try:
        return question()
    except (invoices.UnknownInvoice, invoices.NothingToPreview) as error:
        wrong_usage(str(error))
    except AWAY as error:
        fail(str(error))


def _print_json(document: Any) -> None:
    print(json_format.dumps(document, indent=2, ensure_ascii=False))


@app.command
def show(invoice_id: InvoiceId, /) -> int:
    """Print an invoice as JSON."""
    settings = settings_for("invoice")
    _print_json(_asked(lambda: invoices.show(settings, invoice_id)))
    return DONE


@app.command
def explain(invoice_id: InvoiceId, /) -> int:
    """Tell how every amount of an invoice came about."""
    settings = settings_for("invoice")
    print("\n".join(_asked(lambda: invoices.explain(settings, invoice_id))))
    return DONE


@app.command
def verify(invoice_id: InvoiceId, /) -> int:
    """Recompute an invoice from raw events and its price snapshot; 1 when it differs."""
    settings = settings_for("invoice")
    found = _asked(lambda: invoices.verify(settings, invoice_id))
    if found.ok:
        print(f"{invoice_id} verified: {found.recomputed}")
        return DONE
    for difference in found.differences:
        print(difference)
    return FAILED


@app.command
def preview(
    identifier: Annotated[str, Parameter(help="Id of a customer, or of a subscription (sub_…).", name="ID")],
    /,
    *,
    organization: str = DEFAULT_ORGANIZATION,
) -> int:
    """Price the open cycle with the engine that invoices, as JSON."""
    settings = settings_for("invoice")
    is_subscription = identifier.startswith("sub_")
    found = _asked(
        lambda: invoices.preview(
            settings,
            customer_id=None if is_subscription else identifier,
            subscription_id=identifier if is_subscription else None,
            organization_id=organization,
        )
    )
    for each in found:
        watermark = each.pop("as_of", None)
        each["as_of"] = watermark.as_json() if hasattr(watermark, "as_json") else watermark
    _print_json(found)
    return DONE
