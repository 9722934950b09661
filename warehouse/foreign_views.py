"""materialized views of others on our tables → which of them count twice what an insert repeats.

A retry carries the token of the attempt before it: tables that remember tokens take each block once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from warehouse.client import Client
from warehouse.own_objects import is_ours

_VIEWS = """
    SELECT database, name, create_table_query, toString(uuid) FROM system.tables
    WHERE engine = 'MaterializedView' AND (database, name) IN
    (
        SELECT dependent.1, dependent.2 FROM
        (
            SELECT arrayJoin(arrayZip(dependencies_database, dependencies_table)) AS dependent
            FROM system.tables WHERE database = currentDatabase()
        )
    )
    ORDER BY database, name
"""
_ENGINE = "SELECT engine, engine_full FROM system.tables WHERE database = {database:String} AND name = {name:String}"
_TARGET = re.compile(r"CREATE MATERIALIZED VIEW [^(]*? TO (?:`([^`]+)`|(\w+))\.(?:`([^`]+)`|(\w+))")
_WINDOW = re.compile(r"non_replicated_deduplication_window = [1-9]")
# Those of servers with replicas remember tokens by themselves; in a ReplacingMergeTree repeated rows collapse.
_SAFE = ("Replicated", "Shared", "Replacing", "Null")


@dataclass(frozen=True, slots=True)
class ForeignView:
    """name: with its database. target: the table that it fills. remembers: whether a repeated block adds nothing."""

    name: str
    target: str
    remembers: bool


def foreign_views(client: Client) -> list[ForeignView]:
    """Views that no migration made, in alphabetical order. Raises ClickHouseError."""
    own = str(client.query("SELECT currentDatabase()").result_rows[0][0])
    found: list[ForeignView] = []
    for database, name, statement, uuid in client.query(_VIEWS).result_rows:
        if database == own and is_ours(str(name)):
            continue
        target = target_of(str(statement), str(database), str(uuid))
        rows = client.query(_ENGINE, parameters={"database": target[0], "name": target[1]}).result_rows
        remembers = not rows or remembers_tokens(str(rows[0][0]), str(rows[0][1]))
        found.append(ForeignView(f"{database}.{name}", ".".join(target), remembers))
    return found


def target_of(statement: str, database: str, uuid: str) -> tuple[str, str]:
    """Database and table that a view's CREATE statement names; without one, the table that was made for it."""
    match = _TARGET.match(statement)
    if match is None:
        return database, f".inner_id.{uuid}"
    return match[1] or match[2], match[3] or match[4]


def remembers_tokens(engine: str, definition: str) -> bool:
    """Whether a block that is inserted again with its token adds nothing. definition: the engine with its settings."""
    return engine.startswith(_SAFE) or _WINDOW.search(definition) is not None
