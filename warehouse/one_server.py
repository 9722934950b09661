"""An address → whether one server answers there, or several that hold the same rows.

A balancer before servers that are not replicated spreads rows over them: each count would miss what the others have.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.settings import Settings
from warehouse.client import ClickHouseError, UnsupportedServer, connect, unavailable

_CONNECTIONS = 8  # a balancer that gives each to one of two servers is overlooked once in 128 times
_DATABASE = "SELECT toString(uuid), engine FROM system.databases WHERE name = {name:String}"
_SAME_ROWS = ("Replicated", "Shared")
_ABSENT = ("absent", "")


class SeveralServers(UnsupportedServer):
    """Servers behind one address that don't share the database."""


def check_one_server(settings: Settings, database: str, shard: int = 0) -> str:
    """Ask over several connections which database it is; its uuid. Raises SeveralServers, WarehouseUnavailable.

    A database's uuid is made with it and stays when its files move to another machine.
    """
    found: set[tuple[str, str]] = set()
    for _ in range(_CONNECTIONS):
        with connect(settings, shard=shard, database="default") as client:
            try:
                rows = client.query(_DATABASE, parameters={"name": database}).result_rows
            except ClickHouseError as error:
                raise unavailable(error) from error
        found.add((str(rows[0][0]), str(rows[0][1])) if rows else _ABSENT)
    if len(found) > 1 and not all(engine.startswith(_SAME_ROWS) for _, engine in found):
        databases = ", ".join(sorted(f"{uuid} {engine}".strip() for uuid, engine in found))
        raise SeveralServers(
            f"several servers answer at this address and don't share the database {database} ({databases}):"
            " name one of them, or make the database on all with ENGINE = Replicated"
        )
    return min(found)[0]


def check_different_servers(uuids: Sequence[str]) -> None:
    """That no two shards are the same database. uuids: of each, in order. Raises SeveralServers."""
    for index, uuid in enumerate(uuids):
        if uuid in uuids[:index]:
            first = uuids.index(uuid) + 1
            raise SeveralServers(f"shards {first} and {index + 1} of USAGE_CLICKHOUSE_SHARDS are the same database")
