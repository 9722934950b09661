"""records → Kafka, acknowledged before the writer goes on: for the few that a page or a webhook makes."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.settings import Settings

WRITE_SECONDS = 10.0


class NotWritten(Exception):
    """Kafka did not take a record in time; whether it has it is unknown."""


class LogWriter:
    """One producer, made when it is first needed, and anew after a failure. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._properties = settings.kafka_properties
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def write(self, topic: str, records: Iterable[tuple[int, bytes | None, bytes]]) -> None:
        """records: partition, key, value. Blocks until all are acknowledged. Raises NotWritten."""
        errors: list[str] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                errors.append(str(error))

        producer = self._opened()
        try:
            for partition, key, value in records:
                producer.produce(topic, value, key, partition, on_delivery=delivered)
            if producer.flush(WRITE_SECONDS):
                errors.append("not acknowledged in time")
        except BufferError as error:
            raise NotWritten(str(error)) from error
        except KafkaException as error:  # one that has failed for good raises it from here
            errors.append(str(error))
        if errors:
            with self._lock:
                self._producer = None  # a producer that was told of no brokers never works again
            raise NotWritten(errors[0])

    def _opened(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = Producer(
                    {
                        **self._properties,
                        "acks": "all",
                        "enable.idempotence": True,
                        "linger.ms": 0,
                        "delivery.timeout.ms": int(WRITE_SECONDS * 500),
                    }
                )
            return self._producer
