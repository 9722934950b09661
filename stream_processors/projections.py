"""catalog, billing.ledger, usage.alerts, usage.dead_letters → ClickHouse's tables for analysts, read API and finance.

At every start the logs are read from their beginning: they are the truth and kept for ever (alerts for 35 days, dead
letters for 90), the tables only show it, and a row written again changes nothing. So there is no commit that could be
wrong, and a ClickHouse that was restored from an older copy is right again.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import stamina
import structlog
from clickhouse_connect.driver.exceptions import DataError, ProgrammingError
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from catalog.record import UnreadableRecord
from catalog.record import decode as decode_catalog
from catalog.view import CatalogView
from ledger import records
from ledger.view import InvoiceLedger
from runtime.health import Check
from runtime.kafka.client_watch import watched
from runtime.kafka.clients import create_reader, is_lost_offset
from runtime.kafka.log_ends import log_bounds
from runtime.one_by_one import OneByOne
from schemas import alert as alerts
from schemas import dead_letter
from schemas.settings import Settings
from schemas.topics import (
    BILLING_LEDGER,
    CATALOG,
    SINK_PROJECTIONS_GROUP,
    USAGE_ALERTS,
    USAGE_DEAD_LETTERS,
    topic_name,
)
from stream_processors.inserts import DATA_CODES
from stream_processors.metrics import PROJECTED_ROWS, PROJECTION_FAILURES, PROJECTION_LAG
from stream_processors.projected_rows import Row, TableRow, alert_row, catalog_row, dead_letter_row, invoice_rows
from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, server_code
from warehouse.own_objects import foreign_object
from warehouse.shards import connect_shard

log = structlog.get_logger(__name__)

_BATCH_MAX = 5_000
_WAIT_SECONDS = 0.25
_REQUEST_SECONDS = 10.0
_POLL_AGE_SECONDS_MAX = 15.0
_PROGRESS_SECONDS = 1.0
_RECORD_LENGTH_MAX = 100_000


_UNREADABLE = (UnreadableRecord, records.UnreadableLedgerRecord, alerts.UnreadableAlert, msgspec.DecodeError)


class Refused(Exception):
    """No row of ClickHouse can hold it; trying again changes nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is in its log."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Projected:
    """A row, and the record that it is made of."""

    place: Place
    record: bytes
    table: str
    row: Row


def _is_shared(error: Exception) -> bool:
    """Whether it says nothing about the record: ClickHouse is away, or we are to stop."""
    return isinstance(error, ClickHouseError | WarehouseUnavailable | OSError)


def _raw(data: str | bytes | None) -> bytes:
    return data.encode() if isinstance(data, str) else data or b""


class Fold:
    """Records in log order → the rows that changed. Holds what is in force, so that losers are never shown."""

    def __init__(self) -> None:
        self._catalog = CatalogView()
        self._ledger = InvoiceLedger()

    def catalog(self, message: bytes) -> Iterable[TableRow]:
        record = decode_catalog(message)
        if self._catalog.apply(record) is None and (row := catalog_row(record.state, record.expected_version + 1)):
            yield row

    def ledger(self, message: bytes, offset: int) -> Iterable[TableRow]:
        record = records.decode(message)
        if self._ledger.apply(record) and not isinstance(record, records.StripeCustomer):
            invoice = self._ledger.get(record.invoice_id)
            if invoice is not None:
                yield from invoice_rows(invoice, offset)


