"""What a running Kafka client never gets over → the process ends, and whoever supervises it starts a new one.

Brokers forgotten: librdkafka forgets each broker that an answer about the cluster leaves out. A cluster that ends as a
whole may answer at last that it has none; a client whose connection is closed in the same moment has nobody left to ask
(librdkafka's issue 5301, open; docs/decisions/chaos.md). What it is given fails, but one that only reads falls silent.
Its statistics tell: they name the cluster's brokers, reachable or not, unless all are forgotten.

A producer that has failed for good: a broker that lost messages of an idempotent producer refuses its next ones. The
client raises that from poll, once, instead of calling error_cb: a thread that only polls would end unheard.

A log that lost its end: a view that has read records which no longer exist can't take them back. A new process reads
the log as it is.

A topic made again: its partitions' epochs begin anew, and librdkafka takes them for old news when it has seen greater
ones (its issue 4898, open): it waits for ever, silently. Nor would we want to go on as if the log were the same.
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
from confluent_kafka.admin import AdminClient  # pyright: ignore[reportPrivateImportUsage]

from runtime.kafka.admin import admin_client, topic_ids
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
    """From now on the process ends, with EXIT_CODE, once a watched client is lost and a new one would be answered.

    Not before: a gateway says 503 as long as the cluster is away, which a process that can't start does not.
    """
    _ends_process.set()


def watched(properties: Mapping[str, str]) -> dict[str, Any]:
    """The properties for a client that is polled all the time; one that is not would pile up its statistics."""
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


LOST_PLACE = (
    KafkaError._AUTO_OFFSET_RESET,  # pyright: ignore[reportPrivateUsage]
    KafkaError._LOG_TRUNCATION,  # pyright: ignore[reportPrivateUsage]
    KafkaError.OFFSET_OUT_OF_RANGE,
)
"""Codes of an error that says, with auto.offset.reset=error: what was read up to here is not in the log any more."""


def end_process_of_lost_log(topic: str, error: KafkaError) -> None:
    """Ends the process of a service, with EXIT_CODE; elsewhere nothing happens."""
    if _ends_process.is_set():
        _end_now(f"the log of {topic} is not what was read of it: {error}")


def poll_producer(producer: Producer, seconds: float) -> str | None:
    """Poll; why the producer never works again, None: it does. Then the process of a service ends, with EXIT_CODE."""
    try:
        producer.poll(seconds)
    except KafkaException as error:
        log.critical("producer_failed", error=str(error))
        if _ends_process.is_set():
            _end_now(f"a producer has failed for good: {error}")
        return str(error)
    return None


class TopicWatch:
    """Ends the process, with EXIT_CODE, when one of our topics is no longer the one that it was. A context manager."""

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
        self._stopping.set()  # not waited for: it may be asking a broker that is away

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
                        _end_now(f"the topic {name} was made again")
            except KafkaException:
                admin = admin_client(self._settings)
            self._stopping.wait(_TOPICS_SECONDS)


def _end(properties: dict[str, str]) -> None:
    with _ending:  # one of them asks
        while not _is_answered(properties):
            pass
        _end_now("a Kafka client is lost while the cluster answers")


def _end_now(reason: str) -> None:
    log.critical("process_ends", reason=reason)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)  # as after kill -9: everything of ours is made for that, and a lost client can't flush


def _is_answered(properties: dict[str, str]) -> bool:
    """Takes up to _ANSWER_SECONDS when it is not."""
    try:
        return bool(AdminClient({**properties}).list_topics(timeout=_ANSWER_SECONDS).brokers)
    except KafkaException:
        return False
