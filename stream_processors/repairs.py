"""usage.repairs → what a worker's states have not taken in yet. Without a group: the states know their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from confluent_kafka import KafkaException, TopicPartition

from runtime.kafka.client_watch import watched
from runtime.kafka.clients import create_reader
from runtime.kafka.log_ends import log_bounds
from schemas.settings import Settings
from schemas.topics import USAGE_REPAIRS, topic_name

log = structlog.get_logger(__name__)

READ_SECONDS = 0.25
_REQUEST_SECONDS = 10.0
_READ_MESSAGES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Raw:
    """A message of usage.repairs as it is."""

    partition: int
    offset: int
    value: bytes


class RepairReader:
    """One consumer, used from one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._topic = topic_name(settings, USAGE_REPAIRS)
        # Repairs that expire unread are a fault, so the reader reports the gap instead of skipping it.
        self._consumer = create_reader(watched(settings.kafka_properties), f"{self._topic}-reader")

    def follow(self, places: Mapping[int, int | None]) -> dict[int, int]:
        """Read these partitions from now on; where each begins. places: next offsets; None: at the end.

        Raises KafkaException.
        """
        begun = {partition: self._start(partition, place) for partition, place in places.items()}
        self._consumer.assign([TopicPartition(self._topic, partition, at) for partition, at in begun.items()])
        return begun

    def read(self) -> list[Raw]:
        """What is there, after at most READ_SECONDS; [] when nothing is. Raises KafkaException."""
        first = self._consumer.poll(READ_SECONDS)
        messages = [] if first is None else [first, *self._consumer.consume(_READ_MESSAGES_MAX - 1, 0)]
        found: list[Raw] = []
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
            partition, offset = message.partition(), message.offset()
            assert partition is not None, "a message has a place"
            assert offset is not None, "a message has a place"
            found.append(Raw(partition, offset, message.value() or b""))
        return found

    def close(self) -> None:
        self._consumer.close()

    def _start(self, partition: int, place: int | None) -> int:
        first, end = log_bounds(self._consumer, TopicPartition(self._topic, partition), _REQUEST_SECONDS)
        if place is None:
            return end
        if place < first:
            log.error("repairs_expired_unread", partition=partition, first=place, next=first)
        elif place > end:
            # The topic was made again. Reading all of it is safe: no total takes in a repair twice.
            log.warning("repairs_end_early", partition=partition, wanted=place, end=end)
        else:
            return place
        return first
