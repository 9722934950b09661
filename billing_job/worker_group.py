"""consumer groups → which customers this process bills, and its part of the calls that Stripe allows.

Workers share the ledger's partitions as any consumers do, and so customers. They fetch nothing through the group: the
ledger is read whole by everyone, and what keeps two runs from charging twice is the ledger, not this. A `close` by hand
joins a group of its own, so that the workers leave it a part of the rate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from fractions import Fraction

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.kafka.admin import admin_client
from runtime.kafka.client_watch import watched
from runtime.kafka.clients import create_member
from runtime.kafka.groups import group_members
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import BILLING_LEDGER, CLOSERS_GROUP, WORKERS_GROUP, topic_name

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_COUNT_SECONDS = 2.0
_STOP_SECONDS = 10.0
_POLL_AGE_SECONDS_MAX = 15.0


def rate_share(*, is_worker: bool, own: int, partitions: int, workers: int, closers: int) -> Fraction:
    """Part of the rate that a process may use; those of all processes together are at most 1. Pure.

    own: partitions of a worker. workers, closers: processes known of each kind, this one perhaps not among them yet.
    Each closer has as much as all workers together.
    """
    if is_worker:
        return Fraction(own, partitions) / (1 + closers)
    return Fraction(1, max(1, closers) + (1 if workers else 0))


class WorkerGroup:
    """A process's share of the customers, kept current by a thread. A context manager. Thread-safe.

    Until a worker's group has given it partitions it has none. A process that no worker shares with has them all.
    """

    def __init__(self, settings: Settings, *, is_worker: bool) -> None:
        self._settings = settings
        self._is_worker = is_worker
        self._partitions = settings.event_partitions
        self._own: frozenset[int] = frozenset() if is_worker else frozenset(range(self._partitions))
        self._groups = tuple(topic_name(settings, group) for group in (WORKERS_GROUP, CLOSERS_GROUP))
        self._members = (0, 0)
        self._counted_at = 0.0
        self._polled_at = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="share", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> WorkerGroup:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)

    def is_mine(self, organization_id: str, customer_id: str) -> bool:
        """Whether this process bills the customer now."""
        return partition_of(organization_id, customer_id, self._partitions) in self._own

    @property
    def partitions(self) -> frozenset[int]:
        return self._own

    def of_rate(self) -> Fraction:
        """The part of the calls to Stripe that this process may make now."""
        workers, closers = self._members
        return rate_share(
            is_worker=self._is_worker,
            own=len(self._own),
            partitions=self._partitions,
            workers=workers,
            closers=closers,
        )

    def check(self) -> str | None:
        """For /readyz."""
        if self._failure is not None:
            return f"the group can't be followed: {self._failure}"
        return "the group is not polled" if time.monotonic() - self._polled_at > _POLL_AGE_SECONDS_MAX else None

    # -- following -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # the thread is the last that could tell
            log.exception("share_died")
            self._failure = error
            self._own = frozenset() if self._is_worker else self._own

    def _follow(self) -> None:
        consumer = create_member(
            watched(self._settings.kafka_properties),
            self._groups[0 if self._is_worker else 1],
            {"auto.offset.reset": "latest", "session.timeout.ms": 10_000},
        )
        admin = admin_client(self._settings)
        try:
            consumer.subscribe(
                [topic_name(self._settings, BILLING_LEDGER)],
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._revoked,
            )
            while not self._stopping.is_set():
                consumer.poll(_POLL_SECONDS)  # nothing comes: all is paused
                self._polled_at = time.monotonic()
                if self._polled_at - self._counted_at > _COUNT_SECONDS:
                    self._counted_at = self._polled_at
                    try:
                        workers, closers = (group_members(admin, group) for group in self._groups)
                        self._members = (workers, closers)
                    except KafkaException as error:
                        log.warning("groups_not_counted", error=str(error))
                        admin = admin_client(self._settings)  # a client that received no brokers never recovers
        finally:
            consumer.close()

    def _assigned(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        consumer.assign(list(partitions))
        consumer.pause(list(partitions))
        if self._is_worker:
            self._own = frozenset(each.partition for each in partitions)
            log.info("partitions_assigned", partitions=sorted(self._own))

    def _revoked(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        del consumer, partitions  # eager: all of them
        if self._is_worker:
            self._own = frozenset()
