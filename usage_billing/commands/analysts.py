"""analysts create|list|remove: read-only users of ClickHouse, in the local server's files or as SQL for a server."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from cyclopts import App, Parameter
from rich.table import Table

from catalog.store import CatalogStore, CatalogUnavailable
from deploy.local import stack
from deploy.local.clickhouse_users import AnalystExists, analysts, remove_analyst, write_analyst
from schemas.organization import Organization
from schemas.settings import CLICKHOUSE_USER, Settings
from usage_billing.console import DONE, errors, fail, out, settings_for, wrong_usage
from warehouse.analysts import Analyst, InvalidName, create_statements, list_statement, remove_statements
from warehouse.client import database_name

app = App(name="analysts", help="Read-only users of ClickHouse, for people and their tools.")

AsSql = Annotated[
    bool, Parameter(name="--sql", help="Print SQL for the local server too, as for any other.", negative="")
]
_RESERVED = frozenset({"default", CLICKHOUSE_USER})


@app.command
def create(
    name: str,
    *,
    organization: Annotated[str | None, Parameter(help="Whose rows it reads; without: every organization's.")] = None,
    replace: Annotated[bool, Parameter(help="With a new password, if there is one.", negative="")] = False,
    sql: AsSql = False,
) -> int:
    """Make a user who reads the public views, within limits, and print its password, this once.

    The local ClickHouse is restarted, which takes about a second. For another server, the statements are printed for
    its administrator: `usage-billing analysts create NAME | clickhouse-client`. The password goes to stderr.
    """
    settings = settings_for("analysts")
    analyst = _analyst(name, organization, settings)
    _check_organization(settings, organization)
    password = secrets.token_urlsafe(24)
    digest = hashlib.sha256(password.encode()).hexdigest()
    database = database_name(settings)
    if sql or not _is_local(settings):
        _print_sql(create_statements(analyst, database, _service_user(settings), digest, replace=replace))
        errors.print(f"password of {name}, shown this once: {password}", markup=False, soft_wrap=True)
        return DONE
    try:
        write_analyst(_directory(settings), analyst, database, digest, replace=replace)
    except AnalystExists as error:
        wrong_usage(f"{error}: --replace gives it a new password")
    _have_it_read(settings)
    rows = "every organization" if organization is None else f"organization {organization}"
    address = f"http://127.0.0.1:{settings.local_clickhouse_port}"
    out.print(f"{name} reads {rows} at {address}, database {database}", markup=False, soft_wrap=True)
    out.print(f"password  {password}   (shown this once)", markup=False, soft_wrap=True)
    return DONE


@app.command(name="list")
def list_(*, sql: AsSql = False) -> int:
    """List analysts and whose rows they read; for a server, print the query that does."""
    settings = settings_for("analysts")
    if sql or not _is_local(settings):
        _print_sql([list_statement()])
        return DONE
    table = Table("name", "organization")
    try:
        for analyst in analysts(_directory(settings)):
            table.add_row(analyst.name, "(all)" if analyst.organization_id is None else analyst.organization_id)
    except ValueError as error:
        fail(f"a file in {_directory(settings) / 'users.d'} is no analyst's: {error}")
    out.print(table)
    return DONE


@app.command
def remove(name: str, *, sql: AsSql = False) -> int:
    """Remove an analyst; the local ClickHouse is restarted, for another server the statements are printed."""
    settings = settings_for("analysts")
    _analyst(name, None, settings)
    if sql or not _is_local(settings):
        _print_sql(remove_statements(name, database_name(settings)))
        return DONE
    if not remove_analyst(_directory(settings), name):
        wrong_usage(f"there is no analyst {name}")
    _have_it_read(settings)
    return DONE


def _analyst(name: str, organization: str | None, settings: Settings) -> Analyst:
    if name in _RESERVED | {_service_user(settings)}:
        wrong_usage(f"{name} is a user of the services")
    try:
        return Analyst(name, organization)
    except InvalidName as error:
        wrong_usage(str(error))


def _check_organization(settings: Settings, organization: str | None) -> None:
    if organization is None:
        return
    try:
        with CatalogStore(settings) as catalog:
            if catalog.view.get(Organization, organization, organization) is None:
                wrong_usage(f"there is no organization {organization}")
    except CatalogUnavailable as error:
        fail(str(error))


def _is_local(settings: Settings) -> bool:
    return "clickhouse_dsn" not in settings.model_fields_set


def _directory(settings: Settings) -> Path:
    """The local ClickHouse's; it may not have been started yet."""
    return settings.local_dir.absolute() / "clickhouse"


def _service_user(settings: Settings) -> str:
    return unquote(urlsplit(settings.clickhouse_dsn).username or "") or "default"


def _have_it_read(settings: Settings) -> None:
    """The engine reads its users at its start only."""
    try:
        if not stack.restart(settings, "clickhouse"):
            out.print("in force from the next `usage-billing up` on", style="dim")
    except stack.StackFailed as error:
        fail(str(error))


def _print_sql(statements: Iterable[str]) -> None:
    """Each on a line, and none wrapped: it is for another program."""
    for statement in statements:
        print(f"{statement};")
