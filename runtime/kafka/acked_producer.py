"""records → Kafka; the call returns once every record is acknowledged. For writers of few records."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from runtime.kafka.clients import Properties, create_producer

_REPORT_SECONDS = 2.0  # for the report of a delivery that failed at its deadline


class NotAcknowledged(Exception):
    """Kafka did not acknowledge every record in time. Whether the log has a record is unknown."""


class Record(NamedTuple):
    """A record to be written. key None: without a key."""

    partition: int
    key: bytes | str | None
    value: bytes


class AckedProducer:
    """One producer, created when it is first needed, and recreated after a failure. Thread-safe.

    delivery_seconds: until a record without an acknowledgement counts as failed.
    records_at_once: records in the client's queue; bounds memory where records are large.
    """

    def __init__(
        self,
        properties: Properties,
        *,
        delivery_seconds: float,
        records_at_once: int = 1_000,
        more: Properties | None = None,
    ) -> None:
        self._properties = properties
        self._delivery_seconds = delivery_seconds
        self._records_at_once = records_at_once
        self._more = more
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def write(self, topic: str, records: Sequence[Record]) -> list[int]:
        """Write in order, wait for all acknowledgements, and return the records' offsets.

        Raises NotAcknowledged; records before the failing ones may be in the log then.
        """
        offsets: list[int] = []
        for first in range(0, len(records), self._records_at_once):
            offsets += self._write(topic, records[first : first + self._records_at_once])
        return offsets

    def _write(self, topic: str, records: Sequence[Record]) -> list[int]:
        offsets: dict[int, int] = {}
        errors: list[str] = []
        producer = self._current()
        try:
            for index, record in enumerate(records):

                def delivered(error: KafkaError | None, message: Message, index: int = index) -> None:
                    if error is not None:
                        errors.append(str(error))
                    else:
                        offsets[index] = -1 if (offset := message.offset()) is None else offset

                producer.produce(topic, record.value, record.key, record.partition, on_delivery=delivered)
            producer.flush(self._delivery_seconds + _REPORT_SECONDS)
        except (BufferError, KafkaException) as error:  # a producer with a fatal error raises from produce and flush
            errors.append(str(error))
        if errors or len(offsets) < len(records):
            self._drop(producer)
            missing = len(records) - len(offsets)
            raise NotAcknowledged(f"{missing} of {len(records)} records not acknowledged: {'; '.join(errors[:3])}")
        return [offsets[index] for index in range(len(records))]

    def _current(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = create_producer(
                    self._properties, delivery_seconds=self._delivery_seconds, more=self._more
                )
            return self._producer

    def _drop(self, producer: Producer) -> None:
        # A client that learned of a cluster without brokers never works again (client_watch.py), and neither does one
        # with a fatal error; an outage costs one more producer at most.
        with self._lock:
            if self._producer is producer:
                self._producer = None
