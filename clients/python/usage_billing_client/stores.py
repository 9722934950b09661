"""Where batches wait until the gateway has them: in memory, or in a spool on disk that outlives the process."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from usage_billing_client.batches import Batch
from usage_billing_client.errors import SpoolError

Packed = tuple[int, bytes]  # events, compressed body


class Store(Protocol):
    """Batches in the order they came. Thread-safe. A batch that was taken is not given to another thread."""

    @property
    def kept(self) -> bool:
        """Whether what is added outlives the process."""
        ...

    @property
    def events(self) -> int:
        """Events added and not done."""
        ...

    @property
    def room(self) -> bool:
        """Whether more may be added."""
        ...

    @property
    def position(self) -> str | None:
        """What came with the newest `add` that named one."""
        ...

    def add(self, batches: Sequence[Packed], position: str | None = None) -> None:
        """Keep the batches and the position, all or nothing. Raises SpoolError."""
        ...

    def take(self, timeout: float) -> Batch | None:
        """The oldest batch that nobody has taken; None after `timeout` seconds without one."""
        ...

    def done(self, batch: Batch) -> None:
        """The gateway has it, or will never take it."""
        ...

    def replace(self, batch: Batch, parts: Sequence[Packed]) -> None:
        """Instead of the batch, these: all or nothing."""
        ...

    def wake(self) -> None:
        """Let every `take` that waits return."""
        ...

    def adopt(self) -> int:
        """Take over what processes that ended left behind; how many events."""
        ...

    def close(self) -> None:
        """Release files. Batches that were taken and not done are free again."""
        ...


class _Waiting:
    """Ids of batches that nobody has taken, and how many events are left in all."""

    def __init__(self) -> None:
        self._ids: deque[int] = deque()
        self._some = threading.Condition()
        self.events = 0

    def put(self, ids: Sequence[int], events: int) -> None:
        with self._some:
            self._ids.extend(ids)
            self.events += events
            self._some.notify(len(ids))

    def take(self, timeout: float) -> int | None:
        with self._some:
            if not self._ids:
                self._some.wait(timeout)
            return self._ids.popleft() if self._ids else None

    def subtract(self, events: int) -> None:
        with self._some:
            self.events -= events

    def wake(self) -> None:
        with self._some:
            self._some.notify_all()


class MemoryStore:
    """Batches in memory: an outage longer than `events_max` events, or the process's end, loses what is left."""

    kept = False

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._waiting = _Waiting()
        self._packed: dict[int, Packed] = {}
        self._next = 0
        self._lock = threading.Lock()
        self.position: str | None = None

    @property
    def events(self) -> int:
        return self._waiting.events

    @property
    def room(self) -> bool:
        return self._waiting.events < self._events_max

    def add(self, batches: Sequence[Packed], position: str | None = None) -> None:
        with self._lock:
            ids = range(self._next, self._next + len(batches))
            self._next += len(batches)
            self._packed.update(zip(ids, batches, strict=True))
            if position is not None:
                self.position = position
        self._waiting.put(ids, sum(events for events, _ in batches))

    def take(self, timeout: float) -> Batch | None:
        taken = self._waiting.take(timeout)
        return None if taken is None else Batch(taken, *self._packed[taken])

    def done(self, batch: Batch) -> None:
        with self._lock:
            del self._packed[batch.id]
        self._waiting.subtract(batch.events)

    def replace(self, batch: Batch, parts: Sequence[Packed]) -> None:
        self.add(parts)
        self.done(batch)

    def wake(self) -> None:
        self._waiting.wake()

    def adopt(self) -> int:
        return 0

    def close(self) -> None:
        pass


