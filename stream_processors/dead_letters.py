"""unreadable messages → usage.dead_letters, acknowledged, before the log moves on past them."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.kafka.acked_producer import AckedProducer, Record
from schemas.dead_letter import DeadLetter, base64_text, encode
from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX, USAGE_DEAD_LETTERS, topic_name

# With base64 and JSON around it, still below what a topic takes: a letter that could not be sent would hold everything
# behind it.
PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX
KEY_BYTES_MAX = 1024
DETAIL_LENGTH_MAX = 1_000
_LETTERS_AT_ONCE = 100
_DELIVERY_SECONDS = 15.0


def dead_letter(
    topic: str,
    coordinates: tuple[int, int, int],
    key: bytes | None,
    payload: bytes | None,
    reason: str,
    detail: str,
    now_us: int,
) -> DeadLetter:
    """coordinates: epoch, partition, offset. Of a very long payload the beginning is kept, and detail says so."""
    length = len(payload or b"")
    if length > PAYLOAD_BYTES_MAX:
        detail = f"(the first {PAYLOAD_BYTES_MAX} of {length} bytes are kept) {detail}"
    epoch, partition, offset = coordinates
    return DeadLetter(
        topic=topic,
        epoch=epoch,
        partition=partition,
        offset=offset,
        reason=reason,
        detail=detail[:DETAIL_LENGTH_MAX],
        key=base64_text((key or b"")[:KEY_BYTES_MAX]),
        payload=base64_text((payload or b"")[:PAYLOAD_BYTES_MAX]),
        found_at=now_us,
    )


class DeadLetters:
    """Writes dead letters of usage.events into the partition that they come from."""

    def __init__(self, settings: Settings) -> None:
        self._topic = topic_name(settings, USAGE_DEAD_LETTERS)
        self._producer = AckedProducer(
            settings.kafka_properties,
            delivery_seconds=_DELIVERY_SECONDS,
            records_at_once=_LETTERS_AT_ONCE,
            more={"compression.type": "zstd", "message.max.bytes": 4 * PAYLOAD_BYTES_MAX},
        )

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when all are acknowledged. Raises NotAcknowledged; no offset behind them may be committed then."""
        records = [
            Record(letter.partition, f"{letter.epoch}/{letter.partition}/{letter.offset}", encode(letter))
            for letter in letters
        ]
        self._producer.write(self._topic, records)
