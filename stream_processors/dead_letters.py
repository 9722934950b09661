"""unreadable messages → usage.dead_letters, acknowledged, before the log moves on past them."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Producer

from schemas.dead_letter import DeadLetter, encode
from schemas.settings import Settings
from schemas.topics import USAGE_DEAD_LETTERS, topic_name

_FLUSH_SECONDS = 15.0


class DeadLettersUnwritten(Exception):
    """Kafka did not acknowledge; nothing may be committed."""


class DeadLetters:
    """Writes dead letters of usage.events into the partition that they come from."""

    def __init__(self, settings: Settings) -> None:
        self._topic = topic_name(settings, USAGE_DEAD_LETTERS)
        self._producer = Producer(
            {
                **settings.kafka_properties,
                "acks": "all",
                "enable.idempotence": True,
                "delivery.timeout.ms": int(_FLUSH_SECONDS * 1000),
                "message.max.bytes": 16 * 1024 * 1024,
            }
        )

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when all are acknowledged. Raises DeadLettersUnwritten."""
        failures: list[str] = []
        for letter in letters:
            self._producer.produce(
                self._topic,
                encode(letter),
                f"{letter.epoch}/{letter.partition}/{letter.offset}",
                partition=letter.partition,
                on_delivery=lambda error, _: failures.append(str(error)) if error else None,
            )
        left = self._producer.flush(_FLUSH_SECONDS)
        if left or failures:
            raise DeadLettersUnwritten(f"{left} dead letters unacknowledged; {'; '.join(failures[:3])}")
