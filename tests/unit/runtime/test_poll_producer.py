"""A producer that has failed for good is not polled on in silence."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from runtime.kafka import client_watch


class Failing:
    """As the client does it: the error is raised once, and from then on poll says nothing."""

    def __init__(self) -> None:
        self.errors: list[Exception] = [KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "lost"))]

    def poll(self, _seconds: float) -> int:
        if self.errors:
            raise self.errors.pop()
        return 0


@pytest.mark.parametrize("is_service", [True, False])
def test_a_service_ends_and_others_are_told(monkeypatch: pytest.MonkeyPatch, is_service: bool) -> None:
    ended: list[str] = []
    ends = threading.Event()
    if is_service:
        ends.set()
    monkeypatch.setattr(client_watch, "_ends_process", ends)
    monkeypatch.setattr(client_watch, "_end_now", ended.append)
    producer = cast(Producer, cast(Any, Failing()))
    assert "lost" in (client_watch.poll_producer(producer, 0) or "")
    assert len(ended) == is_service
    assert client_watch.poll_producer(producer, 0) is None
