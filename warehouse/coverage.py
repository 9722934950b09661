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

from schemas.watermark import NO_EPOCHS, Watermark
from warehouse.client import Client
from warehouse.one_store import MARK_IS_THERE
from warehouse.shards import Store, at_once, shards_of

# Offsets without a message: deleted by retention before the sink read them, never readable (a transaction's marker), or
# of an earlier epoch: the log had lost its end, and this one begins after them.
EXPIRED = "expired"
NO_MESSAGE = "no_message"
EARLIER_EPOCH = "earlier_epoch"

# A message that was stored twice counts once: bitmaps hold distinct offsets, at some 10 million messages a second.
_SUMMARY = """
    SELECT
        kafka_partition,
        min(kafka_offset),
        max(next_offset),
        groupBitmapIf(toUInt64(kafka_offset), next_offset = kafka_offset + 1),
        groupUniqArrayIf((kafka_offset, next_offset), next_offset > kafka_offset + 1)
    FROM ingest_batches
    WHERE FLOORS
    GROUP BY kafka_partition
"""
_CHECKPOINTS = """
    SELECT kafka_epoch, kafka_partition, max(next_offset) FROM coverage_checkpoints
    WHERE kafka_epoch IN {epochs:Array(UInt16)} GROUP BY kafka_epoch, kafka_partition
"""
# A statement is of one store: where an older copy has taken the place of the one that was looked at, the mark is gone.
_CHECK = f"""
    INSERT INTO coverage_checkpoints (kafka_epoch, kafka_partition, next_offset)
    SELECT place.1, place.2, place.3
    FROM (SELECT arrayJoin({{places:Array(Tuple(UInt16, UInt16, Int64))}}) AS place)
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
        WHERE kafka_epoch = EPOCH AND kafka_partition = PARTITION
        ORDER BY kafka_offset DESC LIMIT 1
    )
"""


def coverage(
    store: Store,
    epoch: int,
    partitions: int,
    own: Mapping[int, int] = NO_EPOCHS,
    *,
    only: Iterable[int] | None = None,
) -> Watermark:
    """Everything below it is stored. It names all of the partitions 0 … partitions − 1, with 0 where nothing is.

    own: partition → its epoch, where it has one of its own. only: these partitions; shards that have none of them are
    not asked. While an insert is under way its rows become visible in no
    fixed order, and these may come before the events. Who must not miss any (billing) waits for the sink's commit too,
    which it moves only when an insert was answered.
    """
    wanted = range(partitions) if only is None else only
    parts = shards_of(store).by_partition(wanted)
    found = at_once(parts, lambda client, mine: _covered(client, epoch, mine, own))
    return Watermark(epoch, {partition: offset for each in found for partition, offset in sorted(each.items())}, own)


def _covered(client: Client, epoch: int, partitions: Iterable[int], own: Mapping[int, int]) -> dict[int, int]:
    """Of partitions that one server has."""
    epochs = _epochs(epoch, partitions, own)
    # The last message before the checkpoint is looked at again: without it the checkpoint is of another store.
    floors = {p: after - 1 for p, after in _checkpoints(client, epochs).items() if after > 0}
    answer = _contiguous_from(client, epochs, {**dict.fromkeys(epochs, 0), **floors})
    doubtful = dict.fromkeys((p for p, floor in floors.items() if answer[p] <= floor), 0)
    if doubtful:
        answer |= _contiguous_from(client, epochs, doubtful)
    return answer


def checkpoint(
    client: Client, epoch: int, partitions: int, mark: uuid.UUID, own: Mapping[int, int] = NO_EPOCHS
) -> Watermark:
    """`coverage`, and later calls of it read only what comes from now on. mark: left in the store just before."""
    reached = coverage(client, epoch, partitions, own)
    places = [(*_at(reached, partition), offset) for partition, offset in reached.offsets.items() if offset]
    if places:
        client.command(_CHECK, parameters={"places": places, "mark": mark})
    return reached


def _at(watermark: Watermark, partition: int) -> tuple[int, int]:
    return watermark.place(partition)[0], partition


def recounted_coverage(client: Client, epoch: int, partitions: int, own: Mapping[int, int] = NO_EPOCHS) -> Watermark:
    """`coverage` by reading everything: rows below a checkpoint may have been lost. Those that say more are deleted."""
    epochs = _epochs(epoch, range(partitions), own)
    answer = _contiguous_from(client, epochs, dict.fromkeys(range(partitions), 0))
    wrong = [(epochs[p], p) for p, after in _checkpoints(client, epochs).items() if after > answer.get(p, 0)]
    if wrong:
        client.command(
            "DELETE FROM coverage_checkpoints"
            " WHERE (kafka_epoch, kafka_partition) IN {places:Array(Tuple(UInt16, UInt16))}",
            parameters={"places": wrong},
        )
    return Watermark(epoch, answer, own)


def _epochs(epoch: int, partitions: Iterable[int], own: Mapping[int, int]) -> dict[int, int]:
    """Partition → its epoch."""
    return {partition: own.get(partition, epoch) for partition in partitions}


def _checkpoints(client: Client, epochs: Mapping[int, int]) -> dict[int, int]:
    """Partition → the offset up to which its epoch was seen to be complete."""
    rows = client.query(_CHECKPOINTS, parameters={"epochs": sorted(set(epochs.values()))}).result_rows
    return {int(p): int(after) for epoch, p, after in rows if epochs.get(int(p)) == epoch}


def _contiguous_from(client: Client, epochs: Mapping[int, int], floors: Mapping[int, int]) -> dict[int, int]:
    """Partition → the first offset from its floor on that is missing in its epoch."""
    answer = dict(floors)
    conditions = " OR ".join(
        f"(kafka_epoch = {epochs[p]:d} AND kafka_partition = {p:d} AND kafka_offset >= {floor:d})"
        for p, floor in answer.items()
    )
    rows = client.query(_SUMMARY.replace("FLOORS", conditions)).result_rows
    for number, first, reach, messages, ranges in rows:
        partition = int(number)
        if first != answer[partition]:  # its first row comes after something that is missing
            continue
        gaps = merged(ranges)
        # A message within a gap is not to be counted twice: it would make up for one that is missing.
        epoch = epochs[partition]
        counted = messages - (_messages_within(client, epoch, partition, gaps) if gaps else 0)
        contiguous = reach - first == counted + sum(after - begin for begin, after in gaps)
        answer[partition] = int(reach) if contiguous else _first_gap(client, epoch, partition, first, reach)
    return answer


def last_stored(client: Client, epochs: Mapping[int, int]) -> dict[int, int]:
    """Partition → the offset after the last one that its epoch has, whatever is missing before it; 0 where nothing is.

    epochs: partition → epoch.
    """
    query = " UNION ALL ".join(
        _LAST.replace("PARTITION", f"{partition:d}").replace("EPOCH", f"{epoch:d}")
        for partition, epoch in epochs.items()
    )
    rows = client.query(query).result_rows if query else ()
    return {**dict.fromkeys(epochs, 0), **{int(partition): int(after) for partition, after in rows}}


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
