"""A Kafka client that has forgotten all brokers → the process ends, and whoever supervises it starts a new one.

librdkafka forgets each broker that an answer about the cluster leaves out. A cluster that ends as a whole may answer at
last that it has none; a client whose connection is closed in the same moment has nobody left to ask, and never works
again (librdkafka's issue 5301, open; docs/decisions/chaos.md). What it is given fails, but one that only reads falls
silent. Its statistics tell: they name the cluster's brokers, reachable or not, unless all are forgotten.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient  # pyright: ignore[reportPrivateImportUsage]

log = structlog.get_logger(__name__)

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
_INTERVAL_MS = 5_000
_ANSWER_SECONDS = 5.0
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


def _end(properties: dict[str, str]) -> None:
    with _ending:  # one of them asks
        while not _is_answered(properties):
            pass
        log.critical("process_ends", reason="a Kafka client is lost while the cluster answers")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE)  # as after kill -9: everything of ours is made for that, and a lost client can't flush


def _is_answered(properties: dict[str, str]) -> bool:
    """Takes up to _ANSWER_SECONDS when it is not."""
    try:
        return bool(AdminClient({**properties}).list_topics(timeout=_ANSWER_SECONDS).brokers)
    except KafkaException:
        return False
