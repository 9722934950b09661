"""Everything is lost, Kafka's log and ClickHouse's tables; a backup brings it back: invoices verify, none is charged twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from billing_job.context import BillingContext
from billing_job.service import BillingService
from catalog.store import CatalogStore
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from ledger.store import LedgerLog
from runtime.kafka.admin import create_topics
from runtime.kafka.groups import committed_offsets
from schemas import totals
from schemas.settings import Settings
from schemas.topics import SINK_GROUP, USAGE_ALERTS, USAGE_EVENTS, USAGE_TOTALS, USAGE_WEBHOOK_DELIVERIES, topic_name
from schemas.totals import UsageTotal
from tests.flow.billing import APRIL, MARCH, MAY, BillingWorld
from tests.services import Service
from usage_billing.backup import tables
from usage_billing.backup.run import Parts, create_backup, restore_backup
from usage_billing.backup.topics import NotEmpty
from warehouse.client import connect
from warehouse.migrate import migrate

pytestmark = pytest.mark.timeout(900)


ALL, KAFKA = Parts(), Parts(clickhouse=False)


def nothing(part: str, done: int) -> None:
    del part, done


@dataclass
class Stores:
    """A broker and an engine that may lose everything, and a merchant's billing on them."""

    kafka: KafkaBroker
    clickhouse: ClickHouseLocal
    world: BillingWorld

    def settle(self) -> None:
        """Until the sink has stored and committed all of the log."""
        settings = self.world.settings
        topic = topic_name(settings, USAGE_EVENTS)
        ends = end_offsets(settings, USAGE_EVENTS)
        group = topic_name(settings, SINK_GROUP)
        self.world.until(lambda: committed_offsets(settings, group, topic, range(3)) == ends)

    def leave(self) -> None:
        """End everything that follows the logs."""
        self.world.context.close()
        self.world.context.log.stop()
        self.world.catalog.stop()
        self.world.sink.stop()

    def enter(self) -> None:
        """Start it again, on what is there now."""
        world = self.world
        world.producer = Producer({**world.settings.kafka_properties, "acks": "all", "enable.idempotence": True})
        world.sink.start()
        world.catalog = CatalogStore(world.settings)
        world.catalog.start()
        ledger = LedgerLog(world.settings)
        ledger.start()
        world.context = BillingContext(world.settings, catalog=world.catalog, ledger=ledger)

    def lose(self, *, kafka: bool = True, clickhouse: bool = True) -> None:
        for engine in [self.kafka] * kafka + [self.clickhouse] * clickhouse:
            engine.stop()
            shutil.rmtree(engine.data_dir / ("logs" if engine is self.kafka else "data"))
            engine.start()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).with_name("usage-billing"))
        return subprocess.run(
            [program, *words], env=os.environ | self.world.env, capture_output=True, text=True, check=False
        )

    def run(self, *words: str) -> str:
        done = self.command(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def stores(
    kafka_factory: Callable[[], KafkaBroker], clickhouse_factory: Callable[[], ClickHouseLocal], tmp_path: Path
) -> Iterator[Stores]:
    kafka, clickhouse = kafka_factory(), clickhouse_factory()
    kafka.start()
    clickhouse.start()
    with BillingWorld(kafka, clickhouse, tmp_path) as world:
        yield Stores(kafka, clickhouse, world)


def end_offsets(settings: Settings, topic: str) -> dict[int, int]:
    consumer = Consumer({**settings.kafka_properties, "group.id": "ends"})
    try:
        places = [TopicPartition(topic_name(settings, topic), p) for p in range(settings.event_partitions)]
        return {place.partition: consumer.get_watermark_offsets(place, timeout=10)[1] for place in places}
    finally:
        consumer.close()


def test_everything_is_lost_and_restored(stores: Stores, tmp_path: Path) -> None:
    world = stores.world
    for customer in ("ann", "bob"):
        world.subscribe(customer)
        world.use(customer, "150000", identities=["c:first"])
        world.use(customer, "7", "7")  # without ids: known by their message
    world.use("bob", "1000000", identities=["c:wrong"])
    world.void("bob", "wrong")
    stores.settle()
    assert world.close(APRIL).by_state == {"paid": 2}
    world.use("ann", "20000", at=APRIL + 1, identities=["c:april"])
    world.use("ann", "20000", at=APRIL + 1, identities=["c:april"])  # counts once
    stores.settle()
    world.sink.stop()
    world.use("bob", "30000", at=APRIL + 1)  # only Kafka has it
    world.use("ann", "500", identities=["c:late"])  # of March, late
    stores.run("backup", str(tmp_path / "backup"))
    manifest = json.loads((tmp_path / "backup" / "manifest.json").read_text())
    assert {each["topic"]: sum(p["records"] for p in each["partitions"]) for each in manifest["topics"]}[
        "usage.events"
    ] == 2
    world.sink.start()
    stores.settle()
    later = world.close(MAY)  # charged, and in no backup
    assert later.by_state["paid"] >= 2, later
    before = {customer: paid(world, customer) for customer in ("ann", "bob")}
    charges = world.stripe.charges()

    stores.leave()
    stores.lose()
    stores.run("restore", str(tmp_path / "backup"))
    stores.enter()
    stores.settle()

    # What was invoiced before the backup says what it said, and is counted again to the same.
    assert verified(world) == [True] * 2
    assert "balances" in stores.run("audit")
    # What was charged after the backup is found at Stripe: the same invoices, and no second charge.
    again = world.close(MAY)
    assert again.by_state["paid"] >= 2, again
    assert not again.problems
    assert {customer: paid(world, customer) for customer in ("ann", "bob")} == before
    assert world.stripe.charges() == charges
    assert verified(world) == [True] * 4
    # Live totals of new topics: the tail is counted, what came before it is added by reconciling, as once an hour.
    aggregator = Service("aggregator", world.env, tmp_path).start()
    expected = {("ann", MARCH): "150514", ("bob", MARCH): "150014", ("ann", APRIL): "20000", ("bob", APRIL): "30000"}
    world.until(lambda: stores.command("reconcile").returncode == 0)
    assert live_totals(world.settings) == expected
    aggregator.stop()
    usage = world.query(
        "SELECT customer_id, count(), toString(sum(value)) FROM usage GROUP BY ALL ORDER BY customer_id"
    )
    assert usage == [("ann", 5, "170514"), ("bob", 4, "180014")]


def live_totals(settings: Settings) -> dict[tuple[str, int], str]:
    """(customer, cycle) → newest sum in usage.totals."""
    newest: dict[tuple[str, int], UsageTotal] = {}
    for partition in range(settings.event_partitions):
        for key, value, *_ in records_of(settings, USAGE_TOTALS, partition):
            record = totals.decode(key, value) if value is not None else None
            if isinstance(record, UsageTotal) and record.supersedes(
                newest.get((record.customer_id, record.cycle_start))
            ):
                newest[record.customer_id, record.cycle_start] = record
    return {place: record.sum for place, record in newest.items()}


def verified(world: BillingWorld) -> list[bool]:
    """Of each invoice in the ledger: whether raw events and its price snapshot give it again."""
    return [each.ok for each in BillingService(world.context).verify_all()]


def paid(world: BillingWorld, customer: str) -> list[tuple[str, int]]:
    """Stripe's invoices of a customer: their cycle, and what was paid."""
    found = world.stripe_invoices(customer)
    assert all(each["status"] == "paid" for each in found)
    return sorted((each["metadata"]["usage_cycle_start"], each["amount_paid"]) for each in found)


def test_only_kafka_is_lost(stores: Stores, tmp_path: Path) -> None:
    """ClickHouse shows invoices that the restored ledger does not know; they do not stay."""
    world = stores.world
    world.subscribe("ann")
    world.use("ann", "150000")
    stores.settle()
    create_backup(world.settings, tmp_path / "backup", KAFKA, nothing)
    world.close(APRIL)
    world.until(lambda: world.query("SELECT count() FROM invoices") == [(1,)])
    stores.leave()
    stores.lose(clickhouse=False)
    restore_backup(world.settings, tmp_path / "backup", KAFKA, nothing)
    stores.enter()
    stores.settle()
    world.until(lambda: world.query("SELECT count() FROM customers") == [(1,)])
    assert world.query("SELECT count() FROM invoices") == [(0,)]
    assert world.close(APRIL).by_state == {"paid": 1}
    assert len(world.stripe_invoices("ann")) == 1
    assert verified(world) == [True]


@pytest.fixture
def settings(kafka: KafkaBroker, clickhouse: ClickHouseLocal, database: str) -> Settings:
    return Settings(
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        topic_prefix=f"{database}.",
        event_partitions=2,
        clickhouse_dsn=clickhouse.dsn(database),
    )


def records_of(settings: Settings, topic: str, partition: int = 1) -> list[tuple[Any, ...]]:
    """Everything that a reader sees of a partition."""
    consumer = Consumer({**settings.kafka_properties, "group.id": "reader", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic_name(settings, topic), partition, 0)])
    found: list[tuple[Any, ...]] = []
    while True:
        message = consumer.poll(10)
        assert message is not None
        if message.error():
            consumer.close()
            return found
        found.append((message.key(), message.value(), message.headers(), message.timestamp()))


