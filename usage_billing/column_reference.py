"""ClickHouse migrations → docs/columns.md: the columns of every table.

`python -m usage_billing.column_reference` prints it; a test compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import groupby
from typing import NamedTuple

_TABLE = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)\s*\n\(\n(.*?)^\)", re.M | re.S)
_ALTERED = re.compile(r"^ALTER TABLE (\w+)(.*?);$", re.M | re.S)
_TYPE = r"[A-Z]\w*(?:\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))?"
_COLUMN = re.compile(rf"^ {{4}}(?P<name>[a-z]\w*) (?P<type>{_TYPE})(?P<rest>.*)$", re.M)
_ADDED = re.compile(rf"ADD COLUMN (?:IF NOT EXISTS )?(?P<name>\w+) (?P<type>{_TYPE})(?P<rest>[^\n]*)")
_CHANGED = re.compile(rf"MODIFY COLUMN (\w+) ({_TYPE})")
_COMMENT = re.compile(r"COMMENT '((?:[^']|'')*)'")


class Column(NamedTuple):
    """meaning: the column's comment, empty without one."""

    table: str
    name: str
    type: str
    meaning: str


def migrations() -> list[str]:
    """The text of every migration, in the order in which they are applied."""
    folder = files("schemas") / "clickhouse"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [file.read_text() for file in found]


def columns() -> list[Column]:
    """Columns of the tables as the last migration leaves them."""
    found: dict[tuple[str, str], Column] = {}

    def add(table: str, matches: Iterator[re.Match[str]]) -> None:
        for match in matches:
            comment = _COMMENT.search(match["rest"])
            meaning = comment[1].replace("''", "'") if comment else ""
            found[table, match["name"]] = Column(table, match["name"], match["type"], meaning)

    for text in migrations():
        for table, body in _TABLE.findall(text):
            add(table, _COLUMN.finditer(body))
        for table, body in _ALTERED.findall(text):
            add(table, _ADDED.finditer(body))
            for name, changed in _CHANGED.findall(body):
                found[table, name] = found[table, name]._replace(type=changed)
    return list(found.values())


_HEAD = """# Tables and columns

Made by `python -m usage_billing.column_reference` from the migrations. Instants are UTC; amounts are in major units.

Analysts read views. `usage` has the events that count. `meters` shows the newest version of each row of
`stored_meters`, with the same columns; so do `organizations`, `customers`, `products`, `subscriptions`, `invoices`,
`invoice_lines`, `orders`, `alerts` and `adjustments`. The views `finance_…` answer as the commands `usage-billing
finance` do. The tables below may hold several versions of a row: read them with `FINAL`.
"""
_INTERNAL = re.compile(r"\w+_in$|totals_requests|audit_windows|store_marks")


def page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for table, of_table in groupby(sorted(columns(), key=lambda column: column.table), lambda column: column.table):
        if not _INTERNAL.fullmatch(table):
            rows = (f"| `{column.name}` | `{column.type}` | {column.meaning} |" for column in of_table)
            parts.append("\n".join((f"## {table}\n", "| column | type | meaning |", "|---|---|---|", *rows)) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
