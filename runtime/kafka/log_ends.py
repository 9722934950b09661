"""topics → the first and next offset of each partition's log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.kafka.clients import Properties, create_reader

_RETRY_SECONDS = 0.2
A = TypeVar("A")


def log_bounds(consumer: Consumer, partition: TopicPartition, seconds: float) -> tuple[int, int]:
    """First offset that is kept, and the next one to be written. Raises KafkaException.

    Retried for these seconds: a partition that was created a moment ago, or that has just lost its leader, has no
    bounds yet.
    """
    return retried(lambda left: consumer.get_watermark_offsets(partition, timeout=left), seconds)


def end_offsets(
    properties: Properties, name: str, topic: str, partitions: Iterable[int], seconds: float
) -> dict[int, int]:
    """Partition → the next offset to be written. name: group.id of the request's client. Raises KafkaException."""
    consumer = create_reader(properties, name)
    try:
        return {number: log_bounds(consumer, TopicPartition(topic, number), seconds)[1] for number in partitions}
    finally:
        consumer.close()


class LogEnds:
    """Bounds of logs, by one client that is kept. Thread-safe: requests of several threads run one after another.

    A client of its own, because a broker answers the requests of a connection in turn: on a consumer's connection each
    of these would wait for a fetch to end.
    """

    def __init__(self, properties: Properties, name: str, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._consumer = create_reader(properties, name, out_of_range="earliest")

    def of(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset that is kept, and the next one to be written. Raises KafkaException."""
        with self._lock:
            return log_bounds(self._consumer, TopicPartition(topic, partition), self._seconds)

    def first_kept(self, topic: str, partition: int, offset: int) -> int | None:
        """The offset of the first record at or after `offset`; None: not known. Raises KafkaException."""
        first, end = self.of(topic, partition)
        if first > offset or end <= offset:
            return max(first, offset)
        with self._lock:
            self._consumer.assign([TopicPartition(topic, partition, offset)])
            try:
                message = self._consumer.poll(self._seconds)
                return None if message is None or message.error() else message.offset()
            finally:
                self._consumer.unassign()

    def close(self) -> None:
        with self._lock:
            self._consumer.close()


def retried(request: Callable[[float], A], seconds: float) -> A:
    """The first answer within these seconds; `request` gets the seconds that are left. Raises KafkaException.

    Not by a library, which would log each attempt of a failure that is usual for a moment.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            return request(max(_RETRY_SECONDS, left))
        except KafkaException:
            if left <= 0:
                raise
        time.sleep(_RETRY_SECONDS)
