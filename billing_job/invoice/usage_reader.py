"""ClickHouse → quantities of meters below a watermark, and the same again by a fold that shares nothing with them."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal

import msgspec
import structlog
from confluent_kafka import KafkaException

from ledger.records import WaitCode
from ledger.snapshot import InvoiceFixed
from runtime.kafka.admin import admin_client, describe_topic
from runtime.kafka.log_ends import end_offsets
from schemas.meter import Meter
from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.watermark import Watermark
from warehouse.client import PROMPT, ClickHouseError, WarehouseUnavailable, unavailable
from warehouse.counted_at import CountedAt, totals_at
from warehouse.coverage import coverage
from warehouse.epochs import Epochs, UnknownTopic, lookup_epochs
from warehouse.evidence import CountedEvent, counted_events, row_faults
from warehouse.late import late_windows
from warehouse.one_store import StoreReplaced, is_marked, one_store
from warehouse.settled import stored_commits
from warehouse.shards import open_shards
from warehouse.totals import IncompleteAnswer, TotalsRequest, UsageTotal, exact_totals, independent_totals

log = structlog.get_logger(__name__)

_KAFKA_SECONDS = 10.0
_POLL_SECONDS = 0.1
_TOLD_EVERY_SECONDS = 5.0


class NotCovered(WarehouseUnavailable):
    """ClickHouse does not have yet what is to be counted.

    code and message stay the same while that lasts; detail says by how much it lags.
    """

    def __init__(self, code: WaitCode, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.code: WaitCode = code
        self.detail = detail


class _Asking(threading.local):
    """mark: of the store that this thread's questions are for; None: any."""

    mark: uuid.UUID | None = None


class Need(msgspec.Struct, frozen=True):
    """The meters of one invoice: events of the customer with a timestamp in [start_us, end_us)."""

    invoice_id: str
    organization_id: str
    customer_id: str
    start_us: int
    end_us: int
    meters: tuple[Meter, ...]

    def window(self, meter: Meter) -> TotalsRequest:
        """The events that make a meter's quantity."""
        return TotalsRequest(self.organization_id, self.customer_id, meter.event_name, self.start_us, self.end_us)


def need_of(fixed: InvoiceFixed) -> Need:
    """What to count for an invoice's own cycle, by its own snapshot; nothing for a final one."""
    meters = () if fixed.final else tuple(fixed.priced_meters.values())
    return Need(
        fixed.invoice_id,
        fixed.organization_id,
        fixed.customer_id,
        fixed.cycle_start,
        fixed.active_until,
        meters,
    )


Quantities = dict[str, dict[str, Decimal]]
"""invoice id → meter id → quantity."""


def quantity(meter: Meter, total: UsageTotal) -> Decimal:
    """The one number that a meter makes of events. Without any, and for a max without values, it is 0."""
    return meter.aggregation.quantity(total.sum, Decimal(total.count), total.max, Decimal(0))


def quantities(needs: Sequence[Need], totals: Mapping[TotalsRequest, UsageTotal]) -> Quantities:
    """Each invoice's meters, from the totals of their windows."""
    return {
        need.invoice_id: {meter.id: quantity(meter, totals[need.window(meter)]) for meter in need.meters}
        for need in needs
    }


