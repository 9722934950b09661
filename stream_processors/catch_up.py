"""Waiting until a view of a log has all that the log had when the wait began."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from confluent_kafka import KafkaException

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.002
_WARN_SECONDS = 10.0


async def until_caught_up(end: Callable[[], Awaitable[int]], next_offset: Callable[[], int]) -> None:
    """Return once the view has everything that was in its log when Kafka answered.

    end asks Kafka for the log's end and may raise KafkaException; next_offset is the view's next offset. Both are asked
    again for as long as it takes. A broker that is away is the fault of no message: the messages that wait here were
    fetched before it went, and a process that ended would only have to wait in its start.
    """
    wanted = await _asked_until_answered(end)
    loop = asyncio.get_running_loop()
    warn_at = loop.time() + _WARN_SECONDS
    while next_offset() < wanted:
        if loop.time() > warn_at:
            log.warning("catalog_behind", next_offset=next_offset(), end=wanted)
            warn_at += _WARN_SECONDS
        await asyncio.sleep(_POLL_SECONDS)


async def _asked_until_answered(end: Callable[[], Awaitable[int]]) -> int:
    while True:
        try:
            return await end()
        except KafkaException as error:
            log.warning("kafka_not_answering", error=str(error))
        await asyncio.sleep(_POLL_SECONDS)
