"""catalog, billing.ledger, usage.alerts, usage.dead_letters → ClickHouse's tables for analysts, read API and finance.

At every start the logs are read from their beginning: they are the truth and kept for ever (alerts for 35 days, dead
letters for 90), the tables only show it, and a row written again changes nothing. So there is no commit that could be
wrong, and a ClickHouse that was restored from an older copy is right again.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import stamina
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from catalog.record import UnreadableRecord
from catalog.record import decode as decode_catalog
from catalog.view import CatalogView
from runtime.kafka_watch import watched
from runtime.topics import log_bounds
from schemas import alert as alerts
from schemas import dead_letter, ledger
from schemas.invoice_ledger import InvoiceLedger
from schemas.settings import Settings
from schemas.topics import (
    BILLING_LEDGER,
    CATALOG,
    SINK_PROJECTIONS_GROUP,
    USAGE_ALERTS,
    USAGE_DEAD_LETTERS,
    topic_name,
)
from stream_processors.metrics import PROJECTED_ROWS, PROJECTION_LAG
from stream_processors.projected_rows import Row, TableRow, alert_row, catalog_row, dead_letter_row, invoice_rows
from warehouse.client import ClickHouseError, Client, WarehouseUnavailable

log = structlog.get_logger(__name__)

_BATCH_MAX = 5_000
_WAIT_SECONDS = 0.25
_REQUEST_SECONDS = 10.0
_POLL_AGE_SECONDS_MAX = 15.0


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
        record = ledger.decode(message)
        if self._ledger.apply(record) and not isinstance(record, ledger.StripeCustomer):
            invoice = self._ledger.get(record.invoice_id)
            if invoice is not None:
                yield from invoice_rows(invoice, offset)


class Projections:
    """A thread that keeps the tables current; `check` says why it does not."""

    def __init__(self, settings: Settings, connect: Callable[[], Client], on_failure: Callable[[], None]) -> None:
        """on_failure: called, in the thread, when it dies."""
        self._settings = settings
        self._connect = connect
        self._client: Client | None = None
        self._on_failure = on_failure
        self._fold = Fold()
        self._catalog, self._ledger, self._alerts, self._dead_letters = self._topics = tuple(
            topic_name(settings, topic) for topic in (CATALOG, BILLING_LEDGER, USAGE_ALERTS, USAGE_DEAD_LETTERS)
        )
        self._stopping = threading.Event()
        self._polled_at = time.monotonic()
        self._problem: str | None = "reading the logs"
        self._failure: BaseException | None = None
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
        consumer = Consumer(
            {
                **watched(self._settings.kafka_properties),
                "group.id": topic_name(self._settings, SINK_PROJECTIONS_GROUP),  # never joined, nothing committed
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        try:
            partitions = self._partitions(consumer)
            ends = {(p.topic, p.partition): self._end(consumer, p) for p in partitions}
            consumer.assign([TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions])
            while not self._stopping.is_set():
                messages = consumer.consume(_BATCH_MAX, _WAIT_SECONDS)
                self._polled_at = time.monotonic()
                self._store(self._rows(messages))
                self._problem = None if self._caught_up(consumer, partitions, ends) else "reading the logs"
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

    def _rows(self, messages: Sequence[Message]) -> list[TableRow]:
        rows: list[TableRow] = []
        for message in messages:
            if error := message.error():
                if error.fatal():
                    raise KafkaException(error)
                log.warning("projection_read_error", error=str(error))
                continue
            topic, offset, value = message.topic(), message.offset() or 0, message.value() or b""
            try:
                if topic == self._catalog:
                    rows += self._fold.catalog(value)
                elif topic == self._ledger:
                    rows += self._fold.ledger(value, offset)
                elif topic == self._alerts:
                    rows.append(alert_row(alerts.decode(value), offset))
                else:
                    rows.append(dead_letter_row(dead_letter.decode(value)))
            except (UnreadableRecord, ledger.UnreadableLedgerRecord, alerts.UnreadableAlert, ValueError) as error:
                # Every reader ignores it alike.
                log.warning("record_unreadable", topic=topic, offset=offset, error=str(error))
        return rows

    def _store(self, rows: Sequence[TableRow]) -> None:
        """Insert, and try again until ClickHouse has them; a table gets one insert."""
        tables: dict[str, list[Row]] = defaultdict(list)
        for table, row in rows:
            tables[table].append(row)
        for table, of_table in tables.items():
            names = list(of_table[0])
            data = [[row[name] for name in names] for row in of_table]
            for attempt in stamina.retry_context(on=self._again, attempts=None, timeout=None, wait_max=5.0):
                with attempt:
                    if self._client is None:
                        self._client = self._connect()
                    self._client.insert(table, data, column_names=names)
            PROJECTED_ROWS.labels(table).inc(len(data))

    def _again(self, error: Exception) -> bool:
        """While ClickHouse is away: try again, unready, polled at its own pace; not once we are to stop."""
        self._drop_client()
        self._problem = f"ClickHouse: {error}"
        self._polled_at = time.monotonic()
        log.warning("projection_insert_failed", error=str(error)[:500])
        return isinstance(error, ClickHouseError | WarehouseUnavailable | OSError) and not self._stopping.is_set()

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