class SpoolStore:
    """Batches in a SQLite file of a directory; a killed process loses nothing that was added.

    Each process has a file of its own, `N.sqlite`, the lowest N that no living process holds: a process that is alone
    gets the file it had before, and forked workers get one each. `adopt` moves batches out of files that nobody holds.

    directory: made when it is missing. bytes_max: of waiting bodies; `room` is False beyond it.
    fsync: also survive a power cut, at the price of a disk flush for each `add`.
    """

    kept = True

    def __init__(self, directory: Path, bytes_max: int, *, fsync: bool = False) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._fsync = fsync
        self._lock = threading.RLock()
        self._waiting = _Waiting()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._slot, self._hold = next(self._free_slots())
            self._db = self._open(self._slot)
            rows = self._db.execute("SELECT id, events, length(body) FROM batches ORDER BY id").fetchall()
            self.position = self._read_position()
        except (OSError, sqlite3.Error) as reason:
            raise SpoolError(f"the spool {directory} can't be opened: {reason}") from reason
        self._bytes = sum(size for _, _, size in rows)
        self._waiting.put([row[0] for row in rows], sum(row[1] for row in rows))

    @property
    def events(self) -> int:
        return self._waiting.events

    @property
    def room(self) -> bool:
        return self._bytes < self._bytes_max

    def add(self, batches: Sequence[Packed], position: str | None = None) -> None:
        with self._transaction():
            ids = [self._insert(packed) for packed in batches]
            if position is not None:
                self._db.execute("INSERT OR REPLACE INTO position (id, text) VALUES (0, ?)", (position,))
        if position is not None:
            self.position = position
        self._waiting.put(ids, sum(events for events, _ in batches))

    def take(self, timeout: float) -> Batch | None:
        taken = self._waiting.take(timeout)
        if taken is None:
            return None
        with self._lock:
            row = self._db.execute("SELECT events, body FROM batches WHERE id = ?", (taken,)).fetchone()
        return Batch(taken, row[0], row[1])

    def done(self, batch: Batch) -> None:
        with self._transaction():
            self._delete(batch)
        self._waiting.subtract(batch.events)

    def replace(self, batch: Batch, parts: Sequence[Packed]) -> None:
        with self._transaction():
            ids = [self._insert(packed) for packed in parts]
            self._delete(batch)
        self._waiting.put(ids, sum(events for events, _ in parts))
        self._waiting.subtract(batch.events)

    def wake(self) -> None:
        self._waiting.wake()

    def adopt(self) -> int:
        adopted = 0
        for slot, hold in self._free_slots(existing=True):
            try:
                adopted += self._move_from(slot)
            finally:
                hold.close()
        return adopted

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._hold.close()

    def before_fork(self) -> None:
        """Close the file: SQLite's connections must not cross a fork."""
        self._lock.acquire()
        self._db.close()

    def after_fork_in_parent(self) -> None:
        """Open the file again. A failure shows at the next use."""
        with contextlib.suppress(OSError, sqlite3.Error):
            self._db = self._open(self._slot)
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Leave the file to the parent, whose lock stays when this copy of the descriptor is closed."""
        self._hold.close()

    def _move_from(self, slot: int) -> int:
        # Added here before it is deleted there: a crash between leaves it twice, with the same ids, which counts once.
        other = self._open(slot)
        try:
            rows = other.execute("SELECT id, events, body FROM batches ORDER BY id").fetchall()
            if rows:
                self.add([(events, body) for _, events, body in rows])
                with other:
                    other.execute("DELETE FROM batches WHERE id <= ?", (rows[-1][0],))
            return sum(events for _, events, _ in rows)
        finally:
            other.close()

    def _free_slots(self, *, existing: bool = False) -> Iterator[tuple[int, IO[bytes]]]:
        """Slots that no living process holds, each with the lock that holds it now."""
        try:
            import fcntl
        except ImportError:
            raise SpoolError("a spool needs POSIX file locks, which this platform lacks") from None
        known = sorted(int(path.stem) for path in self._directory.glob("*.sqlite") if path.stem.isdecimal())
        for slot in known if existing else range(len(known) + 10_000):
            hold = (self._directory / f"{slot}.lock").open("ab")
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hold.close()
                continue
            yield slot, hold

    def _open(self, slot: int) -> sqlite3.Connection:
        path = self._directory / f"{slot}.sqlite"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
        db.execute(
            "CREATE TABLE IF NOT EXISTS batches (id INTEGER PRIMARY KEY AUTOINCREMENT, events INTEGER, body BLOB)"
        )
        db.execute("CREATE TABLE IF NOT EXISTS position (id INTEGER PRIMARY KEY, text TEXT)")
        return db

    def _read_position(self) -> str | None:
        row = self._db.execute("SELECT text FROM position").fetchone()
        return row[0] if row else None

    def _insert(self, packed: Packed) -> int:
        self._bytes += len(packed[1])
        row = self._db.execute("INSERT INTO batches (events, body) VALUES (?, ?)", packed).lastrowid
        assert row is not None  # an INSERT has one
        return row

    def _delete(self, batch: Batch) -> None:
        self._bytes -= len(batch.body)
        self._db.execute("DELETE FROM batches WHERE id = ?", (batch.id,))

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        """All or nothing, in the file and in what is counted."""
        with self._lock:
            before = self._bytes
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as reason:
                self._bytes = before
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                if isinstance(reason, sqlite3.Error):
                    raise SpoolError(f"the spool {self._directory} can't be written: {reason}") from reason
                raise
