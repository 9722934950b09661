"""Where a log is not any more what was stored of it: found by comparing few of its messages."""

from __future__ import annotations

import random

import pytest

from stream_processors.log_probe import kept_to


class Stored:
    """What ClickHouse has: offset → id; and a log in which all from `lost` on are others. read: offsets looked at."""

    def __init__(self, ids: dict[int, bytes], lost: int) -> None:
        self._ids, self._lost = ids, lost
        self.read: list[int] = []

    def below(self, low: int, high: int) -> tuple[int, bytes] | None:
        offsets = [offset for offset in self._ids if low <= offset < high]
        return (max(offsets), self._ids[max(offsets)]) if offsets else None

    def id_at(self, offset: int) -> bytes:
        self.read.append(offset)
        return self._ids[offset] if offset < self._lost else b"another"


def ids(*offsets: int) -> dict[int, bytes]:
    return {offset: b"%d" % offset for offset in offsets}


@pytest.mark.parametrize(
    ("stored", "lost", "low", "high", "expected"),
    [
        (ids(*range(10)), 99, 0, 10, None),  # as it was stored
        (ids(*range(10)), 99, 0, 6, None),  # shorter, and as it was stored: only its end can tell
        (ids(*range(10)), 6, 0, 10, 6),
        (ids(*range(10)), 6, 0, 40, 6),  # it has grown beyond what was stored
        (ids(*range(10)), 9, 0, 10, 9),
        (ids(*range(10)), 0, 0, 10, 0),
        (ids(*range(10)), 3, 3, 10, 3),
        (ids(0, 1, 2, 7, 8), 6, 0, 9, 3),  # what was set aside can't be compared: it is read again
        ({}, 0, 0, 10, None),
    ],
)
def test_the_place(stored: dict[int, bytes], lost: int, low: int, high: int, expected: int | None) -> None:
    found = Stored(stored, lost)
    assert kept_to(found.below, found.id_at, low, high) == expected


def test_few_messages_are_read() -> None:
    chance = random.Random(13)
    for _ in range(50):
        size, lost = 10_000, chance.randrange(10_000)
        found = Stored(ids(*(offset for offset in range(size) if chance.random() < 0.9)), lost)
        place = kept_to(found.below, found.id_at, 0, size)
        kept = found.below(0, lost)
        assert place == (kept[0] + 1 if kept else 0)
        assert len(found.read) <= 20
