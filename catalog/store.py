"""catalog topic ⇄ view in memory: a thread follows the log; a write is answered by its record's fate in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import structlog
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from catalog.record import CatalogObject, CatalogRecord, UnreadableRecord, decode, encode
from catalog.view import CatalogView, Refusal
from runtime.actor import actor
from runtime.kafka.admin import log_bounds
from runtime.kafka.client_watch import LOST_PLACE, end_process_of_lost_log, poll_producer, watched
from runtime.one_by_one import OneByOne
from schemas.settings import Settings
from schemas.topics import CATALOG, topic_name

T = TypeVar("T", bound=CatalogObject)
Listener = Callable[[CatalogRecord], None]
log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_LOAD_BATCH = 10_000


class CatalogUnavailable(Exception):
    """The log could not be written or read in time. retry_safe: whether the write certainly did not happen."""


class CatalogConflict(Exception):
    """The record reached the log and lost there, or would have: nothing changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class CatalogStore:
    """The catalog as one process has it.

    start() returns when everything that was in the log then is in the view. write() returns when the view has reached
    the written record, so that the writer reads its own write. Thread-safe. Use as a context manager, or start/stop.
    """

    def __init__(self, settings: Settings, *, timeout_seconds: float = 10.0) -> None:
        self.view = CatalogView()
        self._topic = topic_name(settings, CATALOG)
        self._properties = settings.kafka_properties
        self._timeout = timeout_seconds
        self._listeners: list[Listener] = []
        self._waiting: dict[int, Future[Refusal | None]] = {}  # offset → fate, for our own writes
        self._fates: dict[int, Refusal | None] = {}  # fates of records read before their writer asked
        self._lock = threading.Lock()
        self._next_offset = 0
        self._last_poll = 0.0
        self._stopping = threading.Event()
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        # Views of the same code come to the same verdict: a record that it can't apply is in force in none.
        self._loop = OneByOne("catalog", lambda _: False)
        self._producer: Producer | None = None
        self._follower = threading.Thread(target=self._run, name="catalog", daemon=True)
        self._deliverer = threading.Thread(target=self._deliver, name="catalog-delivery", daemon=True)

    # -- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> CatalogStore:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Raises CatalogUnavailable when the log can't be read within the time-out."""
        self._follower.start()
        if not self._loaded.wait(self._timeout) or self._failure:
            self.stop()
            raise CatalogUnavailable(f"catalog {self._topic} could not be read: {self._failure or 'time-out'}")

    def stop(self) -> None:
        if self._producer is not None:
            self._producer.flush(self._timeout)
        self._stopping.set()
        for thread in (self._follower, self._deliverer):
            if thread.is_alive():
                thread.join(self._timeout)

    @property
    def ready(self) -> bool:
        """Whether the log is being followed: the thread lives and polled a moment ago."""
        return self._loaded.is_set() and self._failure is None and time.monotonic() - self._last_poll < 5.0

    @property
    def next_offset(self) -> int:
        """Offset in the log up to which the view has everything."""
        return self._next_offset

    def subscribe(self, listener: Listener) -> None:
        """Call it, in the catalog's thread, with every record that is applied from now on."""
        self._listeners.append(listener)

    # -- writing ---------------------------------------------------------------------------------------------------

    def submit(self, state: CatalogObject, expected_version: int) -> Future[Refusal | None]:
        """Write without waiting. The future is the record's fate: None when it is in force.

        Raises CatalogConflict when the view already knows that it would lose; the future raises CatalogUnavailable when
        the log does not acknowledge (whether it was written is unknown then).
        """
        record = CatalogRecord(state, expected_version, time.time_ns() // 1000, by=actor())
        if refusal := self.view.refusal(record):
            raise CatalogConflict(refusal)
        fate: Future[Refusal | None] = Future()

        def delivered(error: object, message: Message) -> None:
            if error is not None:
                fate.set_exception(CatalogUnavailable(f"catalog not written: {error}"))
                return
            offset = message.offset()
            assert offset is not None
            with self._lock:
                if offset in self._fates:
                    fate.set_result(self._fates.pop(offset))
                elif offset < self._next_offset:
                    fate.set_exception(CatalogUnavailable("the fate of the record is no longer known; read it again"))
                else:
                    self._waiting[offset] = fate

        try:
            self._writer().produce(self._topic, encode(record), partition=0, on_delivery=delivered)
        except (BufferError, KafkaException) as error:
            raise CatalogUnavailable(f"catalog not written: {error}") from error
        return fate

    def write(self, state: T, expected_version: int) -> T:
        """Write and wait until the view has it. Raises CatalogConflict or CatalogUnavailable."""
        fate = self.submit(state, expected_version)
        try:
            refusal = fate.result(self._timeout)
        except TimeoutError as error:
            raise CatalogUnavailable("the catalog's log did not answer in time; the outcome is unknown") from error
        if refusal:
            raise CatalogConflict(refusal)
        return state

    def _writer(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = Producer(
                    {
                        **watched(self._properties),
                        "acks": "all",
                        "enable.idempotence": True,
                        "linger.ms": 0,
                        "delivery.timeout.ms": int(self._timeout * 1000) // 2,
                    }
                )
                self._deliverer.start()
            return self._producer

    def _deliver(self) -> None:
        assert self._producer is not None
        while not self._stopping.is_set():
            poll_producer(self._producer, _POLL_SECONDS)

    # -- following -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # the thread is the last that could tell
            self._failure = error
            log.exception("catalog_follower_died", topic=self._topic)
        finally:
            self._loaded.set()

    def _follow(self) -> None:
        consumer = Consumer(
            {
                **watched(self._properties),
                "group.id": f"{self._topic}-view",  # never joined and never committed: every process reads all
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",  # a gap in the catalog is a fault, not something to jump over
                "fetch.wait.max.ms": 200,
            }
        )
        try:
            low, end = log_bounds(consumer, TopicPartition(self._topic, 0), self._timeout)
            if low != 0:
                raise CatalogUnavailable(f"the catalog begins at offset {low}: records are missing")
            consumer.assign([TopicPartition(self._topic, 0, 0)])
            while self._next_offset < end and not self._stopping.is_set():
                self._take_all(consumer.consume(_LOAD_BATCH, _POLL_SECONDS))
            self._last_poll = time.monotonic()
            self._loaded.set()
            while not self._stopping.is_set():
                message = consumer.poll(_POLL_SECONDS)
                self._last_poll = time.monotonic()
                self._take_all([] if message is None else [message])
        finally:
            consumer.close()

    def _take_all(self, messages: list[Message]) -> None:
        for message in messages:
            error = message.error()
            if error is None:
                self._take(message)
            elif error.fatal() or error.code() in LOST_PLACE:
                if error.code() in LOST_PLACE:
                    end_process_of_lost_log(self._topic, error)
                raise KafkaException(error)
            else:  # librdkafka goes on by itself
                log.warning("catalog_read_error", error=str(error))

    def _take(self, message: Message) -> None:
        offset = message.offset()
        assert offset is not None
        record, refusal = None, Refusal("unreadable", "it could not be applied")
        with self._loop.one(str(offset)):
            try:
                record = decode(message.value() or b"")
                refusal = self.view.apply(record)
            except UnreadableRecord as error:
                log.warning("catalog_record_unreadable", offset=offset, error=str(error))
                refusal = Refusal("unreadable", str(error))
        if record is not None and refusal is None:
            for listener in self._listeners:
                with self._loop.one(f"listener at {offset}"):
                    listener(record)
        with self._lock:
            # After the listeners: whoever waits for an offset finds all that follows from it done.
            self._next_offset = offset + 1
            waiting = self._waiting.pop(offset, None)
            if waiting is None and self._producer is not None and len(self._producer) > 0:
                self._fates[offset] = refusal
                if len(self._fates) > _LOAD_BATCH:
                    self._fates.pop(next(iter(self._fates)))
        if waiting is not None:
            waiting.set_result(refusal)
