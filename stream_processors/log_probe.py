"""stored batch ids ↔ the log: whether the log still is what was read of it, and where it is not any more.

A log that has lost its end and grown again looks like one in which more was written. What tells is the batch: the
gateway draws an id for each message, so another id at the same offset is another message.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from runtime.kafka.clients import create_reader, raw
from runtime.kafka.log_ends import log_bounds
from schemas.settings import Settings
from schemas.topics import topic_name
from schemas.usage_batch import HEADER_LENGTH
from warehouse.client import Client

BATCH_ID_LENGTH = 16
_SECONDS = 10.0
_STORED = """
    SELECT kafka_offset, batch_id FROM ingest_batches
    WHERE kafka_epoch = {epoch:UInt16} AND kafka_partition = {partition:UInt16}
        AND kafka_offset >= {low:Int64} AND kafka_offset < {high:Int64}
        AND next_offset = kafka_offset + 1 AND batch_id != toFixedString('', 16)
    ORDER BY kafka_offset DESC LIMIT 1
"""

StoredBelow = Callable[[int, int], tuple[int, bytes] | None]
"""(low, high) → the greatest offset in [low, high) with a batch id that is stored, and the id."""
IdAt = Callable[[int], bytes]
"""offset → the id of the batch that the log has there."""


def kept_to(stored_below: StoredBelow, id_at: IdAt, low: int, high: int) -> int | None:
    """The offset after the last message in [low, high) that the log has as it was stored; None: all that can be told.

    What was stored without an id (messages set aside) can't be compared: it counts as lost where it lies behind what
    is. Where nothing is as it was stored, low. Pure but for what it is given.
    """
    last = stored_below(low, high)
    if last is None or id_at(last[0]) == last[1]:
        return None
    same, other = low, last[0]  # all below `same` is as it was stored, `other` is not
    while True:
        found = stored_below(same, other)
        if found is None:
            return same
        middle = stored_below(same, (same + other) // 2 + 1) or found
        if middle[0] >= other:
            middle = found
        if id_at(middle[0]) == middle[1]:
            same = middle[0] + 1
        else:
            other = middle[0]


class LogProbe:
    """Reads single messages of usage.events, and what ClickHouse has of them. Close it after use."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        self._consumer = create_reader(
            settings.kafka_properties,
            topic_name(settings, "usage-sink-probe"),
            more={"fetch.wait.max.ms": 100},
        )

    def close(self) -> None:
        self._consumer.close()

    def bounds(self, partition: int) -> tuple[int, int]:
        """First and next offset of the log. Raises KafkaException."""
        return log_bounds(self._consumer, TopicPartition(self._topic, partition), _SECONDS)

    def kept_to(self, client: Client, epoch: int, partition: int, low: int, high: int) -> int | None:
        """See above. Raises KafkaException and ClickHouseError."""

        def stored_below(low: int, high: int) -> tuple[int, bytes] | None:
            parameters = {"epoch": epoch, "partition": partition, "low": low, "high": high}
            rows = client.query(_STORED, parameters=parameters).result_rows
            return (int(rows[0][0]), bytes(rows[0][1])) if rows else None

        return kept_to(stored_below, lambda offset: self._id_at(partition, offset), low, high)

    def last_stored_below(self, client: Client, epoch: int, partition: int, high: int) -> int:
        """The offset after the last message below `high` that is stored with an id; 0 without any."""
        parameters = {"epoch": epoch, "partition": partition, "low": 0, "high": high}
        rows = client.query(_STORED, parameters=parameters).result_rows
        return int(rows[0][0]) + 1 if rows else 0

    def _id_at(self, partition: int, offset: int) -> bytes:
        self._consumer.assign([TopicPartition(self._topic, partition, offset)])
        deadline = time.monotonic() + _SECONDS
        try:
            while time.monotonic() < deadline:
                message = self._consumer.poll(0.2)
                if message is None:
                    continue
                if (error := message.error()) is not None:
                    raise KafkaException(error)
                if message.offset() == offset:
                    value = raw(message.value()) or b""
                    return value[HEADER_LENGTH : HEADER_LENGTH + BATCH_ID_LENGTH]
                break
        finally:
            self._consumer.unassign()
        raise KafkaException(
            KafkaError(KafkaError.REQUEST_TIMED_OUT, f"{self._topic} {partition}/{offset} is not read")
        )
