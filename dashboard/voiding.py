"""an event that is not to count → a tombstone in usage.events, as the API writes it."""

from __future__ import annotations

import secrets

from runtime.kafka.acked_producer import AckedProducer, Record
from schemas.event import client_identity
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_void import UsageVoids, VoidRequest, encode


class EventVoids:
    """Writes tombstones; each write returns when it is acknowledged. To void the same event again is safe."""

    def __init__(self, settings: Settings, writer: AckedProducer) -> None:
        self._topic = topic_name(settings, USAGE_EVENTS)
        self._partitions = settings.event_partitions
        self._writer = writer

    def write(self, organization_id: str, wanted: VoidRequest, now: int) -> None:
        """now: µs. Blocks. Raises NotAcknowledged."""
        tombstone = UsageVoids(
            batch_id=secrets.token_bytes(16),
            received_at=now,
            organization_id=[organization_id],
            customer_id=[wanted.customer_id],
            event_name=[wanted.event_name],
            identity=[client_identity(wanted.event_id)],
            reason=[wanted.reason],
        )
        partition = partition_of(organization_id, wanted.customer_id, self._partitions)
        self._writer.write(self._topic, [Record(partition, None, encode(tombstone))])
