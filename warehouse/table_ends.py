"""the tables that one insert fills → where the first of them stops, if it does before the others.

A backup of ClickHouse copies table after table, each at an instant of its own. ingest_batches, restored from a later
instant than usage_events, says that messages are stored whose events are not. An insert fills each table in the log's
order, so what an older copy lacks is its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from warehouse.client import Client

_EVENTS, _VOIDS = "messages of events", "messages of tombstones"
# Table → the messages of which it has rows. A copy of a message that was stored before may leave none in usage_events
# and usage_voids: then messages are read again in vain, which changes nothing.
_FILLED_BY: Mapping[str, str] = {
    "usage_events": _EVENTS,
    "usage_accepted": _EVENTS,
    "accepted_batches": _EVENTS,
    "usage_voids": _VOIDS,
}
_INGESTED = {_EVENTS: "ingest_batches WHERE events > 0 AND", _VOIDS: "ingest_batches WHERE reason = 'void' AND"}
# Rows of one insert become visible in no fixed order, so the last one that an older copy has is read again whole.
_MESSAGES_PER_INSERT = 10_000

Ends = Mapping[tuple[str, int, int], int]
"""(table, or kind of messages, epoch, partition) → the offset after the last message of which it has rows."""


@dataclass(frozen=True, slots=True)
class Stop:
    """table lacks rows of messages from this offset on, perhaps."""

    offset: int
    table: str


def first_stops(client: Client, epochs: Mapping[int, Iterable[tuple[int, int]]]) -> dict[int, Stop]:
    """Partition → where the first of the tables stops; without those whose tables reach equally far.

    epochs: partition → (first offset, epoch) of each epoch of its log, oldest first. Reads one column of every event.
    """
    ends = _ends(client, sorted(epochs)) if epochs else {}
    found = ((partition, first_stop(ends, partition, list(of))) for partition, of in epochs.items())
    return {partition: stop for partition, stop in found if stop is not None}


def first_stop(ends: Ends, partition: int, epochs: list[tuple[int, int]]) -> Stop | None:
    """Pure. See first_stops."""
    for number, (start, epoch) in enumerate(epochs):
        # What an epoch had beyond the beginning of the next is not in the log any more.
        after = epochs[number + 1][0] if number + 1 < len(epochs) else None
        short = [
            Stop(max(start, has - _MESSAGES_PER_INSERT), table)
            for table, kind in _FILLED_BY.items()
            if (has := ends.get((table, epoch, partition), 0)) < ends.get((kind, epoch, partition), 0)
            and (after is None or has < after)
        ]
        if short:
            return min(short, key=lambda stop: stop.offset)
    return None


def started_at(client: Client) -> tuple[str, int]:
    """The server that answers, and when it was started: seconds since 1970, give or take one."""
    ((host, at),) = client.query("SELECT hostName(), toInt64(toUnixTimestamp(now())) - toInt64(uptime())").result_rows
    return str(host), int(at)


def _ends(client: Client, partitions: list[int]) -> Ends:
    sources = {**_INGESTED, **{table: f"{table} WHERE" for table in _FILLED_BY}}
    query = " UNION ALL ".join(
        f"SELECT '{name}', kafka_epoch, kafka_partition, max(kafka_offset) + 1 FROM {source}"
        " kafka_partition IN {partitions:Array(UInt16)} GROUP BY kafka_epoch, kafka_partition"
        for name, source in sources.items()
    )
    rows = client.query(query, parameters={"partitions": partitions}).result_rows
    return {(str(name), int(epoch), int(partition)): int(end) for name, epoch, partition, end in rows}
