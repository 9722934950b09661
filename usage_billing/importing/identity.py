"""event → an id made of what it says, so that a row counts once however often, and in whatever file, it is imported."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest_gateway.decode import Events

KNOWN_IN_MEMORY_MAX = 1_000_000


class Occurrences:
    """How often a content was seen before in this file. In memory, and beyond `in_memory_max` contents on disk."""

    def __init__(self, in_memory_max: int = KNOWN_IN_MEMORY_MAX) -> None:
        self._in_memory_max = in_memory_max
        self._counts: Counter[bytes] = Counter()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._db: sqlite3.Connection | None = None

    def next_number(self, content: bytes) -> int:
        """0 for the first of its kind, then 1, 2, …"""
        if content not in self._counts and len(self._counts) >= self._in_memory_max:
            self._spill()
        before = self._counts[content]
        self._counts[content] = before + 1
        return before + (self._spilled(content) if self._db is not None else 0)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _spill(self) -> None:
        if self._db is None:
            self._folder = tempfile.TemporaryDirectory(prefix="usage-import-")
            self._db = sqlite3.connect(Path(self._folder.name) / "seen.sqlite", isolation_level=None)
            self._db.execute("PRAGMA journal_mode = OFF")  # nothing of it outlives this process
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute("CREATE TABLE seen (content BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO seen VALUES (?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number",
            sorted(self._counts.items()),
        )
        self._db.execute("COMMIT")
        self._counts.clear()

    def _spilled(self, content: bytes) -> int:
        assert self._db is not None
        row = self._db.execute("SELECT number FROM seen WHERE content = ?", (content,)).fetchone()
        return row[0] if row else 0


class Identities:
    """The ids of events: their own, else one of their content and of how many like it came before in the file.

    Spelling is no content: `1.50` and `1.5`, or two offsets of one instant, give the same id.
    prefix: keeps rows of two files apart though they say the same. repeated: events whose own id came before.
    """

    def __init__(self, seen: Occurrences, prefix: str = "") -> None:
        self._seen = seen
        self._prefix = prefix
        self.repeated = 0

    def of(self, events: Events) -> Iterator[str]:
        """An id for each event, in order."""
        for index, own in enumerate(events.event_id):
            named = [events.customer_id[index], events.event_name[index]]
            if own is not None:
                self.repeated += self._seen.next_number(_digest(["id", *named, own])) > 0
                yield own
                continue
            value = events.value[index]
            content = _digest(
                [
                    "row",
                    self._prefix,
                    *named,
                    str(events.timestamp[index]),
                    "" if value is None else str(int.from_bytes(value, "big", signed=True)),
                    *(text for pair in sorted((events.properties[index] or {}).items()) for text in pair),
                ]
            )
            number = self._seen.next_number(content)
            yield f"row-{content.hex()}" + (f"-{number + 1}" if number else "")


def _digest(texts: Sequence[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        spelled = text.encode()
        # The length comes first, so that no two lists of texts run into the same bytes.
        digest.update(len(spelled).to_bytes(4, "big") + spelled)
    return digest.digest()