class Projections:
    """A thread that keeps the tables current; `check` says why it does not."""

    def __init__(self, settings: Settings, on_failure: Callable[[], None], shard: int = 0) -> None:
        """on_failure: called, in the thread, when it dies. shard: of which server, from 0.

        The first one has all tables; the others those of the catalog, which the audit joins usage with.
        """
        self._settings = settings
        self._shard = shard
        self._client: Client | None = None
        self._on_failure = on_failure
        self._fold = Fold()
        self._catalog, self._ledger, self._alerts, self._dead_letters = self._topics = tuple(
            topic_name(settings, topic) for topic in (CATALOG, BILLING_LEDGER, USAGE_ALERTS, USAGE_DEAD_LETTERS)
        )
        if shard:
            self._topics = (self._catalog,)
        self._stopping = threading.Event()
        self._polled_at = time.monotonic()
        self._problem: str | None = "reading the logs"
        self._failure: BaseException | None = None
        self._failed: list[Row] = []  # of projection_failures, not written yet
        self._places: dict[tuple[str, int], int] = {}  # (topic, partition) → next offset, not written yet
        self._noted_at = 0.0
        self._begun_at: datetime | None = None  # while what failed before it is to be forgotten
        self._thread = threading.Thread(target=self._run, name="projections", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(_REQUEST_SECONDS)

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread; the process should end too."""
        return self._failure

    @property
    def checks(self) -> dict[str, Check]:
        return {f"projections{f'_shard_{self._shard + 1}' if self._shard else ''}": self.check}

    def check(self) -> str | None:
        if self._failure is not None:
            return repr(self._failure)
        if time.monotonic() - self._polled_at > _POLL_AGE_SECONDS_MAX:
            return self._problem or "not polling"
        return self._problem

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as error:
            self._failure = error
            log.exception("projections_died")
            self._on_failure()
        finally:
            self._drop_client()

    def _follow(self) -> None:
        # A record that was read and is gone is in the fold, so a lost offset ends the process: a new one reads the log.
        properties = watched(self._settings.kafka_properties)
        consumer = create_reader(properties, topic_name(self._settings, SINK_PROJECTIONS_GROUP))
        try:
            partitions = self._partitions(consumer)
            self._begun_at = datetime.now(UTC)
            ends = {(p.topic, p.partition): self._end(consumer, p) for p in partitions}
            consumer.assign([TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions])
            while not self._stopping.is_set():
                messages = consumer.consume(_BATCH_MAX, _WAIT_SECONDS)
                self._polled_at = time.monotonic()
                self._store(self._rows(messages))
                caught_up = self._caught_up(consumer, partitions, ends)
                self._note_progress(caught_up=caught_up)
                self._problem = None if caught_up else "reading the logs"
        finally:
            consumer.close()

    def _partitions(self, consumer: Consumer) -> list[TopicPartition]:
        found: list[TopicPartition] = []
        for topic in self._topics:
            known = consumer.list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic]
            if known.error is not None:
                raise KafkaException(known.error)
            found += [TopicPartition(topic, number) for number in sorted(known.partitions)]
        return found

    def _end(self, consumer: Consumer, partition: TopicPartition) -> int:
        low, high = log_bounds(consumer, partition, _REQUEST_SECONDS)
        return high if low < high else 0  # where all has expired there is nothing to reach

    def _caught_up(
        self, consumer: Consumer, partitions: Sequence[TopicPartition], ends: dict[tuple[str, int], int]
    ) -> bool:
        """Whether everything that was there at the start is in the tables."""
        reached = {(at.topic, at.partition): max(at.offset, 0) for at in consumer.position(list(partitions))}
        highs = {key: consumer.get_watermark_offsets(TopicPartition(*key), cached=True)[1] for key in reached}
        PROJECTION_LAG.set(sum(max(0, highs[key] - offset) for key, offset in reached.items()))
        return all(offset >= ends[key] for key, offset in reached.items())

    def _rows(self, messages: Sequence[Message]) -> list[Projected]:
        rows: list[Projected] = []
        for message in messages:
            if error := message.error():
                if error.fatal() or is_lost_offset(error):
                    raise KafkaException(error)
                log.warning("projection_read_error", error=str(error))
                continue
            place = Place(message.topic() or "", message.partition() or 0, message.offset() or 0)
            value = _raw(message.value())
            self._places[place.topic, place.partition] = place.offset + 1

            def refused(_: str, reason: str, place: Place = place, value: bytes = value) -> None:
                self._set_aside(place, value, reason)

            with OneByOne("projections", _is_shared, refused).one(str(place)):
                try:
                    rows += [Projected(place, value, table, row) for table, row in self._rows_of(place, value)]
                except _UNREADABLE as error:
                    # Every reader ignores it alike.
                    log.warning("record_unreadable", topic=place.topic, offset=place.offset, error=str(error))
        return rows

    def _rows_of(self, place: Place, value: bytes) -> Iterator[TableRow]:
        """Raises one of _UNREADABLE."""
        if place.topic == self._catalog:
            yield from self._fold.catalog(value)
        elif place.topic == self._ledger:
            yield from self._fold.ledger(value, place.offset)
        elif place.topic == self._alerts:
            yield alert_row(alerts.decode(value), place.offset)
        else:
            yield dead_letter_row(dead_letter.decode(value))

    # -- writing -------------------------------------------------------------------------------------------------------

    def _store(self, rows: Sequence[Projected]) -> None:
        """Insert, and try again until ClickHouse has them; a table gets one insert.

        What no table takes is set aside.
        """
        tables: dict[str, list[Projected]] = defaultdict(list)
        for each in rows:
            tables[each.table].append(each)
        for table, of_table in tables.items():
            by_place = {str(each.place): each for each in of_table}

            def refused(key: str, reason: str, rows: dict[str, Projected] = by_place) -> None:
                self._set_aside(rows[key].place, rows[key].record, reason, rows[key])

            loop = OneByOne("projections", _is_shared, refused)
            parts = loop.by_halves(of_table, self._insert_rows, key=lambda each: str(each.place))
            PROJECTED_ROWS.labels(table).inc(sum(parts))
        if self._failed:
            failed, self._failed = self._failed, []
            self._insert("projection_failures", failed)

    def _insert_rows(self, rows: Sequence[Projected]) -> int:
        self._insert(rows[0].table, [each.row for each in rows])
        return len(rows)

    def _insert(self, table: str, rows: Sequence[Row]) -> None:
        """Returns when ClickHouse has them. Raises Refused where it never will."""
        names = list(rows[0])
        data = [[row[name] for name in names] for row in rows]
        for attempt in stamina.retry_context(on=self._again, attempts=None, timeout=None, wait_max=5.0):
            with attempt:
                if self._client is None:
                    self._client = connect_shard(self._settings, self._shard)
                try:
                    self._client.insert(table, data, column_names=names)
                except (DataError, ProgrammingError) as error:  # of the client's own making: a value that has no bytes
                    raise Refused(str(error)) from error
                except ClickHouseError as error:
                    if server_code(error) in DATA_CODES and foreign_object(error) is None:
                        raise Refused(str(error)) from error
                    raise

    def _set_aside(self, place: Place, record: bytes, reason: str, row: Projected | None = None) -> None:
        """Keep what is in no table where people see it: projection_failures, which the audit reads."""
        PROJECTION_FAILURES.labels(row.table if row else "").inc()
        self._failed.append(
            {
                "kafka_topic": place.topic,
                "kafka_partition": place.partition,
                "kafka_offset": place.offset,
                "table_name": row.table if row else "",
                "organization_id": str(row.row.get("organization_id", "")) if row else "",
                "reason": reason,
                "record": record.decode(errors="replace")[:_RECORD_LENGTH_MAX],
                "found_at": datetime.now(UTC),
            }
        )

    def _note_progress(self, *, caught_up: bool) -> None:
        """Say how far the tables are, about once a second while that changes."""
        now = time.monotonic()
        if self._places and now - self._noted_at >= _PROGRESS_SECONDS:
            self._noted_at = now
            places, self._places = self._places, {}
            self._insert(
                "projection_progress",
                [
                    {"kafka_topic": topic, "kafka_partition": partition, "next_offset": after}
                    for (topic, partition), after in places.items()
                ],
            )
        if caught_up and self._begun_at is not None:
            # What an earlier version failed at, and this one did not.
            began, self._begun_at = self._begun_at, None
            self._command("DELETE FROM projection_failures WHERE found_at < {began:DateTime64(6)}", {"began": began})

    def _command(self, statement: str, parameters: dict[str, object]) -> None:
        for attempt in stamina.retry_context(on=self._again, attempts=None, timeout=None, wait_max=5.0):
            with attempt:
                if self._client is None:
                    self._client = connect_shard(self._settings, self._shard)
                self._client.command(statement, parameters=parameters)

    def _again(self, error: Exception) -> bool:
        """While ClickHouse is away: try again, unready, polled at its own pace; not once we are to stop."""
        if not isinstance(error, ClickHouseError | WarehouseUnavailable | OSError):
            return False
        self._drop_client()
        self._problem = f"ClickHouse: {error}"
        self._polled_at = time.monotonic()
        log.warning("projection_insert_failed", error=str(error)[:500])
        return not self._stopping.is_set()

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
