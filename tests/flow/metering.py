"""A merchant whose live totals are tested: real broker, catalog, aggregator processes, and what came out of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from catalog.store import CatalogStore
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas import alert as alert_codec
from schemas import repair as repair_codec
from schemas import totals as totals_codec
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, AlertRule
from schemas.event import client_identity, unscaled_value
from schemas.meter import Aggregation, Meter
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.repair import RepairReason, UsageRepair
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.topics import USAGE_ALERTS, USAGE_EVENTS, USAGE_REPAIRS, USAGE_TOTALS, topic_name
from schemas.totals import Progress, UsageTotal
from schemas.usage_batch import UsageBatch, encode, unscaled_bytes
from tests.known import make_known
from tests.services import Service, environment

MARCH = parse_rfc3339("2026-03-01T00:00:00Z")
APRIL = parse_rfc3339("2026-04-01T00:00:00Z")


@dataclass(frozen=True, slots=True)
class Event:
    """An event to send. value: as JSON spells it; None: without. event_id: None: without."""

    customer: str
    name: str = "calls"
    value: str | None = "1"
    event_id: str | None = None
    at: int = MARCH


class MeteringWorld:
    """Topics of its own on the session's broker. A context manager; workers are stopped at the end."""

    def __init__(self, kafka: KafkaBroker, prefix: str, directory: Path, **settings: Any) -> None:
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": prefix,
            "event_partitions": 3,
        }
        self.settings = Settings(**{**values, **settings})
        create_topics(self.settings)
        self.catalog = CatalogStore(self.settings)
        self.producer = Producer({**self.settings.kafka_properties, "acks": "all", "enable.idempotence": True})
        self.directory = directory
        self._workers: list[Service] = []

    def __enter__(self) -> MeteringWorld:
        self.catalog.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.kill()
        self.catalog.stop()

    def worker(self) -> Service:
        """An aggregator, not started."""
        worker = Service("aggregator", environment(self.settings), self.directory)
        self._workers.append(worker)
        return worker

    # -- in --------------------------------------------------------------------------------------------------------

    def meter(self, name: str, event_name: str = "calls", aggregation: Aggregation = Aggregation.SUM) -> Meter:
        meter = Meter(
            id=f"mtr_{name}",
            organization_id=DEFAULT_ORGANIZATION,
            created_at=0,
            name=name,
            event_name=event_name,
            unit="units",
            aggregation=aggregation,
        )
        return self.catalog.write(meter, 0)

    def customer(self, customer_id: str) -> None:
        """Known from now on, if not before."""
        make_known(self.catalog, [customer_id])

    def subscription(self, customer_id: str, meter: Meter, *, included: str, unit_amount: str) -> Subscription:
        """A product that prices the meter, and the customer's subscription to it from MARCH on."""
        price = {
            "model": "per_unit", "meter_id": meter.id, "included_units": included, "unit_amount": unit_amount,
        }  # fmt: skip
        own = {"organization_id": DEFAULT_ORGANIZATION, "created_at": 0}
        product = {**own, "id": f"prod_{customer_id}", "name": "p", "currency": "eur", "prices": [price]}
        self.catalog.write(Product.model_validate(product), 0)
        subscription = {
            **own, "id": f"sub_{customer_id}", "customer_id": customer_id, "product_id": product["id"],
            "started_at": MARCH, "billing_interval": "month", "collection_method": "send_invoice", "time_zone": "UTC",
        }  # fmt: skip
        return self.catalog.write(Subscription.model_validate(subscription), 0)

    def rule(
        self,
        name: str,
        meter: Meter,
        threshold: str,
        customer_id: str | None = None,
        kind: AlertKind = AlertKind.QUANTITY,
        **more: Any,
    ) -> AlertRule:
        rule = AlertRule.model_validate(
            {
                "id": f"rule_{name}",
                "organization_id": DEFAULT_ORGANIZATION,
                "created_at": 0,
                "meter_id": meter.id,
                "customer_id": customer_id,
                "kind": kind,
                "threshold": threshold,
                **more,
            }
        )
        return self.catalog.write(rule, 0)

    def send(self, *events: Event) -> None:
        """Events of what the catalog knows; it learns of it first where it does not."""
        make_known(self.catalog, (event.customer for event in events), (event.name for event in events))
        self.send_unknown(*events)

    def send_unknown(self, *events: Event) -> None:
        """A message for each partition concerned, in order, acknowledged on return."""
        by_partition: dict[int, list[Event]] = {}
        for event in events:
            partition = partition_of(DEFAULT_ORGANIZATION, event.customer, self.settings.event_partitions)
            by_partition.setdefault(partition, []).append(event)
        for partition, some in by_partition.items():
            self.send_bytes(partition, encode(batch_of(some)))
        self.flush()

    def send_bytes(self, partition: int, message: bytes) -> None:
        """Enqueue one message as it is."""
        self.producer.produce(topic_name(self.settings, USAGE_EVENTS), message, partition=partition)

    def repair(self, customer: str, *, repairs: int, count: int = 0, value: str = "0", **given: str | None) -> None:
        """Add to the customer's total of calls in March; given: max, max_was. Acknowledged on return."""
        partition = partition_of(DEFAULT_ORGANIZATION, customer, self.settings.event_partitions)
        repair = UsageRepair(
            repair_id=f"rep_{customer}_{repairs}",
            organization_id=DEFAULT_ORGANIZATION,
            customer_id=customer,
            event_name="calls",
            cycle_start=MARCH,
            cycle_end=APRIL,
            repairs=repairs,
            count=count,
            sum=value,
            max=given.get("max"),
            max_was=given.get("max_was"),
            topic_id="any",
            partition=partition,
            offset=0,
            reason=RepairReason.RECONCILE,
            made_at=0,
        )
        topic = topic_name(self.settings, USAGE_REPAIRS)
        self.producer.produce(topic, repair_codec.encode(repair), repair.key, partition)
        self.flush()

    def flush(self) -> None:
        assert self.producer.flush(30) == 0

    # -- out -------------------------------------------------------------------------------------------------------

    def totals(self) -> dict[tuple[str, str, int], UsageTotal]:
        """(customer, event_name, cycle_start) → total, as any reader of usage.totals has it."""
        newest: dict[bytes, UsageTotal] = {}
        for key, value in self._read(USAGE_TOTALS):
            if value is None:
                newest.pop(key, None)
            elif isinstance(record := totals_codec.decode(key, value), UsageTotal) and record.supersedes(
                newest.get(key)
            ):
                newest[key] = record
        return {(t.customer_id, t.event_name, t.cycle_start): t for t in newest.values()}

    def total(self, customer: str, name: str = "calls", cycle_start: int = MARCH) -> tuple[str, int, str | None]:
        """sum, count and max; zeros without a total."""
        found = self.totals().get((customer, name, cycle_start))
        return ("0", 0, None) if found is None else (found.sum, found.count, found.max)

    def progress(self) -> dict[int, int]:
        """Partition → next offset that is in the totals."""
        return {partition: record.next_offset for partition, record in self.progress_records().items()}

    def progress_records(self) -> dict[int, Progress]:
        """Partition → the furthest progress that is written."""
        reached: dict[int, Progress] = {}
        for key, value in self._read(USAGE_TOTALS):
            if value is not None and isinstance(record := totals_codec.decode(key, value), Progress):
                known = reached.get(record.partition)
                if known is None or record.next_offset >= known.next_offset:
                    reached[record.partition] = record
        return reached

    def alerts(self) -> dict[str, list[Alert]]:
        """Every publication, by id."""
        found: dict[str, list[Alert]] = {}
        for _, value in self._read(USAGE_ALERTS):
            alert = alert_codec.decode(value or b"")
            found.setdefault(alert.id, []).append(alert)
        return found

    def ends(self, of: str = USAGE_EVENTS) -> dict[int, int]:
        """Partition → next offset of a topic."""
        consumer = self._consumer("ends")
        topic = topic_name(self.settings, of)
        try:
            return {
                p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1]
                for p in range(self.settings.event_partitions)
            }
        finally:
            consumer.close()

    def committed(self) -> dict[int, int]:
        """Partition → the group's committed offset; 0 before the first commit."""
        consumer = self._consumer(topic_name(self.settings, "aggregator"))
        topic = topic_name(self.settings, USAGE_EVENTS)
        try:
            wanted = [TopicPartition(topic, p) for p in range(self.settings.event_partitions)]
            return {each.partition: max(0, each.offset) for each in consumer.committed(wanted, timeout=10)}
        finally:
            consumer.close()

    def all_committed(self) -> bool:
        return self.committed() == self.ends()

    def _consumer(self, group: str) -> Consumer:
        return Consumer(
            {
                **self.settings.kafka_properties,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
            }
        )

    def _read(self, topic: str) -> Iterable[tuple[bytes, bytes | None]]:
        """Keys and values of a whole topic, each partition in its order."""
        consumer = self._consumer("reader")
        unread = set(range(self.settings.event_partitions))
        consumer.assign([TopicPartition(topic_name(self.settings, topic), p, OFFSET_BEGINNING) for p in unread])
        deadline = time.monotonic() + 30
        records: list[tuple[bytes, bytes | None]] = []
        try:
            while unread:
                assert time.monotonic() < deadline, f"{topic} could not be read"
                for message in consumer.consume(10_000, 0.2):
                    error = message.error()
                    if error is None:
                        records.append((message.key() or b"", message.value()))
                    else:
                        assert error.code() == KafkaError._PARTITION_EOF, error  # pyright: ignore[reportPrivateUsage]
                        unread.discard(message.partition() or 0)
        finally:
            consumer.close()
        return records


def batch_of(events: Sequence[Event]) -> UsageBatch:
    identities = [client_identity(event.event_id) if event.event_id else "" for event in events]
    return UsageBatch(
        batch_id=os.urandom(16),
        received_at=time.time_ns() // 1000,
        organization_id=[DEFAULT_ORGANIZATION] * len(events),
        customer_id=[event.customer for event in events],
        event_name=[event.name for event in events],
        timestamp=[event.at for event in events],
        value=[None if event.value is None else unscaled_bytes(unscaled_value(event.value)) for event in events],
        identity=identities if any(identities) else (),
    )