class UsageReader:
    """Kafka's offsets and ClickHouse's totals, as billing reads them. A context manager; thread-safe for reading.

    prompt: for a page that someone waits for.
    """

    def __init__(self, settings: Settings, *, prompt: bool = False) -> None:
        self._settings = settings
        self._topic = topic_name(settings, USAGE_EVENTS)
        self._partitions = settings.event_partitions
        self._shards = open_shards(settings, more_settings=PROMPT if prompt else {})
        self._admin = admin_client(settings)
        self._asking = _Asking()

    def __enter__(self) -> UsageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._shards.close()

    # -- how far -------------------------------------------------------------------------------------------------------

    def watermark(self) -> Watermark:
        """The end of usage.events now: what is acknowledged before this call lies below it.

        Raises NotCovered where no sink has read this topic yet, and KafkaException, WarehouseUnavailable.
        """
        epochs = self._epochs()
        ends = end_offsets(
            self._settings.kafka_properties, f"{self._topic}-ends", self._topic, range(self._partitions), _KAFKA_SECONDS
        )
        return Watermark(epochs.base, ends, epochs.own)

    def covered(self) -> Watermark:
        """Everything below it is in ClickHouse now. Raises NotCovered, KafkaException, WarehouseUnavailable."""
        epochs = self._epochs()
        try:
            return coverage(self._shards, epochs.base, self._partitions, epochs.own)
        except ClickHouseError as error:
            raise unavailable(error) from error

    @contextmanager
    def one_store(self) -> Generator[None]:
        """What this thread asks within is answered by one store. Raises NotCovered at its end where that was not so.

        Whether everything is covered is to be asked within, too, and before the counting.
        """
        try:
            with one_store(self._shards) as mark:
                self._asking.mark = mark
                yield
        except StoreReplaced as error:
            raise NotCovered("not_stored", str(error)) from error
        finally:
            self._asking.mark = None

    def require_covered(self, watermarks: Iterable[Watermark]) -> None:
        """Raises NotCovered unless ClickHouse has everything below each of them now; and what `covered` raises."""
        stored = self.covered()
        for watermark in watermarks:
            if not watermark.reached_by(stored):
                raise NotCovered(
                    "not_stored", "ClickHouse does not have all events that were counted",
                    _missing(watermark, stored.offsets),
                )  # fmt: skip

    def wait_until_covered(self, watermark: Watermark, stopping: threading.Event) -> None:
        """Until ClickHouse has everything below the watermark, and the sink has committed it.

        Raises NotCovered after USAGE_COVERAGE_TIMEOUT_SECONDS, or when stopping is set; every few seconds it tells how
        much is missing.
        """
        deadline = time.monotonic() + self._settings.coverage_timeout_seconds
        told = time.monotonic()
        while True:
            lag = self._lag(watermark)
            if lag is None:
                return
            if time.monotonic() > deadline or stopping.is_set():
                raise lag
            if time.monotonic() - told > _TOLD_EVERY_SECONDS:
                log.info("waiting_for_coverage", reason=str(lag), detail=lag.detail)
                told = time.monotonic()
            stopping.wait(_POLL_SECONDS)

    # -- how much ------------------------------------------------------------------------------------------------------

    def totals(self, needs: Sequence[Need], watermark: Watermark) -> Quantities:
        """Quantities of events below the watermark, all in one query. Raises NotCovered, WarehouseUnavailable."""
        with self._whole():
            found = exact_totals(self._shards, windows(needs), watermark, mark=self._asking.mark)
        return quantities(needs, found)

    def independent_totals(self, needs: Sequence[Need], watermark: Watermark) -> Quantities:
        """The same by a fold of raw rows, the first of each identity. Raises as `totals`."""
        with self._whole():
            found = independent_totals(self._shards, windows(needs), watermark, mark=self._asking.mark)
        return quantities(needs, found)

    def totals_at(self, wanted: Sequence[CountedAt], organization_id: str | None) -> Mapping[CountedAt, UsageTotal]:
        """Windows, each below a watermark of its own. Raises WarehouseUnavailable."""
        return totals_at(self._shards, wanted, self._partitions, organization_id)

    def with_late_events(self, needs: Sequence[Need], since: Watermark, watermark: Watermark) -> set[str]:
        """Ids of those with events, stored at or after `since` and below the watermark. Raises as `totals`."""
        with self._whole():
            late = late_windows(self._shards, windows(needs), since, watermark, mark=self._asking.mark)
        return {need.invoice_id for need in needs if any(need.window(meter) in late for meter in need.meters)}

    def events(
        self, need: Need, meter: Meter, watermark: Watermark, invoiced: Watermark | None
    ) -> Iterator[list[CountedEvent]]:
        """Those that make a meter's quantity, oldest first. Raises WarehouseUnavailable."""
        return counted_events(self._shards, need.window(meter), watermark, invoiced)

    def row_faults(self, need: Need, meter: Meter, watermark: Watermark) -> list[str]:
        """Stored rows behind a meter's quantity that are not what was accepted. Raises WarehouseUnavailable."""
        partition = partition_of(need.organization_id, need.customer_id, self._partitions)
        return row_faults(self._shards, need.window(meter), partition, watermark)

    @contextmanager
    def _whole(self) -> Generator[None]:
        """An answer that lacks windows says nothing: what would be counted waits. Raises NotCovered."""
        try:
            yield
        except IncompleteAnswer as error:
            mark = self._asking.mark
            if mark is not None and not is_marked(self._shards, mark):
                raise NotCovered("not_stored", str(StoreReplaced()), str(error)) from error
            raise NotCovered(
                "incomplete_count", "ClickHouse did not answer for all that was to be counted", str(error)
            ) from error

    def _lag(self, watermark: Watermark) -> NotCovered | None:
        """Why not yet; None: it is reached."""
        try:
            own = self._epochs().own
            stored = coverage(self._shards, watermark.epoch, self._partitions, own)
        except NotCovered as lag:
            return lag
        except WarehouseUnavailable as error:
            return NotCovered("clickhouse_away", "ClickHouse does not answer", str(error))
        except ClickHouseError as error:
            return NotCovered("clickhouse_away", "ClickHouse does not answer", str(unavailable(error)))
        if not watermark.reached_by(stored):
            reason = "ClickHouse does not have all events of the watermark yet"
            return NotCovered("not_stored", reason, _missing(watermark, stored.offsets))
        committed = self._committed()
        if not watermark.reached_by(Watermark(watermark.epoch, committed, own)):
            reason = "the sink has not committed all events of the watermark yet"
            return NotCovered("not_committed", reason, _missing(watermark, committed))
        return None

    def _epochs(self) -> Epochs:
        try:
            topic = describe_topic(self._settings, USAGE_EVENTS, self._admin)
        except KafkaException:
            self._admin = admin_client(self._settings)  # a client that received no brokers never recovers
            raise
        try:
            return lookup_epochs(self._shards.first, topic.topic_id)
        except UnknownTopic as error:
            raise NotCovered("no_sink", "no sink has read usage.events yet", str(error)) from error
        except ClickHouseError as error:
            raise unavailable(error) from error

    def _committed(self) -> dict[int, int]:
        """Partition → next offset that the sink has committed."""
        return stored_commits(self._shards, self._settings, range(self._partitions))


def windows(needs: Sequence[Need]) -> list[TotalsRequest]:
    return [need.window(meter) for need in needs for meter in need.meters]


def _missing(watermark: Watermark, offsets: Mapping[int, int]) -> str:
    lags = {p: end - offsets.get(p, 0) for p, end in watermark.offsets.items() if end > offsets.get(p, 0)}
    return ", ".join(f"partition {p}: {lag} messages" for p, lag in sorted(lags.items()))