def with_records(settings: Settings) -> list[tuple[Any, ...]]:
    """A topic with all that a record may have."""
    create_topics(settings)
    producer = Producer(settings.kafka_properties)
    name = topic_name(settings, USAGE_ALERTS)
    now = int(time.time() * 1000)  # an older alert may expire at any moment
    producer.produce(name, b"text", b"key", partition=1, timestamp=now)
    producer.produce(
        name, b"\xff\x00\n", b"\xfe", partition=1, timestamp=now + 1, headers=[("a", b"1"), ("a", b"\xff")]
    )
    producer.produce(name, None, b"key", partition=1, timestamp=now + 2)
    producer.produce(name, b"", None, partition=1, timestamp=now, headers=[("none", None)])
    producer.produce(topic_name(settings, USAGE_EVENTS), b"of long ago", partition=1, timestamp=now - 30 * 86_400_000)
    assert producer.flush(10) == 0
    return records_of(settings, USAGE_ALERTS)


def moved(settings: Settings, database: str) -> Settings:
    return settings.model_copy(update={"topic_prefix": f"{database}-restored."})


def test_records_keep_keys_headers_times_and_order(settings: Settings, database: str, tmp_path: Path) -> None:
    before = with_records(settings)
    assert len(before) == 4
    migrate(settings)
    create_backup(settings, tmp_path / "b", KAFKA, nothing)
    target = moved(settings, database)
    restore_backup(target, tmp_path / "b", KAFKA, nothing)
    assert records_of(target, USAGE_ALERTS) == before
    ((_, value, _, (_, at)),) = records_of(target, USAGE_EVENTS)
    assert (value, at >= before[0][3][1]) == (b"of long ago", True)  # it does not expire before the sink has read it
    create_backup(target, tmp_path / "again", KAFKA, nothing)
    assert (tmp_path / "again" / "usage.alerts.jsonl.zst").read_bytes() == (
        tmp_path / "b" / "usage.alerts.jsonl.zst"
    ).read_bytes()


