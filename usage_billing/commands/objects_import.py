"""customers import, subscriptions import: a table file → the catalog, checked whole before the first is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from catalog.store import CatalogStore, CatalogUnavailable
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.settings import Settings
from usage_billing.commands.import_report import counted, located, readable_file, report_errors
from usage_billing.console import DONE, FAILED, errors, fail, out, settings_for, wrong_usage
from usage_billing.importing.check import LineError
from usage_billing.importing.mapping import WrongMapping, pairs, zone_of
from usage_billing.importing.objects import (
    Checked,
    Columns,
    CustomerImporter,
    Importer,
    SubscriptionImporter,
    write_objects,
)
from usage_billing.importing.tables import Dialect, UnreadableTable, columns_of, format_of, rows

customers = App(name="customers", help="Customers: import a file.")
subscriptions = App(name="subscriptions", help="Subscriptions: import a file.")

_SHOWN_MAX = 3
File = Annotated[
    Path, Parameter(help="The file, or - for standard input (then give --format).", allow_leading_hyphen=True)
]
OrganizationId = Annotated[str, Parameter(name="--organization", help="Whose they become.")]
DryRun = Annotated[bool, Parameter(help="Check everything, show the first ones, write nothing.", negative="")]
Map = Annotated[
    list[str] | None, Parameter(help="FIELD=COLUMN: which column a field is in; may be repeated.", negative="")
]
Set = Annotated[list[str] | None, Parameter(help="FIELD=VALUE: the same for every row; may be repeated.", negative="")]
Ignore = Annotated[str | None, Parameter(help="Columns that are left out, A,B.")]
SkipExisting = Annotated[
    bool, Parameter(help="Leave what exists as it is, though the file says something else of it.", negative="")
]
Separator = Annotated[str | None, Parameter(help="Between a CSV file's columns; by default a comma.")]
Encoding = Annotated[str, Parameter(help="Of a text file.")]
Format = Annotated[str | None, Parameter(help="csv, jsonl or parquet, when the name does not say.")]
ErrorsTo = Annotated[Path | None, Parameter(help="Write every error as CSV: line, column, code, message.")]
Zone = Annotated[str | None, Parameter(help="IANA zone of times without an offset, such as UTC.")]


@customers.command(name="import")
def import_customers(
    path: File,
    *,
    organization: OrganizationId = DEFAULT_ORGANIZATION,
    dry_run: DryRun = False,
    map: Map = None,
    set: Set = None,
    ignore: Ignore = None,
    skip_existing: SkipExisting = False,
    separator: Separator = None,
    encoding: Encoding = "utf-8",
    format: Format = None,
    errors_to: ErrorsTo = None,
) -> int:
    """Import a .csv, .jsonl or .parquet file (.gz and .zst too) with a customer's fields as columns.

    Every row is checked before the first is written. Importing a file again, or with rows appended, adds what is new.
    """
    columns = _columns(map, set, ignore)
    dialect = Dialect("\t" if separator == "\\t" else separator, encoding)
    return _run(
        CustomerImporter, "customer", path, organization, columns, dialect, format, errors_to, dry_run=dry_run,
        skip_existing=skip_existing, zone=None,
    )  # fmt: skip


@subscriptions.command(name="import")
def import_subscriptions(
    path: File,
    *,
    organization: OrganizationId = DEFAULT_ORGANIZATION,
    dry_run: DryRun = False,
    map: Map = None,
    set: Set = None,
    ignore: Ignore = None,
    skip_existing: SkipExisting = False,
    time_zone: Zone = None,
    separator: Separator = None,
    encoding: Encoding = "utf-8",
    format: Format = None,
    errors_to: ErrorsTo = None,
) -> int:
    """Import a .csv, .jsonl or .parquet file (.gz and .zst too) with a subscription's fields as columns.

    Every row is checked before the first is written: its customer and product exist, and nothing is charged twice. A
    subscription is known by its customer, product and start, so importing a file again adds what is new.
    """
    columns = _columns(map, set, ignore)
    dialect = Dialect("\t" if separator == "\\t" else separator, encoding)
    return _run(
        SubscriptionImporter, "subscription", path, organization, columns, dialect, format, errors_to, dry_run=dry_run,
        skip_existing=skip_existing, zone=time_zone,
    )  # fmt: skip


def _columns(map: list[str] | None, set: list[str] | None, ignore: str | None) -> Columns:
    try:
        ignored = frozenset(name.strip() for name in (ignore or "").split(",") if name.strip())
        return Columns(pairs(map or (), "--map"), pairs(set or (), "--set"), ignored)
    except WrongMapping as reason:
        wrong_usage(str(reason))


def _run(
    importer: type[Importer],
    noun: str,
    path: Path,
    organization: str,
    columns: Columns,
    dialect: Dialect,
    format: str | None,
    errors_to: Path | None,
    *,
    dry_run: bool,
    skip_existing: bool,
    zone: str | None,
) -> int:
    settings = settings_for(f"{noun}s-import")
    found: list[LineError] = []
    try:
        with readable_file(path) as file:
            kind = f".{format.lower()}" if format else format_of(path)
            time_zone = zone_of(zone)
            columns.check(columns_of(file, kind, dialect), importer.fields)
            # The check applies rows to a view of its own, which follows the log no longer.
            with CatalogStore(settings) as scratch:
                view = scratch.view
            if view.organization(organization) is None:
                wrong_usage(f"there is no organization {organization}")
            check = importer(view, organization, time.time_ns() // 1000, time_zone)
            checked = check.check(rows(file, kind, dialect), columns, found, skip_existing=skip_existing)
    except (WrongMapping, UnreadableTable, OSError) as reason:
        fail(located(path, reason))
    except CatalogUnavailable as reason:
        fail(str(reason))
    if found:
        report_errors(path, found, errors_to)
        fail(f"{path}: nothing was written; {counted(len(found), 'error')}")
    if not checked.new and not checked.present:
        fail(f"{path}: there is no row below the columns")
    if dry_run:
        for _, state in checked.new[:_SHOWN_MAX]:
            print(state.model_dump_json(exclude_defaults=True))
        out.print(f"nothing was written; {counted(len(checked.new), noun)} would be, {checked.present:,} exist already")
        return DONE
    return _write(settings, noun, path, checked, errors_to)


def _write(settings: Settings, noun: str, path: Path, checked: Checked, errors_to: Path | None) -> int:
    found: list[LineError] = []
    bar = Progress(
        TextColumn("importing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
    )
    try:
        with CatalogStore(settings) as store, bar:
            task = bar.add_task("importing", total=len(checked.new))
            written = write_objects(store, checked.new, found, lambda done: bar.update(task, advance=done))
    except CatalogUnavailable as reason:
        fail(f"{path}: {reason}; it is safe to import the file again")
    out.print(f"{counted(written, noun)} written, {checked.present:,} existed already")
    if found:
        report_errors(path, found, errors_to)
        return FAILED
    return DONE
