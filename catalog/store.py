"""catalog topic ⇄ view in memory: a thread follows the log; a write is answered by its record's verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import structlog

from catalog.record import CatalogObject, CatalogRecord, UnreadableRecord, decode, encode
from catalog.view import CatalogView, Refusal
from runtime.actor import actor
from runtime.clock import now_us
from runtime.kafka.followed_log import FollowedLog, LogRecord, LogUnavailable, RecordTooLarge
from runtime.one_by_one import OneByOne
from schemas.settings import Settings
from schemas.topics import CATALOG, topic_name

T = TypeVar("T", bound=CatalogObject)
Listener = Callable[[CatalogRecord], None]
log = structlog.get_logger(__name__)

_PARTITION = 0


class CatalogUnavailable(LogUnavailable):
    """The log could not be written or read in time. Whether a record was written is unknown then."""


class CatalogConflict(Exception):
    """The record lost in the log, or would have lost: nothing changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class CatalogStore:
    """The catalog as one process has it.

    start() returns when the view has everything that was in the log then. write() returns when the view has reached the
    written record, so that the writer reads its own write. Thread-safe. Use as a context manager, or start/stop.
    """

    def __init__(self, settings: Settings, *, timeout_seconds: float = 10.0) -> None:
        self.view = CatalogView()
        self._timeout = timeout_seconds
        self._listeners: list[Listener] = []
        # A record that can't be applied is invalid in every process, because all run the same code.
        self._loop = OneByOne("catalog", lambda _: False)
        self._log = FollowedLog(
            settings.kafka_properties,
            topic_name(settings, CATALOG),
            self._apply,
            name="catalog",
            unavailable=CatalogUnavailable,
            partitions=1,
            more_partitions=True,
            seconds=timeout_seconds,
            delivery_seconds=timeout_seconds / 2,
        )

    # -- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> CatalogStore:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Raises CatalogUnavailable when the log can't be read: no broker, no topic, or its beginning is missing."""
        self._log.start()

    def stop(self) -> None:
        self._log.stop()

    @property
    def ready(self) -> bool:
        """Whether the log is being followed: the thread lives and polled a moment ago."""
        return self._log.check() is None

    @property
    def next_offset(self) -> int:
        """Offset in the log up to which the view has everything."""
        return self._log.next_offsets.get(_PARTITION, 0)

    def subscribe(self, listener: Listener) -> None:
        """Call it, in the catalog's thread, with every record that is applied from now on."""
        self._listeners.append(listener)

    # -- writing ---------------------------------------------------------------------------------------------------

    def submit(self, state: CatalogObject, expected_version: int) -> Future[Refusal | None]:
        """Write without waiting. The future is the record's verdict: None when it is valid.

        Raises CatalogConflict when the view already knows that it would lose; the future raises CatalogUnavailable
        when the log does not acknowledge (whether it was written is unknown then).
        """
        record = CatalogRecord(state, expected_version, now_us(), by=actor())
        if refusal := self.view.refusal(record):
            raise CatalogConflict(refusal)
        try:
            return self._log.append(_PARTITION, None, encode(record))
        except RecordTooLarge as error:
            raise CatalogUnavailable(str(error)) from error

    def write(self, state: T, expected_version: int) -> T:
        """Write and wait until the view has it. Raises CatalogConflict or CatalogUnavailable."""
        appended = self.submit(state, expected_version)
        if refusal := self._log.verdict_of(appended, time.monotonic() + self._timeout):
            raise CatalogConflict(refusal)
        return state

    # -- following -------------------------------------------------------------------------------------------------

    def _apply(self, message: LogRecord) -> Refusal | None:
        record, refusal = None, Refusal("unreadable", "it could not be applied")
        with self._loop.one(str(message.offset)):
            try:
                record = decode(message.value)
                refusal = self.view.apply(record)
            except UnreadableRecord as error:
                log.warning("catalog_record_unreadable", offset=message.offset, error=str(error))
                refusal = Refusal("unreadable", str(error))
        if record is not None and refusal is None:
            for listener in self._listeners:
                with self._loop.one(f"listener at {message.offset}"):
                    listener(record)
        return refusal
