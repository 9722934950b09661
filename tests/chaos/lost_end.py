"""usage.events loses the end of some partitions, as a power cut leaves a single broker → what was there, and was stored."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.topics import USAGE_EVENTS, topic_name
from tests.chaos.stack import Stack
from tests.truncation import cut_log, read_log_files
from warehouse.client import Client

MESSAGES_CUT_MAX = 40
_BATCH_ID = slice(5, 21)  # of a message: after schema registry's header


@dataclass(frozen=True, slots=True)
class Cut:
    """A partition's log lost its end. start: first offset that is gone, and is given again.

    gone: offset → message. stored: those offsets of them that ClickHouse had when the broker was down.
    """

    partition: int
    start: int
    gone: Mapping[int, bytes]
    stored: frozenset[int]

    def had(self, offset: int) -> bool:
        """Whether ClickHouse had the message of an offset when it was cut away."""
        return offset in self.stored


def cut_ends(stack: Stack, rnd: random.Random, client: Client) -> list[Cut]:
    """Cut some partitions of a broker that is down, each so far that ClickHouse has something of what is cut.

    What nobody has read goes unnoticed by everyone who reads, so the end is always seen below what was read.
    """
    topic = topic_name(stack.settings, USAGE_EVENTS)
    partitions = range(stack.settings.event_partitions)
    made: list[Cut] = []
    for partition in sorted(rnd.sample(partitions, rnd.randrange(1, len(partitions) + 1))):
        messages = dict(read_log_files(stack.broker.data_dir, topic, partition))
        has = stored_ids(client, partition)
        read = [offset for offset, message in messages.items() if (offset, message[_BATCH_ID]) in has]
        if not read:
            continue
        start = cut_log(stack.broker.data_dir, topic, partition, rnd.choice(read[-MESSAGES_CUT_MAX:]))
        gone = {offset: message for offset, message in messages.items() if offset >= start}
        made.append(Cut(partition, start, gone, frozenset(offset for offset in read if offset >= start)))
    return made


def stored_ids(client: Client, partition: int) -> set[tuple[int, bytes]]:
    """(offset, batch_id) of each message of a partition that ClickHouse has, of all epochs; of batches and tombstones."""
    query = """
        SELECT kafka_offset, batch_id FROM ingest_batches
        WHERE kafka_partition = {partition:UInt16} AND batch_id != toFixedString('', 16)
    """
    rows = client.query(query, parameters={"partition": partition}).result_rows
    return {(int(offset), bytes(batch_id)) for offset, batch_id in rows}


def is_stored(has: set[tuple[int, bytes]], offset: int, message: bytes) -> bool:
    return (offset, message[_BATCH_ID]) in has


def epochs_by_partition(rows: Callable[[str], Iterable[Sequence[Any]]]) -> dict[int, list[int]]:
    """Partition → the epochs that ClickHouse has it in, oldest first: the n-th is of after n lost ends.

    rows: answers a query.
    """
    query = (
        "SELECT kafka_partition, arraySort(groupUniqArray(kafka_epoch)) FROM ingest_batches GROUP BY kafka_partition"
    )
    return {int(partition): [int(epoch) for epoch in epochs] for partition, epochs in rows(query)}


def reached_in_newest_epoch(client: Client) -> dict[int, int]:
    """Partition → next offset of what is stored of its newest epoch."""
    query = """
        SELECT kafka_partition, argMax(reached, kafka_epoch) FROM
        (
            SELECT kafka_partition, kafka_epoch, max(next_offset) AS reached
            FROM ingest_batches GROUP BY kafka_partition, kafka_epoch
        )
        GROUP BY kafka_partition
    """
    return {int(partition): int(reached) for partition, reached in client.query(query).result_rows}


def starts_by_partition(cuts: Iterable[Cut]) -> dict[int, list[int]]:
    """Partition → where its log went on, each time that it had lost its end."""
    found: dict[int, list[int]] = defaultdict(list)
    for cut in cuts:
        found[cut.partition].append(cut.start)
    return dict(found)


def times_lost(starts: Iterable[int], offset: int) -> int:
    """How often the log had lost its end when the message that it has at an offset was written. starts: in order."""
    return max((number for number, start in enumerate(starts, start=1) if offset >= start), default=0)
