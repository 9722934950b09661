"""USAGE_CLICKHOUSE_DSN → a client of ClickHouse over HTTP: bounded waits, exact decimals, safe between threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

from schemas.settings import Settings
from warehouse.versions import refusal

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 60

_COMPILED = ("compile_aggregate_expressions", "compile_expressions")
_QUERY_SETTINGS = {
    # A customer never leaves its partition, so FINAL has nothing to collapse across them: it may work on each alone.
    "do_not_merge_across_partitions_select_final": 1,
    # A condition on a timestamp must not drop a first event before its duplicates are collapsed into it.
    "optimize_move_to_prewhere_if_final": 0,
    # A customer may have more events than memory holds groups: beyond this they go to the disk, which is slower.
    "max_bytes_before_external_group_by": 2 * 1024**3,
    # 24.8 names the elements of a tuple after their columns, and the client makes dictionaries of named ones.
    "enable_named_columns_in_function_tuple": 0,
    # From its third run on a query may be compiled, and compiled decimals are wrong in several versions, in both counts
    # of a bill alike: max(-1, 7) is -1 (ClickHouse 100740), if() loses the scale (103808), overflows wrap (118958).
    **dict.fromkeys(_COMPILED, 0),
}
STORING: Mapping[str, Any] = dict.fromkeys(_COMPILED, 1)
"""For inserts, whose views take a fifth longer without compiled expressions, and aggregate nothing that is counted."""
_NO_SETTINGS: Mapping[str, Any] = {}
PROMPT: Mapping[str, Any] = {"priority": 1}
"""For queries of a page that someone waits for."""
ASIDE: Mapping[str, Any] = {"priority": 2}
"""For queries that read much: they pause while one of PROMPT runs."""


class WarehouseUnavailable(Exception):
    """ClickHouse does not answer, or refuses what is none of the data's fault. Trying again may help."""


class UnsupportedServer(WarehouseUnavailable):
    """No bill may rest on this version: it is too old, or counts wrongly."""


class TooMuch(WarehouseUnavailable):
    """A query asked for more than the server gives one query: memory, time or rows. Asking for less may help."""


def concerns_all(error: Exception) -> bool:
    """Whether ClickHouse is away; a query that asks too much of it may be about one customer alone."""
    return isinstance(error, WarehouseUnavailable) and not isinstance(error, TooMuch)


# system.errors: TOO_MANY_ROWS, TIMEOUT_EXCEEDED, MEMORY_LIMIT_EXCEEDED, TOO_MANY_BYTES.
_TOO_MUCH_CODES = frozenset({158, 159, 241, 307})


def database_name(settings: Settings, shard: int = 0) -> str:
    """The database that a shard's DSN names; `usage` without one."""
    return unquote(urlsplit(settings.clickhouse_dsns[shard]).path).strip("/") or "usage"


def connect(
    settings: Settings,
    *,
    shard: int = 0,
    database: str | None = None,
    read_timeout_seconds: int = READ_TIMEOUT_SECONDS,
    connect_timeout_seconds: int = CONNECT_TIMEOUT_SECONDS,
    more_settings: Mapping[str, Any] = _NO_SETTINGS,
) -> Client:
    """A client of the DSN's database (or another one). Raises WarehouseUnavailable, UnsupportedServer among it.

    shard: whose DSN, from 0; what asks for usage takes all of them by warehouse.shards.

    Threads may share it: it has no session, and its connections are pooled. Waits for an answer end after
    read_timeout_seconds; no query is repeated behind the caller's back. more_settings: ClickHouse's, for all its
    queries. Close it after use.
    """
    parts = urlsplit(settings.clickhouse_dsns[shard])
    try:
        client = clickhouse_connect.get_client(
            dsn=parts._replace(path=f"/{database or database_name(settings, shard)}").geturl(),
            autogenerate_session_id=False,
            compress=False,
            query_retries=0,
            connect_timeout=connect_timeout_seconds,
            send_receive_timeout=read_timeout_seconds,
            dedicated_pool=True,  # so that close() closes its connections
            settings={**_QUERY_SETTINGS, **more_settings},
        )
    except ClickHouseError as error:
        raise unavailable(error) from error
    if reason := refusal(client.server_version or "0"):
        client.close()
        raise UnsupportedServer(reason)
    return client


def unavailable(error: Exception) -> WarehouseUnavailable:
    """The error, in one line and without the statement's text."""
    kind = TooMuch if server_code(error) in _TOO_MUCH_CODES else WarehouseUnavailable
    return kind(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


def server_code(error: Exception) -> int | None:
    """ClickHouse's error code (system.errors) behind an exception; None: it did not answer with one."""
    code = getattr(error, "code", None)
    return code if isinstance(code, int) and not isinstance(error, OperationalError) else None


__all__ = [
    "ASIDE",
    "CONNECT_TIMEOUT_SECONDS",
    "PROMPT",
    "READ_TIMEOUT_SECONDS",
    "STORING",
    "ClickHouseError",
    "Client",
    "DatabaseError",
    "OperationalError",
    "TooMuch",
    "UnsupportedServer",
    "WarehouseUnavailable",
    "connect",
    "database_name",
    "server_code",
    "unavailable",
]
