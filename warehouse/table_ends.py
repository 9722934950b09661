"""the tables that one insert fills → where the first of them stops, if it does before the others.

A backup of ClickHouse copies table after table, each at an instant of its own. ingest_batches, restored from a later
instant than usage_events, says that messages are stored whose events are not. An insert fills each table in the log's
order, so what an older copy lacks is its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warehouse.client import ClickHouseError, Client, server_code

_EVENTS, _VOIDS = "messages of events", "messages of tombstones"
# Table → the messages of which it has rows. A copy of a message that was stored before may leave none in usage_events
# and usage_voids: then messages are read again in vain, which changes nothing.
_FILLED_BY: Mapping[str, str] = {
    "usage_events": _EVENTS,
    "usage_accepted": _EVENTS,
    "accepted_batches": _EVENTS,
    "usage_voids": _VOIDS,
}
# A row for each message at most, or few rows.
_SMALL: Mapping[str, str] = {
    _EVENTS: "ingest_batches WHERE events > 0 AND",
    _VOIDS: "ingest_batches WHERE reason = 'void' AND",
    "accepted_batches": "accepted_batches WHERE",
    "usage_voids": "usage_voids WHERE",
}
# Sorted by place: a few granules are read from its end.
_LAST_ACCEPTED = """
    SELECT 'usage_accepted', toUInt16(EPOCH), toUInt16(PARTITION), next FROM
    (
        SELECT kafka_offset + 1 AS next FROM usage_accepted
        WHERE kafka_epoch = EPOCH AND kafka_partition = PARTITION ORDER BY kafka_offset DESC LIMIT 1
    )
"""
# A part that has rows of a message was written after the message was stored, or is merged of one that was.
_PARTS_SINCE = """
    SELECT name FROM system.parts
    WHERE database = currentDatabase() AND table = 'usage_events' AND active AND modification_time >=
    (
        SELECT min(newest) - toIntervalMinute(10) FROM
        (
            SELECT argMax(stored_at, kafka_offset) AS newest FROM ingest_batches
            WHERE events > 0 AND kafka_partition IN {partitions:Array(UInt16)} GROUP BY kafka_epoch, kafka_partition
        )
    )
"""
_ACCESS_DENIED = 497
# Rows of one insert become visible in no fixed order, so the last one that an older copy has is read again whole.
_MESSAGES_PER_INSERT = 10_000

Ends = Mapping[tuple[str, int, int], int]
"""(table, or kind of messages, epoch, partition) → the offset after the last message of which it has rows."""


@dataclass(frozen=True, slots=True)
class Stop:
    """table lacks rows of messages from this offset on, perhaps."""

    offset: int
    table: str


def first_stops(client: Client, epochs: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, Stop]:
    """Partition → where the first of the tables stops; without those whose tables reach equally far.

    epochs: partition → (first offset, epoch) of each epoch of its log, oldest first. Where a table lacks something, the
    offsets of all events are read.
    """
    partitions = sorted(epochs)
    if not partitions:
        return {}
    ends = _small_ends(client, partitions)
    ends |= _accepted_ends(client, [(epoch, partition) for partition in partitions for _, epoch in epochs[partition]])
    found: dict[int, Stop] = {}
    # Few parts are new. Where they do not have all, the others are asked too.
    for parts in (_new_parts(client, partitions), None):
        of_events = _event_ends(client, partitions, parts) if parts != [] else {}
        stops = {partition: first_stop({**ends, **of_events}, partition, list(of)) for partition, of in epochs.items()}
        found = {partition: stop for partition, stop in stops.items() if stop is not None}
        if not found:
            break
    return found


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


def _small_ends(client: Client, partitions: list[int]) -> dict[tuple[str, int, int], int]:
    query = " UNION ALL ".join(
        f"SELECT '{name}', kafka_epoch, kafka_partition, max(kafka_offset) + 1 FROM {source}"
        " kafka_partition IN {partitions:Array(UInt16)} GROUP BY kafka_epoch, kafka_partition"
        for name, source in _SMALL.items()
    )
    return _by_place(client.query(query, parameters={"partitions": partitions}).result_rows)


def _accepted_ends(client: Client, places: Iterable[tuple[int, int]]) -> dict[tuple[str, int, int], int]:
    """places: epoch, partition."""
    query = " UNION ALL ".join(
        _LAST_ACCEPTED.replace("EPOCH", f"{epoch:d}").replace("PARTITION", f"{partition:d}")
        for epoch, partition in places
    )
    return _by_place(client.query(query).result_rows)


def _event_ends(client: Client, partitions: list[int], parts: list[str] | None) -> dict[tuple[str, int, int], int]:
    """parts: None for all."""
    within = "" if parts is None else " AND _part IN {parts:Array(String)}"
    rows = client.query(
        "SELECT 'usage_events', kafka_epoch, kafka_partition, max(kafka_offset) + 1 FROM usage_events"
        f" WHERE kafka_partition IN {{partitions:Array(UInt16)}}{within} GROUP BY kafka_epoch, kafka_partition",
        parameters={"partitions": partitions, "parts": parts or []},
    ).result_rows
    return _by_place(rows)


def _new_parts(client: Client, partitions: list[int]) -> list[str]:
    """Parts of usage_events that may have the last messages; none, where the user may not ask for parts."""
    try:
        rows = client.query(_PARTS_SINCE, parameters={"partitions": partitions}).result_rows
    except ClickHouseError as error:
        if server_code(error) == _ACCESS_DENIED:
            return []
        raise
    return [str(row[0]) for row in rows]


def _by_place(rows: Sequence[Sequence[Any]]) -> dict[tuple[str, int, int], int]:
    return {(str(name), int(epoch), int(partition)): int(end) for name, epoch, partition, end in rows}
