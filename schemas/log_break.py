"""usage.events lost its end: where a partition's log goes on, as the catalog's log says it to everyone. Pure.

A log that lost its end (a power cut with one broker, an unclean election, a volume that was restored) gives offsets
that were read to other messages. Who went on as if nothing had happened would pass over them. The first record of an ID
is valid, so every reader has the same offset.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class LogBreak(BaseModel):
    """topic_id: Kafka's. number: which time it happened to the partition, from 1. start: first offset of what came
    after. read_to: next offset that had been read before. created_at: µs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    organization_id: str = ""
    topic_id: str
    partition: int
    number: int
    start: int
    read_to: int
    created_at: int
    archived: bool = False


def break_id(topic_id: str, partition: int, number: int) -> str:
    return f"{topic_id}/{partition}/{number}"


def starts_of(breaks: Iterable[LogBreak], topic_id: str, partition: int) -> tuple[int, ...]:
    """Where a partition's log went on, each time that it had lost its end."""
    found = {each.number: each.start for each in breaks if (each.topic_id, each.partition) == (topic_id, partition)}
    return tuple(found[number] for number in sorted(found))


def log_id(topic_id: str, breaks: int) -> str:
    """Names what a partition's offsets are of: the topic, and how often its log has lost its end."""
    return f"{topic_id}/{breaks}" if breaks else topic_id


def breaks_in(name: str, topic_id: str) -> int | None:
    """How many breaks a log_id of the topic counts; None: it is of another topic."""
    if name == topic_id:
        return 0
    number = name.removeprefix(f"{topic_id}/")
    return int(number) if number != name and number.isdecimal() else None
