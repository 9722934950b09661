"""state in memory ⇄ one SQLite file: everything a request changed is written in one transaction.

Objects are read once, at start; events and replayable answers stay in the file and are read when asked for.
A transaction survives the death of the process (a test kills it at will), not that of the machine: the
file is written without waiting for the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SCHEMA = """
CREATE TABLE IF NOT EXISTS object (account TEXT, id TEXT, data BLOB NOT NULL, PRIMARY KEY (account, id));
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, account TEXT, id TEXT UNIQUE, type TEXT, created INTEGER, body BLOB);
CREATE INDEX IF NOT EXISTS event_by_account ON event (account, seq);
CREATE TABLE IF NOT EXISTS delivery (
    event TEXT, endpoint TEXT, attempts INTEGER NOT NULL, PRIMARY KEY (event, endpoint)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reply (
    account TEXT, key TEXT, at INTEGER, target TEXT, fingerprint TEXT, status INTEGER, request_id TEXT, body BLOB,
    PRIMARY KEY (account, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value BLOB);
"""


class Reply(NamedTuple):
    """An answer kept under an idempotency key. target: the path."""

    at: int
    target: str
    fingerprint: str
    status: int
    request_id: str
    body: bytes


class StoredEvent(NamedTuple):
    seq: int
    account: str
    id: str
    type: str
    created: int
    body: bytes
    """The whole event as JSON, but for pending_webhooks."""


class Delivery(NamedTuple):
    """An event that an endpoint has not accepted yet."""

    event: str
    endpoint: str
    attempts: int


class Store:
    """The file; every write belongs to the open transaction until `commit`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        # One process at a time: what another one wrote would be missing from this one's memory.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)
        self._open = False

    def _write(self, sql: str, values: tuple[object, ...]) -> None:
        if not self._open:
            self._db.execute("BEGIN IMMEDIATE")
            self._open = True
        self._db.execute(sql, values)

    def commit(self) -> None:
        if self._open:
            self._db.execute("COMMIT")
            self._open = False

    def rollback(self) -> None:
        if self._open:
            self._db.execute("ROLLBACK")
            self._open = False

    def close(self) -> None:
        self.commit()
        self._db.close()

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """(account, data) in the order in which the objects were made."""
        yield from self._db.execute("SELECT account, data FROM object ORDER BY rowid")

    def put_object(self, account: str, id_: str, data: bytes) -> None:
        self._write(
            "INSERT INTO object VALUES (?, ?, ?) ON CONFLICT (account, id) DO UPDATE SET data = excluded.data",
            (account, id_, data),
        )

    def remove_object(self, account: str, id_: str) -> None:
        self._write("DELETE FROM object WHERE account = ? AND id = ?", (account, id_))

    def put_event(self, account: str, id_: str, type_: str, created: int, body: bytes) -> None:
        self._write(
            "INSERT INTO event (account, id, type, created, body) VALUES (?, ?, ?, ?, ?)",
            (account, id_, type_, created, body),
        )

    def event(self, id_: str) -> StoredEvent | None:
        row = self._db.execute("SELECT * FROM event WHERE id = ?", (id_,)).fetchone()
        return None if row is None else StoredEvent(*row)

    def events(
        self,
        account: str,
        types: tuple[str, ...],
        created_from: int,
        created_to: int,
        after: int | None,
        before: int | None,
        limit: int,
    ) -> list[StoredEvent]:
        """Newest first; types may end in `*`; created_from and created_to inclusive; after and before are seq.

        With `before` the events nearest to it are taken, still newest first.
        """
        where = ["account = ?", "created BETWEEN ? AND ?"]
        values: list[object] = [account, created_from, created_to]
        if types:
            where.append("(" + " OR ".join("type GLOB ?" for _ in types) + ")")
            values += types
        if after is not None:
            where.append("seq < ?")
            values.append(after)
        if before is not None:
            where.append("seq > ?")
            values.append(before)
        order = "ASC" if before is not None else "DESC"
        sql = f"SELECT * FROM event WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?"
        rows = [StoredEvent(*row) for row in self._db.execute(sql, (*values, limit))]
        return rows[::-1] if before is not None else rows

    def put_delivery(self, delivery: Delivery) -> None:
        self._write("INSERT OR REPLACE INTO delivery VALUES (?, ?, ?)", delivery)

    def remove_delivery(self, delivery: Delivery) -> None:
        self._write("DELETE FROM delivery WHERE event = ? AND endpoint = ?", delivery[:2])

    def deliveries(self) -> list[Delivery]:
        return [Delivery(*row) for row in self._db.execute("SELECT event, endpoint, attempts FROM delivery")]

    def pending_webhooks(self, event: str) -> int:
        return int(self._db.execute("SELECT count(*) FROM delivery WHERE event = ?", (event,)).fetchone()[0])

    def put_reply(self, account: str, key: str, reply: Reply) -> None:
        self._write("INSERT OR REPLACE INTO reply VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (account, key, *reply))

    def reply(self, account: str, key: str) -> Reply | None:
        row = self._db.execute(
            "SELECT at, target, fingerprint, status, request_id, body FROM reply WHERE account = ? AND key = ?",
            (account, key),
        ).fetchone()
        return None if row is None else Reply(*row)

    def put_setting(self, name: str, value: bytes) -> None:
        self._write("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def setting(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]
