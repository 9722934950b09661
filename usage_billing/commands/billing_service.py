"""billing, billing retry|approve: the service that closes by itself, and what people ask of it."""

from __future__ import annotations

import getpass
from typing import Annotated

from cyclopts import App, Parameter

from usage_billing.console import DONE, FAILED, out, settings_for

app = App(name="billing", help="Close due cycles continuously and follow payments; retry or approve by hand.")
Ids = Annotated[str, Parameter(help="Invoices, inv_…; without any, all that it could be.", name="ID")]


@app.default
def run() -> int:
    """Close due cycles continuously and follow payments."""
    from billing_job.worker import run as work

    return work(settings_for("billing"))


@app.command
def retry(*ids: Ids, organization: Annotated[str | None, Parameter(help="Only this organization's.")] = None) -> int:
    """Try again now what waits, is held or failed, without its usual rest; also what had failed for good."""
    from usage_billing.commands.billing import asked_of_billing, print_report, progress_bar, shown_on

    settings = settings_for("billing")
    with progress_bar() as bar, asked_of_billing(settings, charging=True) as service:
        report = service.retry(ids, organization_id=organization, by=getpass.getuser(), progress=shown_on(bar))
    print_report(report)
    return DONE if report.ok else FAILED


@app.command
def approve(*ids: Ids, organization: Annotated[str | None, Parameter(help="Only this organization's.")] = None) -> int:
    """Let invoices be charged, where an organization wants each to be approved; the next close charges them."""
    from usage_billing.commands.billing import asked_of_billing

    with asked_of_billing(settings_for("billing")) as service:
        approved = service.approve(ids, organization_id=organization, by=getpass.getuser())
    for invoice in approved:
        out.print(f"  {invoice.id}: {invoice.customer_id}, {invoice.document()['total']}", markup=False)
    out.print(f"  {len(approved)} invoices approved")
    return DONE
