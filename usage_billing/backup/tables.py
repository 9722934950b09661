"""ClickHouse's tables ⇄ files of a backup, as of one watermark of usage.events.

Tables that the sink makes of catalog and ledger are left out: it makes them again, of the ledger that was restored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from schemas.watermark import Watermark
from usage_billing.backup.files import DamagedBackup, compressed, lines
from usage_billing.backup.manifest import SavedTable
from warehouse.client import Client
from warehouse.watermark_sql import below

BY_PLACE = ("usage_events", "usage_accepted", "usage_voids", "accepted_batches", "ingest_batches")
"""Rows below the watermark. Coverage is last: what it says is stored is stored."""
OTHERS = ("kafka_epochs", "stored_alerts", "stored_dead_letters", "stored_accruals")
SAVED = (*OTHERS, *BY_PLACE)
PROJECTED = (
    "stored_organizations",
    "stored_meters",
    "stored_customers",
    "stored_products",
    "stored_subscriptions",
    "stored_invoices",
    "stored_invoice_lines",
    "stored_orders",
    "stored_adjustments",
    "projection_progress",
    "projection_failures",
)
"""Emptied by a restore: rows of a ledger that went on further than the restored one would stay in force."""
PASSING = (
    "totals_requests", "audit_windows", "store_marks", "coverage_checkpoints", "schema_migrations", "partition_shards",
)  # fmt: skip
"""Neither saved nor emptied: made when they are needed."""

_FORMAT = "TabSeparatedWithNamesAndTypes"
_ROWS_PER_INSERT = 200_000
_READ = {"session_timezone": "UTC", "output_format_tsv_crlf_end_of_line": 0, "max_execution_time": 0}
_WRITE = {
    "session_timezone": "UTC",
    "input_format_with_names_use_header": 1,
    "input_format_with_types_use_header": 0,
    "insert_deduplicate": 0,  # blocks that are alike are rows of the backup all the same
    "async_insert": 0,
    "max_execution_time": 0,
}
Progress = Callable[[int], None]


class TableNotEmpty(Exception):
    """There are rows already where a backup is to go."""


class RowsMissing(Exception):
    """ClickHouse took fewer rows than were sent."""


def save_table(client: Client, table: str, directory: Path, watermark: Watermark | None) -> SavedTable:
    """The table's rows; of BY_PLACE those below the watermark (None: all). Raises ClickHouseError, OSError."""
    condition, parameters = below(watermark) if table in BY_PLACE else ("1", {})
    columns = [
        str(name)
        for (name,) in client.query(
            "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
            " AND default_kind NOT IN ('ALIAS', 'MATERIALIZED') ORDER BY position",
            parameters={"table": table},
        ).result_rows
    ]
    file = f"clickhouse/{table}.tsv.zst"
    rows = -2  # the header has two lines
    listed = ", ".join(f"`{name}`" for name in columns)
    query = f"SELECT {listed} FROM {table} WHERE {condition}"
    source = cast(IO[bytes], client.raw_stream(query, parameters=parameters, settings=_READ, fmt=_FORMAT))
    try:
        with compressed(directory / file) as out:
            rest = b""
            while piece := source.read(1 << 20):
                whole, newline, rest = (rest + piece).rpartition(b"\n")
                if newline:
                    rows += _checked(table, whole, len(columns))
                    out.write(whole + newline)
    finally:
        source.close()
    if rest or rows < 0:
        raise DamagedBackup(f"{table}: ClickHouse broke off: {rest[:300].decode(errors='replace')}")
    return SavedTable(table, file, out.summary.size, out.summary.sha256, len(columns), rows)


def _checked(table: str, text: bytes, columns: int) -> int:
    """How many rows the lines are. An error in the midst of an answer is a line of another form."""
    found = text.split(b"\n")
    for line in found:
        if line.count(b"\t") != columns - 1:
            raise DamagedBackup(f"{table}: a line without {columns} columns: {line[:300].decode(errors='replace')}")
    return len(found)


def check_rows(directory: Path, saved: SavedTable) -> None:
    """Raises DamagedBackup."""
    rows = sum(_checked(saved.table, line, saved.columns) for line in lines(directory / saved.file)) - 2
    if rows != saved.rows:
        raise DamagedBackup(f"{directory / saved.file}: {rows} rows, not {saved.rows}")


def check_empty(client: Client, tables: Iterator[str]) -> None:
    """Raises TableNotEmpty."""
    for table in tables:
        if client.query(f"SELECT 1 FROM {table} LIMIT 1").result_rows:
            raise TableNotEmpty(
                f"ClickHouse's table {table} is not empty: restore into a new database, or use --continue "
                "after a restore that was interrupted, or --only kafka where ClickHouse lost nothing"
            )


def restore_table(client: Client, directory: Path, saved: SavedTable, progress: Progress) -> None:
    """Insert its rows; they collapse with what is there already. Raises ClickHouseError, RowsMissing, DamagedBackup."""
    if saved.table == "stored_accruals":  # the one that has no key by which rows collapse
        client.command("TRUNCATE TABLE stored_accruals")
    source = lines(directory / saved.file)
    header = [next(source), next(source)]
    while chunk := list(itertools.islice(source, _ROWS_PER_INSERT)):
        body = b"\n".join((*header, *chunk)) + b"\n"
        summary = client.raw_insert(saved.table, insert_block=body, settings=_WRITE, fmt=_FORMAT)
        if summary.written_rows < len(chunk):
            raise RowsMissing(f"{saved.table}: {len(chunk)} rows were sent, {summary.written_rows} written")
        progress(len(chunk))


def empty_projections(client: Client) -> None:
    for table in PROJECTED:
        client.command(f"TRUNCATE TABLE {table}")
