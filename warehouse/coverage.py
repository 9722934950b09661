"""ingest_batches → how much of the log ClickHouse has: per partition, the first offset that is missing.

The sink writes a row for every message that it dealt with, dead letters too, and one for every range of offsets that
hold no message for it (expired before it came, or never readable). So coverage is contiguous from 0, and its end says
that everything before it is stored.

Checkpoints, which lie in ClickHouse as well, spare reading all of it again and again: whoever restores an older copy
restores the checkpoints that are true of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from schemas.watermark import Watermark
from warehouse.client import Client
from warehouse.one_store import MARK_IS_THERE

# Offsets without a message: deleted by retention before the sink read them, or never readable (a transaction's marker).
EXPIRED = "expired"
NO_MESSAGE = "no_message"

# A message that was stored twice counts once: bitmaps hold distinct offsets, at some 10 million messages a second.
_SUMMARY = """
    SELECT
        kafka_partition,
        min(kafka_offset),
        max(next_offset),
        groupBitmapIf(toUInt64(kafka_offset), next_offset = kafka_offset + 1),
        groupUniqArrayIf((kafka_offset, next_offset), next_offset > kafka_offset + 1)
    FROM ingest_batches
    WHERE kafka_epoch = {epoch:UInt16} AND (FLOORS)
    GROUP BY kafka_partition
"""
_CHECKPOINTS = """
    SELECT kafka_partition, max(next_offset) FROM coverage_checkpoints WHERE kafka_epoch = {epoch:UInt16}
    GROUP BY kafka_partition
"""
# A statement is of one store: where an older copy has taken the place of the one that was looked at, the mark is gone.
_CHECK = f"""
    INSERT INTO coverage_checkpoints (kafka_epoch, kafka_partition, next_offset)
    SELECT {{epoch:UInt16}}, place.1, place.2
    FROM (SELECT arrayJoin({{places:Array(Tuple(UInt16, Int64))}}) AS place)
    WHERE {MARK_IS_THERE}
"""
_WITHIN = """
    SELECT groupBitmap(toUInt64(kafka_offset)) FROM ingest_batches
    WHERE kafka_epoch = {epoch:UInt16} AND kafka_partition = {partition:UInt16} AND next_offset = kafka_offset + 1
        AND (RANGES)
"""
# Where a row starts after the end of all rows before it, something is missing.
_FIRST_GAP = """
    SELECT minOrNull(reached)
    FROM
    (
        SELECT
            kafka_offset,
            max(next_offset) OVER (ORDER BY kafka_offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
        FROM ingest_batches
        WHERE kafka_epoch = {epoch:UInt16} AND kafka_partition = {partition:UInt16} AND kafka_offset >= {floor:Int64}
    )
    WHERE reached > 0 AND kafka_offset > reached
"""
# Of one partition, from its end: a few granules are read, however much there is.
_LAST = """
    SELECT toUInt16(PARTITION), next_offset FROM
    (
        SELECT next_offset FROM ingest_batches
        WHERE kafka_epoch = {epoch:UInt16} AND kafka_partition = PARTITION
        ORDER BY kafka_offset DESC LIMIT 1
    )
"""


def coverage(client: Client, epoch: int, partitions: int) -> Watermark:
    """Everything below it is stored. It names all of the partitions 0 … partitions − 1, with 0 where nothing is.

    While an insert is under way its rows become visible in no fixed order, and these may come before the events. Who
    must not miss any (billing) waits for the sink's commit too, which it moves only when an insert was answered.
    """
    found = client.query(_CHECKPOINTS, parameters={"epoch": epoch}).result_rows
    # The last message before the checkpoint is looked at again: without it the checkpoint is of another store.
    floors = {int(p): int(after) - 1 for p, after in found if p < partitions and after > 0}
    answer = _contiguous_from(client, epoch, {**dict.fromkeys(range(partitions), 0), **floors})
    doubtful = dict.fromkeys((p for p, floor in floors.items() if answer[p] <= floor), 0)
    if doubtful:
        answer |= _contiguous_from(client, epoch, doubtful)
    return Watermark(epoch, answer)


def checkpoint(client: Client, epoch: int, partitions: int, mark: uuid.UUID) -> Watermark:
    """`coverage`, and later calls of it read only what comes from now on. mark: left in the store just before."""
    reached = coverage(client, epoch, partitions)
    places = [(partition, offset) for partition, offset in reached.offsets.items() if offset]
    if places:
        client.command(_CHECK, parameters={"epoch": epoch, "places": places, "mark": mark})
    return reached


def recounted_coverage(client: Client, epoch: int, partitions: int) -> Watermark:
    """`coverage` by reading everything: rows below a checkpoint may have been lost. Those that say more are deleted."""
    answer = _contiguous_from(client, epoch, dict.fromkeys(range(partitions), 0))
    found = client.query(_CHECKPOINTS, parameters={"epoch": epoch}).result_rows
    if wrong := [int(partition) for partition, after in found if after > answer.get(int(partition), 0)]:
        client.command(
            "DELETE FROM coverage_checkpoints WHERE kafka_epoch = {epoch:UInt16}"
            " AND kafka_partition IN {partitions:Array(UInt16)}",
            parameters={"epoch": epoch, "partitions": wrong},
        )
    return Watermark(epoch, answer)


def _contiguous_from(client: Client, epoch: int, floors: Mapping[int, int]) -> dict[int, int]:
    """Partition → the first offset from its floor on that is missing."""
    answer = dict(floors)
    conditions = " OR ".join(f"(kafka_partition = {p:d} AND kafka_offset >= {floor:d})" for p, floor in answer.items())
    rows = client.query(_SUMMARY.replace("FLOORS", conditions), parameters={"epoch": epoch}).result_rows
    for partition, first, reach, messages, ranges in rows:
        if first != answer[partition]:  # its first row comes after something that is missing
            continue
        gaps = merged(ranges)
        # A message within a gap is not to be counted twice: it would make up for one that is missing.
        counted = messages - (_messages_within(client, epoch, partition, gaps) if gaps else 0)
        contiguous = reach - first == counted + sum(after - begin for begin, after in gaps)
        answer[partition] = int(reach) if contiguous else _first_gap(client, epoch, partition, first, reach)
    return answer


def last_stored(client: Client, epoch: int, partitions: Iterable[int]) -> dict[int, int]:
    """Partition → the offset after the last one that is stored, whatever is missing before it; 0 where nothing is."""
    query = " UNION ALL ".join(_LAST.replace("PARTITION", f"{partition:d}") for partition in partitions)
    rows = client.query(query, parameters={"epoch": epoch}).result_rows if query else ()
    return {**dict.fromkeys(partitions, 0), **{int(partition): int(after) for partition, after in rows}}


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges as the fewest that cover the same, ascending."""
    found: list[tuple[int, int]] = []
    for first, after in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], after))
        else:
            found.append((first, after))
    return found


def _messages_within(client: Client, epoch: int, partition: int, ranges: Iterable[tuple[int, int]]) -> int:
    conditions = " OR ".join(f"(kafka_offset >= {first:d} AND kafka_offset < {after:d})" for first, after in ranges)
    query = _WITHIN.replace("RANGES", conditions)
    return int(client.query(query, parameters={"epoch": epoch, "partition": partition}).result_rows[0][0])


def _first_gap(client: Client, epoch: int, partition: int, floor: int, reach: int) -> int:
    parameters = {"epoch": epoch, "partition": partition, "floor": floor}
    found = client.query(_FIRST_GAP, parameters=parameters).result_rows[0][0]
    return int(reach if found is None else found)
