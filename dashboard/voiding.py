"""an event that is not to count → a tombstone in usage.events, as the API writes it."""

from __future__ import annotations

import secrets

from runtime.kafka.acked_producer import AckedProducer, Record
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_void import VoidRequest, encode, tombstone


class EventVoids:
    """Writes tombstones; each write returns when it is acknowledged. To void the same event again is safe."""

    def __init__(self, settings: Settings, writer: AckedProducer) -> None:
        self._topic = topic_name(settings, USAGE_EVENTS)
        self._partitions = settings.event_partitions
        self._writer = writer

    def write(self, organization_id: str, wanted: VoidRequest, now: int) -> None:
        """now: µs. Blocks. Raises NotAcknowledged."""
        message = encode(tombstone(organization_id, wanted, secrets.token_bytes(16), now))
        partition = partition_of(organization_id, wanted.customer_id, self._partitions)
        self._writer.write(self._topic, [Record(partition, None, message)])