def test_an_interrupted_restore_goes_on_and_other_records_are_refused(
    settings: Settings, database: str, tmp_path: Path
) -> None:
    before = with_records(settings)
    migrate(settings)
    create_backup(settings, tmp_path / "b", ALL, nothing)
    target = moved(settings, database)
    create_topics(target)
    name = topic_name(target, USAGE_ALERTS)
    producer = Producer(target.kafka_properties)
    for key, value, headers, (_, at) in before[:2]:  # as if it had been interrupted
        producer.produce(name, value, key, partition=1, timestamp=at, headers=headers)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert producer.flush(10) == 0
    with pytest.raises(NotEmpty, match="is not empty"):
        restore_backup(target, tmp_path / "b", ALL, nothing)
    restore_backup(target, tmp_path / "b", ALL, nothing, going_on=True)
    assert records_of(target, USAGE_ALERTS) == before
    restore_backup(target, tmp_path / "b", ALL, nothing, going_on=True)  # and again: nothing more
    assert records_of(target, USAGE_ALERTS) == before
    producer.produce(name, b"another", partition=1)
    assert producer.flush(10) == 0
    deliveries = end_offsets(target, USAGE_WEBHOOK_DELIVERIES)
    with pytest.raises(NotEmpty, match="another record at offset 4"):
        restore_backup(target, tmp_path / "b", ALL, nothing, going_on=True)
    assert end_offsets(target, USAGE_WEBHOOK_DELIVERIES) == deliveries


def test_every_table_is_saved_or_left_out_by_name(settings: Settings) -> None:
    """A new table has to be decided about."""
    migrate(settings)
    with connect(settings) as client:
        found = {
            str(name)
            for (name,) in client.query(
                "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
                " AND name NOT LIKE '.inner%'"
            ).result_rows
        }
    assert found == {*tables.SAVED, *tables.PROJECTED, *tables.PASSING}
