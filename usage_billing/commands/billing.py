"""close, invoice show|explain|verify|preview|…: cycles closed by hand, invoices looked at and recomputed."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from billing_job.close import CloseReport, UnknownOrganization
from billing_job.close import close as close_due
from billing_job.collect.steps import system_clock
from billing_job.invoice.due import AsOfInFuture
from billing_job.invoice.explain import NoSuchLine
from billing_job.invoice.simulate import NotSimulable, past_year
from billing_job.service import BillingService, UnknownInvoice, open_service
from catalog.store import CatalogUnavailable
from ledger.store import LedgerUnavailable
from schemas.decimals import loads_exact
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import Cycle, InvalidTimestamp, parse_rfc3339
from schemas.product import ProductSpec
from schemas.settings import Settings
from schemas.subscription import Subscription
from usage_billing.console import DONE, FAILED, fail, out, settings_for, wrong_usage
from warehouse.client import WarehouseUnavailable

AWAY = (CatalogUnavailable, LedgerUnavailable, WarehouseUnavailable)
InvoiceId = Annotated[str, Parameter(help="Id of the invoice, inv_…", name="ID")]


def close(
    *,
    as_of: Annotated[str, Parameter(help="RFC 3339 with offset, or now; cycles that ended by then are closed.")],
    organization: Annotated[str | None, Parameter(help="Only this organization's.")] = None,
    dry_run: Annotated[bool, Parameter(help="Compute and show, write nothing.", negative="")] = False,
) -> int:
    """Close every cycle due at a time: price it, fix its invoice, have Stripe charge it.

    Running it again changes nothing. Cycles whose grace is not over are listed, not closed.
    """
    settings = settings_for("close")
    try:
        instant = system_clock() if as_of == "now" else parse_rfc3339(as_of)
    except InvalidTimestamp as error:
        wrong_usage(f"--as-of: {error}")
    try:
        with progress_bar() as bar:
            report = close_due(settings, instant, organization_id=organization, dry_run=dry_run, progress=shown_on(bar))
    except (AsOfInFuture, UnknownOrganization) as error:
        wrong_usage(str(error))
    except AWAY as error:
        fail(str(error))
    print_report(report)
    return DONE if report.ok else FAILED


def progress_bar() -> Progress:
    """Of the parts of a close."""
    return Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=out
    )


def shown_on(bar: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def show(part: str, done: int, total: int) -> None:
        if part not in tasks:
            tasks[part] = bar.add_task(part, total=total)
        bar.update(tasks[part], completed=done, total=total)

    return show


def print_report(report: CloseReport) -> None:
    kind = "would be" if report.dry_run else "are"
    states = ", ".join(f"{count} {state}" for state, count in report.by_state.items()) or "nothing due"
    out.print(f"  invoices {kind}: {states}; {report.fixed} fixed by this run", soft_wrap=True)
    if report.in_grace:
        out.print(f"  {len(report.in_grace)} cycles are within their grace and are closed later", soft_wrap=True)
    if report.awaiting_approval:
        out.print(f"  {len(report.awaiting_approval)} invoices await approval: usage-billing billing approve")
    if report.waiting:
        out.print(f"  waiting: {report.waiting}", style="yellow", markup=False, soft_wrap=True)
    for invoice in report.invoices:
        if invoice.state == "mismatch":
            out.print(f"  {invoice.id}: {invoice.reason}", style="red", markup=False, soft_wrap=True)
    for invoice_id, problem in report.problems.items():
        out.print(f"  {invoice_id}: {problem}", style="red", markup=False, soft_wrap=True)


# -- invoice -----------------------------------------------------------------------------------------------------------

app = App(name="invoice", help="Invoices: show, explain, verify, preview, simulate, void, credit.")
app.command("usage_billing.commands.void_credit:void", help="Void an invoice that is not paid, at Stripe too.")
app.command("usage_billing.commands.void_credit:settle", help="End the hold of an invoice that was paid twice.")
app.command("usage_billing.commands.void_credit:credit", help="Have Stripe issue a credit note, and refund it.")


@contextmanager
def asked_of_billing(settings: Settings, *, charging: bool = False) -> Generator[BillingService]:
    """billing's service for a command; its errors end the command with a message."""
    try:
        with open_service(settings, charging=charging) as service:
            yield service
    except (UnknownInvoice, NoSuchLine, NotSimulable) as error:
        wrong_usage(str(error))
    except AWAY as error:
        fail(str(error))


