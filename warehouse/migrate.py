"""schemas/clickhouse/*.sql → ClickHouse: each file once, in order, remembered with its checksum.

Two runs at once are safe without a lock, which ClickHouse does not have: every statement is written so that it may run
again (IF NOT EXISTS), and both runs record the same rows. A run that was killed is finished by the next one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files

import structlog

from schemas.settings import Settings
from warehouse.client import ClickHouseError, Client, connect, database_name, unavailable
from warehouse.one_server import check_different_servers, check_one_server
from warehouse.placement import check_record, placement, read_record, write_record

log = structlog.get_logger(__name__)

# Text that made the same tables in another spelling, which versions before 26.8 do not read.
_FORMER_CHECKSUMS = {
    "0001_usage": "ff2ea3334ae86fda1201d54d30e6f74840a3e99224e77753e191872f9538c6a9",
    "0002_projections": "883b1debd4389b6d6b6bd2f0a8beac92d17ba13ae6e463495d862df5d7592c11",
    "0007_accepted": "57852a85dfad52f058dc214d60f68f745cff7cf8c66b0d39a6824755040f77d4",
    "0011_wide_amounts": "6b234ef8f0586e7aeebe4fe6533b37173f113d6a0bee918cfc462513f8cb15fe",
}

_FILE_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")
_DATABASE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_END_OF_STATEMENT = re.compile(r";[ \t]*(?:\n|\Z)")
_RECORDS = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    number UInt32,
    name String,
    checksum FixedString(64) COMMENT 'SHA-256 of the file',
    applied_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree ORDER BY (number, name, checksum)
COMMENT 'Which migrations this database has had'
"""


class ChangedMigration(Exception):
    """A migration that was applied is no longer what it was: what it would make now is not what is there."""


class InvalidDatabaseName(ValueError):
    """The DSN names a database that could not be written into SQL."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. number: its order, from 1. checksum: SHA-256 in hex."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def applied_as(self) -> frozenset[tuple[str, str]]:
        """(name, checksum) under which a database may have had it."""
        former = _FORMER_CHECKSUMS.get(self.name, self.checksum)
        return frozenset({(self.name, self.checksum), (self.name, former)})

    @property
    def statements(self) -> tuple[str, ...]:
        """Each ends with a semicolon at the end of a line."""
        parts = (part.strip() for part in _END_OF_STATEMENT.split(self.text))
        return tuple(part for part in parts if part)


def migrations() -> tuple[Migration, ...]:
    """All files, ascending. A name that is no migration's, or a number twice, is an error of ours."""
    found = sorted(file.name for file in (files("schemas") / "clickhouse").iterdir() if file.name.endswith(".sql"))
    made: list[Migration] = []
    for name in found:
        match = _FILE_NAME.fullmatch(name)
        assert match is not None, f"{name} is no migration's name"
        assert not made or int(match[1]) > made[-1].number, f"{name}: the number is another's"
        text = (files("schemas") / "clickhouse" / name).read_text()
        made.append(Migration(int(match[1]), name.removesuffix(".sql"), text))
    return tuple(made)


def migrate(settings: Settings) -> list[str]:
    """Make each shard's database and bring it up to date; names of the migrations applied by this call.

    Where there are several shards, each is told which has a partition. Raises WarehouseUnavailable (Misplaced,
    SeveralServers), ChangedMigration or InvalidDatabaseName; what was applied before stays, and the next run goes on
    from there.
    """
    shards = range(len(settings.clickhouse_dsns))
    check_different_servers([_make_database(settings, shard) for shard in shards])
    made: list[str] = []
    with ExitStack() as open_clients:
        clients = [open_clients.enter_context(connect(settings, shard=shard)) for shard in shards]
        try:
            for client in clients:
                made += [name for name in apply(client, migrations()) if name not in made]
            _place(clients, settings.event_partitions)
        except ClickHouseError as error:
            raise unavailable(error) from error
    return made


def _make_database(settings: Settings, shard: int) -> str:
    """Its uuid."""
    database = database_name(settings, shard)
    if not _DATABASE_NAME.fullmatch(database):
        raise InvalidDatabaseName(f"{database!r}: letters, digits and _ are allowed in USAGE_CLICKHOUSE_DSN's database")
    with connect(settings, shard=shard, database="default") as client:
        try:
            client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
        except ClickHouseError as error:
            raise unavailable(error) from error
    return check_one_server(settings, database, shard)


def _place(clients: Sequence[Client], partitions: int) -> None:
    """Have every shard say where each partition is. One server alone says nothing."""
    records = [read_record(client, with_usage=True) for client in clients]
    if len(clients) == 1:
        check_record(records[0], 0, 1)
        return
    placed = placement(records, partitions)
    for index, (client, record) in enumerate(zip(clients, records, strict=True)):
        if record.own is None or record.placed != placed:
            write_record(client, index, placed)
            log.info("partitions_placed", shard=index + 1, here=sum(at.shard == index for at in placed.values()))


def apply(client: Client, wanted: tuple[Migration, ...]) -> list[str]:
    """Apply what the client's database has not had. Raises ChangedMigration before anything is changed."""
    client.command(_RECORDS)
    rows = client.query("SELECT number, name, toString(checksum) FROM schema_migrations").result_rows
    had: dict[int, set[tuple[str, str]]] = {}
    for number, name, checksum in rows:
        had.setdefault(int(number), set()).add((str(name), str(checksum)))
    for migration in wanted:
        if not had.get(migration.number, set()) <= migration.applied_as:
            applied = ", ".join(sorted(name for name, _ in had[migration.number]))
            raise ChangedMigration(
                f"migration {migration.name} differs from {applied} as it was applied; write a new one instead"
            )
    made: list[str] = []
    for migration in wanted:
        if migration.number in had:
            continue
        for statement in migration.statements:
            client.command(statement)
        client.insert(
            "schema_migrations",
            [[migration.number, migration.name, migration.checksum.encode()]],
            column_names=["number", "name", "checksum"],
        )
        made.append(migration.name)
        log.info("migration_applied", migration=migration.name)
    return made
