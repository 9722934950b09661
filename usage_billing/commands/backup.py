"""backup, restore: what only Kafka and ClickHouse hold ⇄ a directory."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from confluent_kafka import KafkaException
from cyclopts import Parameter
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from runtime.kafka.admin import TopicMismatch
from usage_billing.backup.files import DamagedBackup
from usage_billing.backup.manifest import Manifest
from usage_billing.backup.run import (
    BackupExists,
    OtherPartitions,
    Parts,
    ServicesRun,
    SeveralShards,
    check_backup,
    create_backup,
    restore_backup,
)
from usage_billing.backup.tables import RowsMissing, TableNotEmpty
from usage_billing.backup.topics import IncompleteLog, NotEmpty, NotRestored
from usage_billing.console import DONE, errors, fail, out, settings_for
from warehouse.client import WarehouseUnavailable
from warehouse.migrate import ChangedMigration, InvalidDatabaseName

Directory = Annotated[Path, Parameter(help="Of the backup: a manifest and a file for each topic and table.")]
Only = Annotated[Literal["kafka", "clickhouse"] | None, Parameter(help="One of the two stores instead of both.")]
_UNTOUCHED = (DamagedBackup, NotEmpty, TableNotEmpty, ServicesRun, OtherPartitions, SeveralShards, TopicMismatch)
_AWAY = (KafkaException, WarehouseUnavailable, ChangedMigration, InvalidDatabaseName, OSError)


def backup(directory: Directory, /, *, only: Only = None) -> int:
    """Save catalog, ledger, alerts and deliveries of Kafka, and ClickHouse with the events it does not have yet.

    Services may run meanwhile. The directory must be new or empty; it is whole once it has a manifest.json.
    """
    settings = settings_for("backup")
    try:
        with _shown("saving") as report:
            manifest = create_backup(settings, directory, _parts(only), report)
    except (BackupExists, SeveralShards, IncompleteLog, DamagedBackup, *_AWAY) as error:
        fail(str(error))
    _tell(manifest)
    return DONE


def restore(
    directory: Directory,
    /,
    *,
    only: Only = None,
    check: Annotated[bool, Parameter(help="Check the backup and write nothing.", negative="")] = False,
    going_on: Annotated[
        bool, Parameter(name="--continue", help="Go on after a restore that was interrupted.", negative="")
    ] = False,
) -> int:
    """Write a backup into empty topics and tables, which are created; stop all services first.

    The whole backup and the target are checked before anything is written.
    """
    settings = settings_for("restore")
    try:
        if check:
            _tell(check_backup(directory))
            return DONE
        with _shown("restoring") as report:
            manifest = restore_backup(settings, directory, _parts(only), report, going_on=going_on)
    except _UNTOUCHED as error:
        fail(f"{error}; nothing was written")
    except (NotRestored, RowsMissing, *_AWAY) as error:
        fail(f"{error}; `usage-billing restore {directory} --continue` goes on")
    _tell(manifest)
    out.print("start the services, then check: usage-billing audit, usage-billing invoice verify --all")
    return DONE


def _parts(only: str | None) -> Parts:
    return Parts(kafka=only != "clickhouse", clickhouse=only != "kafka")


@contextmanager
def _shown(doing: str) -> Generator[Callable[[str, int], None]]:
    with Progress(
        TextColumn(f"{doing} {{task.description}}"),
        BarColumn(),
        TextColumn("{task.completed:,}"),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(part: str, done: int) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(part, total=None)
            bar.update(tasks[part], advance=done)

        yield report


def _tell(manifest: Manifest) -> None:
    for topic in manifest.topics:
        out.print(f"  {topic.topic}: {topic.records:,} records", markup=False)
    for table in manifest.tables:
        out.print(f"  {table.table}: {table.rows:,} rows", markup=False)
    out.print(f"  backup of {manifest.created_at}, format {manifest.version}", markup=False)
