"""Kafka clients that will never work again → the process ends, and its supervisor starts a new one.

Forgotten brokers: librdkafka forgets each broker that a metadata response leaves out. A cluster that stops as a whole
may answer at last that it has no brokers; a client whose connection closes at the same moment has no broker left to ask
(librdkafka issue 5301, open; docs/decisions/chaos.md). Its writes fail, but a client that only reads falls silent. Its
statistics show it: they name the cluster's brokers, reachable or not, unless all are forgotten.

A fatal producer error: a broker that lost messages of an idempotent producer refuses its next ones. The client raises
this from poll, once, instead of calling error_cb: a thread that only polls would end unnoticed.

A log that lost its end: a view can't take back records that no longer exist. A new process reads the log as it is.

A recreated topic: its partitions' leader epochs start again, and librdkafka ignores them as outdated when it has seen
greater ones (its issue 4898, open): it waits without end or error. A recreated topic is
another log in any case.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import msgspec
import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from runtime.kafka.admin import admin_client, metadata_problem, topic_ids
from schemas.settings import Settings

log = structlog.get_logger(__name__)

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
_INTERVAL_MS = 5_000
_ANSWER_SECONDS = 5.0
_TOPICS_SECONDS = 10.0
_ends_process = threading.Event()
_ending = threading.Lock()


class _Statistics(msgspec.Struct):
    name: str
    brokers: dict[str, msgspec.Raw]


def end_process_of_lost_clients() -> None:
    """From now on the process ends, with EXIT_CODE, once a watched client is lost and the cluster answers a new one.

    Not before: a gateway answers 503 as long as the cluster is away; a process that can't start answers nothing.
    """
    _ends_process.set()


def watched(properties: Mapping[str, str]) -> dict[str, Any]:
    """The properties for a client that is polled all the time. A client that is not would pile up its statistics."""
    times_without = 0

    def on_statistics(text: str) -> None:
        nonlocal times_without
        statistics = msgspec.json.decode(text, type=_Statistics)
        times_without = 0 if statistics.brokers else times_without + 1
        if times_without == 2:
            log.error("kafka_client_lost", client=statistics.name, reason="it was told that there are no brokers")
            if _ends_process.is_set():
                threading.Thread(target=_end, args=(dict(properties),), name="kafka-lost", daemon=True).start()

    return {**properties, "statistics.interval.ms": _INTERVAL_MS, "stats_cb": on_statistics}


def end_process_of_lost_log(topic: str, error: KafkaError) -> None:
    """Ends the process of a service, with EXIT_CODE; elsewhere nothing happens."""
    if _ends_process.is_set():
        _end_now(f"the log of {topic} no longer has what was read of it: {error}")


def poll_producer(producer: Producer, seconds: float) -> str | None:
    """Poll, and return None, or why the producer never works again; a service's process then ends with EXIT_CODE."""
    try:
        producer.poll(seconds)
    except KafkaException as error:
        log.critical("producer_failed", error=str(error))
        if _ends_process.is_set():
            _end_now(f"a producer has failed for good: {error}")
        return str(error)
    return None


class TopicWatch:
    """Ends the process, with EXIT_CODE, when one of our topics was recreated. A context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="topic-watch", daemon=True)

    def __enter__(self) -> TopicWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()  # without a join: the thread may be waiting for a broker that is away

    def _run(self) -> None:
        known: dict[str, str] = {}
        admin = admin_client(self._settings)
        while not self._stopping.is_set():
            try:
                found = topic_ids(self._settings, admin)
                if found and not known:
                    log.info("topics_watched", topics=len(found))
                for name, topic_id in found.items():
                    if known.setdefault(name, topic_id) != topic_id:
                        _end_now(f"the topic {name} was recreated")
            except KafkaException:
                admin = admin_client(self._settings)
            self._stopping.wait(_TOPICS_SECONDS)


def _end(properties: dict[str, str]) -> None:
    with _ending:  # one thread asks
        while metadata_problem(properties, _ANSWER_SECONDS) is not None:
            pass
        _end_now("a Kafka client is lost while the cluster answers")


def _end_now(reason: str) -> None:
    log.critical("process_ends", reason=reason)
    sys.stdout.flush()
    sys.stderr.flush()
    # As after kill -9, which every service recovers from; a lost client can't flush.
    os._exit(EXIT_CODE)
