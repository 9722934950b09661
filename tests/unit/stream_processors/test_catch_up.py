"""A batch of events waits for the catalog's view; a broker that is away makes it wait longer, and never fails it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from confluent_kafka import KafkaError, KafkaException

from stream_processors.catch_up import until_caught_up

AWAY = KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))  # pyright: ignore[reportPrivateUsage]


def caught_up(ends: list[int | KafkaException], offsets: list[int]) -> tuple[int, int]:
    """How many ends and how many offsets of the view were asked for until the wait was over."""
    ends_left: Iterator[int | KafkaException] = iter(ends)
    offsets_left = iter(offsets)

    async def end() -> int:
        found = next(ends_left)
        if isinstance(found, KafkaException):
            raise found
        return found

    asyncio.run(until_caught_up(end, lambda: next(offsets_left)))
    return len(ends) - len(list(ends_left)), len(offsets) - len(list(offsets_left))


def test_a_view_that_is_there_waits_for_nothing() -> None:
    assert caught_up([5, 9], [5, 6]) == (1, 1)


def test_a_view_that_is_behind_is_waited_for() -> None:
    assert caught_up([5], [3, 4, 5, 6]) == (1, 3)


def test_a_broker_that_is_away_is_asked_until_it_answers() -> None:
    assert caught_up([AWAY, AWAY, AWAY, 5, 9], [5, 6]) == (4, 1)
