"""Rounds of reconciling go on, whatever one of them ends in."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException

from runtime.kafka.admin import answer_of
from schemas.settings import Settings
from stream_processors import reconcile_service
from stream_processors.reconcile import ReconcileReport
from stream_processors.reconcile_service import ReconcileService
from tests.waiting import until


def test_a_round_that_fails_in_an_unknown_way_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[threading.Thread] = []

    def run(*_: object, **__: object) -> ReconcileReport:
        rounds.append(threading.current_thread())
        if len(rounds) == 1:
            raise TimeoutError
        return ReconcileReport(())

    monkeypatch.setattr(reconcile_service, "Reconciler", lambda *_: Mock(run=run))
    monkeypatch.setattr(reconcile_service, "_ROUND_SECONDS", 0.01)
    monkeypatch.setattr(reconcile_service, "_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(reconcile_service, "FIRST_ROUND_SECONDS", 0.0)
    service = ReconcileService(Settings(reconcile_seconds=1), Mock(), lambda: [0])  # pyright: ignore[reportCallIssue]
    service.voided(0, 3, [("org", "customer", "calls")])
    service.start()
    try:
        until(lambda: len(rounds) >= 3)
        assert len(set(rounds)) == 1
    finally:
        service.stop()


def test_an_answer_that_does_not_come_is_a_fault_of_kafkas() -> None:
    future: Future[int] = Future()
    with pytest.raises(KafkaException) as raised:
        answer_of(future, 0.0)
    assert raised.value.args[0].code() == KafkaError.REQUEST_TIMED_OUT
    future.set_result(3)
    assert answer_of(future, 0.0) == 3