def _print_json(document: Any) -> None:
    print(json_format.dumps(document, indent=2, ensure_ascii=False))


@app.command
def show(invoice_id: InvoiceId, /) -> int:
    """Print an invoice as JSON."""
    with asked_of_billing(settings_for("invoice")) as service:
        _print_json(service.invoice(invoice_id).document())
    return DONE


@app.command
def explain(
    invoice_id: InvoiceId,
    /,
    *,
    line: Annotated[int | None, Parameter(help="Only this line, numbered from 0, with its events.")] = None,
    events: Annotated[bool, Parameter(help="With the events behind each line.", negative="")] = False,
    csv: Annotated[bool, Parameter(help="The events alone, as CSV.", negative="")] = False,
) -> int:
    """Explain every amount of an invoice, down to the events behind it."""
    with asked_of_billing(settings_for("invoice")) as service:
        if csv:
            for block in service.line_events(invoice_id, line):
                print(block, end="")
        elif events or line is not None:
            for text in service.explain_events(invoice_id, line):
                print(text)
        else:
            print("\n".join(service.explain(invoice_id)))
    return DONE


@app.command
def verify(
    invoice_id: Annotated[str | None, Parameter(help="Id of the invoice, inv_…", name="ID")] = None,
    /,
    *,
    all: Annotated[bool, Parameter(help="Every invoice.", name="--all", negative="")] = False,
    organization: Annotated[str | None, Parameter(help="With --all: only this organization's.")] = None,
) -> int:
    """Recompute an invoice, or all, from raw events and the price snapshot; 1 when one differs."""
    settings = settings_for("invoice")
    if (invoice_id is None) is not all:
        wrong_usage("name one invoice, or --all")
    with asked_of_billing(settings) as service:
        found = service.verify_all(organization) if invoice_id is None else [service.verify(invoice_id)]
    wrong = [each for each in found if not each.ok]
    for each in wrong:
        for difference in each.differences:
            print(difference if invoice_id is not None else f"{each.invoice_id}: {difference}")
    if invoice_id is None:
        print(f"{len(found) - len(wrong)} of {len(found)} invoices verified")
    elif not wrong:
        print(f"{invoice_id} verified: {found[0].recomputed}")
    return FAILED if wrong else DONE


@app.command
def preview(
    identifier: Annotated[str, Parameter(help="Id of a customer, or of a subscription (sub_…).", name="ID")],
    /,
    *,
    organization: str = DEFAULT_ORGANIZATION,
) -> int:
    """Price the open cycle with the engine that invoices, as JSON."""
    is_subscription = identifier.startswith("sub_")
    with asked_of_billing(settings_for("invoice")) as service:
        subscriptions = [
            subscription
            for subscription in service.context.catalog.view.all(Subscription, organization)
            if identifier == (subscription.id if is_subscription else subscription.customer_id)
        ]
        found = service.preview(subscriptions, system_clock())
    if not found:
        wrong_usage("no subscription runs now")
    _print_json(found)
    return DONE


@app.command
def simulate(
    customer: Annotated[str, Parameter(help="Id of the customer whose past usage is priced.")],
    /,
    *,
    product: Annotated[str, Parameter(help="A product's id, or a file with one as the API takes it, in JSON.")],
    from_: Annotated[str | None, Parameter(name="--from", help="RFC 3339; a year ago without it.")] = None,
    to: Annotated[str | None, Parameter(help="RFC 3339; now without it.")] = None,
    organization: str = DEFAULT_ORGANIZATION,
) -> int:
    """Price a customer's real past usage by any product, cycle by cycle, beside what was billed, as JSON."""
    settings = settings_for("invoice")
    past = past_year(system_clock())
    try:
        period = Cycle(
            past.start_us if from_ is None else parse_rfc3339(from_), past.end_us if to is None else parse_rfc3339(to)
        )
        path = Path(product)
        spec = ProductSpec.model_validate(loads_exact(path.read_text())) if path.suffix == ".json" else product
    except ValidationError as error:
        wrong_usage("; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()))
    except (ValueError, OSError) as error:
        wrong_usage(str(error))
    with asked_of_billing(settings) as service:
        found = service.simulate(organization, customer, spec, period)
    _print_json(found)
    return DONE
