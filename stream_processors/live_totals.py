"""usage.totals → what the aggregator has counted in one partition, all of it up to one place of usage.events."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from runtime.kafka.clients import create_reader, is_partition_end, raw
from schemas import totals
from schemas.settings import Settings
from schemas.topics import USAGE_TOTALS, topic_name
from schemas.totals import Closed, Partial, Progress, UsageTotal

_REQUEST_SECONDS = 10.0
_READ_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True)
class LiveSnapshot:
    """Totals by key as they were when progress was written: each contains its events below progress.next_offset, and
    none at or after it. progress None: the aggregator has written nothing yet, or not the beginning. closed_before: of
    cycles that end by then (µs) there are none. partial: organizations of which there was no room for all series → the
    last offset at which one was left out."""

    partition: int
    progress: Progress | None = None
    totals: dict[bytes, UsageTotal] = field(default_factory=dict[bytes, UsageTotal])
    closed_before: int = 0
    partial: dict[str, int] = field(default_factory=dict[str, int])


def snapshot_of(partition: int, records: Iterable[tuple[bytes, bytes | None]]) -> LiveSnapshot:
    """The partition's records, in their order → its state at the last progress. Pure. Raises UnreadableTotal.

    Progress is written last in a flush. What comes after the last one belongs to a flush whose end is not here yet,
    and is left out.
    """
    newest: dict[bytes, UsageTotal] = {}
    flush: list[tuple[bytes, UsageTotal | Closed | Partial | None]] = []
    progress: Progress | None = None
    closed_before, partial = 0, dict[str, int]()
    begun = False
    for key, value in records:
        record = None if value is None else totals.decode(key, value)
        begun = begun or key == totals.BEGUN_KEY
        if isinstance(record, Progress):
            for changed, each in flush:
                if isinstance(each, Closed):
                    closed_before = max(closed_before, each.before)
                elif isinstance(each, Partial):
                    partial[each.organization_id] = each.through
                elif each is None:
                    newest.pop(changed, None)
                    partial.pop(totals.partial_organization(changed) or "", None)
                elif each.supersedes(newest.get(changed)):
                    newest[changed] = each
            flush.clear()
            # A worker that was frozen may write an old one late.
            if progress is None or progress.topic_id != record.topic_id or record.next_offset >= progress.next_offset:
                progress = record
        elif key == totals.PROGRESS_KEY:  # deleted: all is counted anew
            progress, closed_before = None, 0
            newest.clear()
            partial.clear()
            flush.clear()
        elif record is not None or value is None:
            flush.append((key, record))
    if not begun:
        return LiveSnapshot(partition)
    # One that was written late, by a worker that was frozen, is none.
    kept = {key: total for key, total in newest.items() if total.cycle_end > closed_before}
    return LiveSnapshot(partition, progress, kept, closed_before, partial)


class LiveTotalsReader:
    """Reads partitions of usage.totals from their beginning, one at a time: memory holds one. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._topic = topic_name(settings, USAGE_TOTALS)
        self._consumer = create_reader(
            settings.kafka_properties,
            f"{self._topic}-snapshot",
            out_of_range="earliest",
            partition_eof=True,
            # The broker reports an end with its next answer, for which it otherwise waits half a second for records.
            more={"fetch.wait.max.ms": 200},
        )

    def snapshot(self, partition: int) -> LiveSnapshot:
        """The partition as it is now. Raises KafkaException, UnreadableTotal."""
        return snapshot_of(partition, self._records(partition))

    def _records(self, partition: int) -> Iterable[tuple[bytes, bytes | None]]:
        self._consumer.assign([TopicPartition(self._topic, partition, OFFSET_BEGINNING)])
        deadline = time.monotonic() + _READ_SECONDS_MAX
        try:
            while True:
                for message in self._consumer.consume(10_000, 0.05):
                    error = message.error()
                    if error is None:
                        yield raw(message.key()) or b"", raw(message.value())
                    elif is_partition_end(error):
                        return
                    else:
                        raise KafkaException(error)
                if time.monotonic() > deadline:
                    raise KafkaException(
                        KafkaError(KafkaError.REQUEST_TIMED_OUT, f"{self._topic} was not read in time")
                    )
        finally:
            self._consumer.unassign()

    def close(self) -> None:
        self._consumer.close()
