"""schemas/clickhouse/*.sql → ClickHouse: each file once, in order, remembered with its checksum.

Two runs at once are safe without a lock, which ClickHouse does not have: every statement is written so that it may run
again (IF NOT EXISTS), and both runs record the same rows. A run that was killed is finished by the next one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

import structlog

from schemas.settings import Settings
from warehouse.client import ClickHouseError, Client, connect, database_name, unavailable

log = structlog.get_logger(__name__)

# FINAL over each partition alone, several ARRAY JOINs in a view and constraints on Null tables were proven on it.
SERVER_VERSION_MIN = (24, 8)

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


class UnsupportedServer(Exception):
    """The server is too old for the queries that bills rest on."""


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
    """Make the DSN's database and bring it up to date; names of the migrations applied by this call.

    Raises WarehouseUnavailable, UnsupportedServer, ChangedMigration or InvalidDatabaseName; what was applied before
    stays, and the next run goes on from there.
    """
    database = database_name(settings)
    if not _DATABASE_NAME.fullmatch(database):
        raise InvalidDatabaseName(f"{database!r}: letters, digits and _ are allowed in USAGE_CLICKHOUSE_DSN's database")
    with connect(settings, database="default") as client:
        check_version(client.server_version or "0")
        try:
            client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
        except ClickHouseError as error:
            raise unavailable(error) from error
    with connect(settings) as client:
        try:
            return apply(client, migrations())
        except ClickHouseError as error:
            raise unavailable(error) from error


def apply(client: Client, wanted: tuple[Migration, ...]) -> list[str]:
    """Apply what the client's database has not had. Raises ChangedMigration before anything is changed."""
    client.command(_RECORDS)
    rows = client.query("SELECT number, name, toString(checksum) FROM schema_migrations").result_rows
    had: dict[int, set[tuple[str, str]]] = {}
    for number, name, checksum in rows:
        had.setdefault(int(number), set()).add((str(name), str(checksum)))
    for migration in wanted:
        if migration.number in had and had[migration.number] != {(migration.name, migration.checksum)}:
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


def check_version(version: str) -> None:
    """Raises UnsupportedServer."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < SERVER_VERSION_MIN:
        least = ".".join(map(str, SERVER_VERSION_MIN))
        raise UnsupportedServer(f"ClickHouse {version} is too old: {least} or later is needed")
