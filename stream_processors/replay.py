"""dead letters → usage.events again, each once: what can be read by now, and has not been stored meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.kafka.acked_producer import AckedProducer, Record
from runtime.kafka.log_ends import end_offsets
from schemas import usage_batch, usage_void
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import UnreadableBatch
from schemas.watermark import Watermark
from warehouse.letters import StoredLetter, stored_batches
from warehouse.settled import settled
from warehouse.shards import Store

_SETTLE_SECONDS = 60.0
_REQUEST_SECONDS = 10.0
_DELIVERY_SECONDS = 15.0
_MESSAGES_AT_ONCE = 100  # each may have some MiB
_POLL_SECONDS = 0.2


class NotSettled(Exception):
    """ClickHouse does not have all of the log: whether a letter was replayed before can't be told."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a letter. offset: where it lies now, in the partition that it was in; None: it was not written,
    and why says why not."""

    letter: StoredLetter
    offset: int | None = None
    why: str = ""


def batch_id_of(letter: StoredLetter) -> bytes:
    """The batch's id, if all of it can be read. Raises UnreadableBatch."""
    if usage_void.is_void(letter.payload):
        return usage_void.decode(letter.payload).batch_id
    return usage_batch.decode(letter.payload).batch_id


def replay(settings: Settings, store: Store, letters: Sequence[StoredLetter]) -> list[Replayed]:
    """Write what can be read into the log again, wait until it is stored, and tell what became of each.

    A message keeps its batch_id, by which one that was replayed before is known: events without ids would count twice.
    Raises NotSettled, NotAcknowledged, KafkaException, WarehouseUnavailable. Replaying again is safe: it finds
    and skips messages that were written.
    """
    if not letters:
        return []
    wait_until_settled(settings, store)
    readable: dict[StoredLetter, bytes] = {}
    found: dict[StoredLetter, Replayed] = {}
    for letter in letters:
        try:
            readable[letter] = batch_id_of(letter)
        except UnreadableBatch as error:
            found[letter] = Replayed(letter, why=f"still not readable: {error}")
    known = stored_batches(store, readable.values())
    to_write: list[StoredLetter] = []
    for letter, batch_id in readable.items():
        if batch_id in known:
            found[letter] = Replayed(letter, why="stored already")
        else:
            known.add(batch_id)  # the same batch twice among the letters is one
            to_write.append(letter)
    for letter, offset in _write(settings, to_write).items():
        found[letter] = Replayed(letter, offset)
    if to_write:
        wait_until_settled(settings, store)
        stored = stored_batches(store, (readable[letter] for letter in to_write))
        for letter in to_write:
            if readable[letter] not in stored:
                found[letter] = Replayed(letter, found[letter].offset, "refused again: it is a dead letter there")
    return [found[letter] for letter in letters]


def _write(settings: Settings, letters: Sequence[StoredLetter]) -> dict[StoredLetter, int]:
    producer = AckedProducer(
        settings.kafka_properties, delivery_seconds=_DELIVERY_SECONDS, records_at_once=_MESSAGES_AT_ONCE
    )
    records = [Record(letter.partition, letter.key or None, letter.payload) for letter in letters]
    return dict(zip(letters, producer.write(topic_name(settings, USAGE_EVENTS), records), strict=True))


def wait_until_settled(settings: Settings, store: Store) -> Watermark:
    """Until ClickHouse has everything that is in the log now. Raises NotSettled after a minute."""
    topic = topic_name(settings, USAGE_EVENTS)
    ends = end_offsets(
        settings.kafka_properties, f"{topic}-ends", topic, range(settings.event_partitions), _REQUEST_SECONDS
    )
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        stored = settled(store, settings)[1]
        if all(stored.offsets.get(partition, 0) >= end for partition, end in ends.items()):
            return stored
        if time.monotonic() > deadline:
            raise NotSettled("ClickHouse does not have all of usage.events yet; is the sink running?")
        time.sleep(_POLL_SECONDS)
