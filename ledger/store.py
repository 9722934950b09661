"""billing.ledger ⇄ memory: a thread follows the log and folds it; an append is answered by its verdict."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Sequence

import structlog

from ledger.records import LedgerRecord, UnreadableLedgerRecord, decode, encode, record_key
from ledger.view import InvoiceLedger
from runtime.kafka.followed_log import FollowedLog, LogRecord, LogUnavailable
from runtime.kafka.followed_log import RecordTooLarge as RecordTooLarge
from runtime.one_by_one import OneByOne
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import BILLING_LEDGER, topic_name

log = structlog.get_logger(__name__)

# So that neither the producer's queue nor the time until an answer depends on how many records are appended.
_APPENDED_AT_ONCE = 5_000


class LedgerUnavailable(LogUnavailable):
    """The ledger could not be read or written in time. Whether a record was written is unknown then."""


class LedgerLog:
    """The ledger as one process has it: `state` is the fold of every record that was read.

    start() returns when the fold has everything that was in the log then. append() returns when the fold has the
    written record, with its verdict, so that a writer works only from the log. Thread-safe. A context manager.
    """

    def __init__(self, settings: Settings, *, timeout_seconds: float = 10.0) -> None:
        self.state = InvoiceLedger()
        self.writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._partitions = settings.event_partitions
        self._timeout = timeout_seconds
        # A record that can't be folded is invalid in every process, because all run the same code.
        self._loop = OneByOne("ledger", lambda _: False)
        self._log = FollowedLog(
            settings.kafka_properties,
            topic_name(settings, BILLING_LEDGER),
            self._fold,
            name="ledger",
            unavailable=LedgerUnavailable,
            partitions=self._partitions,
            seconds=timeout_seconds,
            delivery_seconds=timeout_seconds,
            producer={"compression.type": "lz4"},
        )

    def __enter__(self) -> LedgerLog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Raises LedgerUnavailable when the log can't be read: no broker, no topic, or its beginning is missing."""
        self._log.start()

    def stop(self) -> None:
        self._log.stop()

    @property
    def next_offsets(self) -> dict[int, int]:
        """Partition → offset up to which the fold has everything."""
        return self._log.next_offsets

    def check(self) -> str | None:
        """None while the log is being followed, else why not: for /readyz."""
        return self._log.check()

    def append(self, record: LedgerRecord) -> bool:
        """Write, wait until the fold has it, and return whether it is valid.

        Raises LedgerUnavailable and RecordTooLarge.
        """
        return self.append_all([record])[0]

    def append_all(self, records: Sequence[LedgerRecord]) -> list[bool]:
        """append, for records that do not wait for one another; those of one customer keep their order."""
        verdicts: list[bool] = []
        for start in range(0, len(records), _APPENDED_AT_ONCE):
            verdicts += self._append_some(records[start : start + _APPENDED_AT_ONCE])
        return verdicts

    def _append_some(self, records: Sequence[LedgerRecord]) -> list[bool]:
        appended = [
            self._log.append(
                partition_of(record.organization_id, record.customer_id, self._partitions),
                record_key(record),
                encode(record),
            )
            for record in records
        ]
        deadline = time.monotonic() + 2 * self._timeout + 1  # to be acknowledged, then to be read
        return [self._log.verdict_of(verdict, deadline) for verdict in appended]

    def _fold(self, message: LogRecord) -> bool:
        """Whether the record is valid."""
        try:
            record = decode(message.value)
        except UnreadableLedgerRecord as error:
            log.warning(
                "ledger_record_unreadable", partition=message.partition, offset=message.offset, error=str(error)
            )
            return False
        with self._loop.one(f"{message.partition}/{message.offset}"):
            return self.state.apply(record)
        return False
