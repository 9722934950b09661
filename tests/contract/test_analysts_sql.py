"""The SQL of `usage-billing analysts` on each version: understood, with settings that there are.

No engine of these tests keeps users that are made by SQL, so each statement is refused in the end, and by what it is
refused says how far it came. What the users then may do, test_analysts.py tests on the local server.
"""

from __future__ import annotations

import re

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from deploy.local.clickhouse_http import ClickHouseLocal
from schemas.settings import Settings
from warehouse.analysts import LIMITS, PUBLIC_VIEWS, Analyst, create_statements, list_statement, remove_statements
from warehouse.client import server_code
from warehouse.migrate import migrate

# ACCESS_DENIED; no storage for what would be made; no such user, who was not made.
REFUSED = {497, 514, 192, 511}
ANALYSTS = (Analyst("anna", "o'brien \\ sons"), Analyst("olga"))


def refusal(client: Client, statement: str) -> int | None:
    """The code of the error that answers; None: the statement is done."""
    try:
        client.command(statement)
    except DatabaseError as error:
        return server_code(error)
    return None


@pytest.mark.parametrize("analyst", ANALYSTS, ids=[analyst.name for analyst in ANALYSTS])
@pytest.mark.parametrize("replace", [True, False])
def test_a_server_understands_every_statement(
    clickhouse_client: Client, database: str, analyst: Analyst, replace: bool
) -> None:
    for statement in create_statements(analyst, database, "billing", "ab" * 32, replace=replace):
        assert refusal(clickhouse_client, statement) in REFUSED, statement
    for statement in remove_statements(analyst.name, database):
        assert refusal(clickhouse_client, statement) in {None, *REFUSED}, statement
    assert refusal(clickhouse_client, list_statement()) in {None, *REFUSED}


def test_the_version_has_every_limit(clickhouse_client: Client) -> None:
    query = "SELECT name FROM system.settings WHERE name IN {names:Array(String)}"
    rows = clickhouse_client.query(query, parameters={"names": list(LIMITS)}).result_rows
    assert {row[0] for row in rows} == {*LIMITS}


def test_the_views_read_the_tables_that_are_named(
    clickhouse: ClickHouseLocal, clickhouse_client: Client, database: str
) -> None:
    """A table without its right would be a view that fails; without its row policy, one that shows too much."""
    migrate(Settings(clickhouse_dsn=clickhouse.dsn(database)))
    query = "SELECT name, engine, as_select FROM system.tables WHERE database = currentDatabase()"
    rows = clickhouse_client.query(query).result_rows
    names = {str(name) for name, _, _ in rows}
    queries = {str(name): str(text) for name, engine, text in rows if engine == "View"}

    def reads(view: str) -> set[str]:
        named = {*re.findall(rf"{database}\.`?(\w+)", queries[view])} & names
        return {table for name in named for table in (reads(name) if name in queries else {name})}

    assert {view: reads(view) for view in PUBLIC_VIEWS} == {view: {*tables} for view, tables in PUBLIC_VIEWS.items()}
