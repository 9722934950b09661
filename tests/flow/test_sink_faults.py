"""Sinks, engine and log that fail → every event stored, none twice, and what can't be is told."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic  # pyright: ignore[reportPrivateImportUsage]

from catalog.store import CatalogStore
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import tail
from runtime.kafka.admin import admin_client
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.usage_batch import encode
from schemas.watermark import Watermark
from tests.flow.metering import MARCH, Event, batch_of
from tests.flow.sinking import PARTITIONS, SinkWorld
from tests.services import Service
from tests.waiting import until
from warehouse.audit import audit

EVENTS_PER_MESSAGE = 500


@pytest.fixture
def world(kafka: KafkaBroker, clickhouse: ClickHouseLocal, unique: str, tmp_path: Path) -> Iterator[SinkWorld]:
    with SinkWorld(kafka, clickhouse, unique, tmp_path) as made:
        yield made


@pytest.fixture
def engine(clickhouse_factory: Callable[[], ClickHouseLocal]) -> ClickHouseLocal:
    """An engine of this test alone: to be stopped and wiped."""
    made = clickhouse_factory()
    made.start()
    return made


class Truth:
    """Sends messages and counts by itself what they are worth: half of the events have ids, a tenth are retries."""

    def __init__(self, world: SinkWorld, seed: int = 20260301, customers: int = 20) -> None:
        self._world = world
        self._customers = customers
        self._random = random.Random(seed)
        self._known: dict[str, list[Event]] = {}
        self.worth: dict[str, tuple[int, int]] = {}

    def send(self, messages: int) -> None:
        for number in range(messages):
            customer = f"customer-{number % self._customers}"
            partition = partition_of(DEFAULT_ORGANIZATION, customer, PARTITIONS)
            self._world.send_bytes(
                partition, encode(batch_of([self._event(customer) for _ in range(EVENTS_PER_MESSAGE)]))
            )
        self._world.flush()

    def named(self, customer: str) -> list[Event]:
        """The customer's events that have ids, in the order of the log."""
        return self._known[customer]

    def _event(self, customer: str) -> Event:
        known = self._known.setdefault(customer, [])
        if known and self._random.random() < 0.1:
            return self._random.choice(known)
        value = self._random.randrange(-5, 1000)
        count, total = self.worth.get(customer, (0, 0))
        self.worth[customer] = (count + 1, total + value)
        if self._random.random() < 0.5:
            return Event(customer, value=str(value), at=MARCH)
        event = Event(customer, value=str(value), at=MARCH, event_id=f"{customer}-{len(known)}")
        known.append(event)
        return event

    def holds(self) -> bool:
        rows = self._world.rows("SELECT customer_id, count(), sum(value) FROM usage GROUP BY customer_id")
        return {customer: (count, int(total)) for customer, count, total in rows} == self.worth


def reasons(sink: Service) -> dict[str, str]:
    """Why it is unready; empty when it is ready."""
    return dict(sink.get("/readyz").json().get("reasons", {}))


def lives(sink: Service) -> bool:
    return sink.get("/healthz").status_code == 200


def inserting(world: SinkWorld) -> bool:
    """Whether rows have come since the last commit was looked at."""
    return world.rows("SELECT count() FROM usage_events")[0][0] > 0


def test_killed_in_the_middle_of_inserts_nothing_is_lost_or_doubled(world: SinkWorld) -> None:
    truth = Truth(world)
    truth.send(300)
    chance = random.Random(7)
    sink = world.sink()
    for _ in range(3):
        before = world.rows("SELECT count() FROM usage_accepted")[0][0]
        sink.start()
        # The moment after some rows appear is one between an insert and its commit, or in the next insert.
        until(lambda before=before: world.rows("SELECT count() FROM usage_accepted")[0][0] > before, 60, every=0.005)
        time.sleep(chance.uniform(0, 0.05))
        sink.kill()
        truth.send(30)
    sink.start()
    world.settle(90)
    assert truth.holds()
    expected = (300 + 3 * 30) * EVENTS_PER_MESSAGE
    assert world.rows("SELECT count() FROM usage_accepted FINAL") == [(expected,)]


def test_the_engine_stopped_for_seconds_is_waited_for(
    kafka: KafkaBroker, engine: ClickHouseLocal, unique: str, tmp_path: Path
) -> None:
    with SinkWorld(kafka, engine, unique, tmp_path) as world:
        truth = Truth(world)
        sink = world.sink().start()
        truth.send(40)
        until(lambda: inserting(world), 40)
        engine.kill()
        truth.send(40)
        until(lambda: "clickhouse" in reasons(sink))
        assert lives(sink)
        # It goes on trying, a moment longer each time, and keeps its place in the group.
        until(lambda: tail(sink.log_path, 200).count("waiting") >= 4)
        assert "clickhouse" in reasons(sink)
        engine.start()
        world.settle(60)
        assert truth.holds()
        assert reasons(sink) == {}


def test_a_sink_that_starts_before_the_engine_waits_for_it(
    kafka: KafkaBroker, engine: ClickHouseLocal, unique: str, tmp_path: Path
) -> None:
    with SinkWorld(kafka, engine, unique, tmp_path) as world:
        world.send(Event("c1"))
        engine.stop()
        sink = world.sink()
        sink.launch()
        sink.wait_until(lambda: answers(sink) and "clickhouse" in reasons(sink), 60)
        engine.start()
        world.settle(60)
        assert world.count_and_sum("c1") == (1, Decimal(1))


def answers(sink: Service) -> bool:
    try:
        return lives(sink)
    except httpx.HTTPError:
        return False


def test_a_wiped_clickhouse_is_filled_again_though_the_commit_is_ahead(world: SinkWorld) -> None:
    truth = Truth(world)
    truth.send(40)
    sink = world.sink().start()
    world.settle()
    sink.stop()
    for table in ("usage_events", "usage_accepted", "ingest_batches"):
        world.client.command(f"TRUNCATE TABLE {table}")
    assert world.stored() == dict.fromkeys(range(PARTITIONS), 0)
    assert world.committed() == world.ends()
    sink.start()
    world.settle()
    assert truth.holds()


def test_a_hole_in_clickhouse_is_filled_from_the_log(world: SinkWorld) -> None:
    """As after the restore of a copy that some rows are missing in."""
    truth = Truth(world)
    truth.send(60)
    sink = world.sink().start()
    world.settle()
    sink.stop()
    for table in ("usage_events", "usage_accepted", "ingest_batches"):
        world.client.command(f"DELETE FROM {table} WHERE kafka_partition = 1 AND kafka_offset BETWEEN 3 AND 5")
    until(lambda: world.stored()[1] == 3)
    assert not truth.holds()
    sink.start()
    world.settle()
    assert truth.holds()


@pytest.mark.parametrize("inserts", [False, True])
def test_an_older_copy_put_in_place_under_a_running_sink_is_filled_again(
    kafka: KafkaBroker, engine: ClickHouseLocal, unique: str, tmp_path: Path, inserts: bool
) -> None:
    """It ends itself, since a new process reads all logs anew, and whoever runs it starts it again.

    inserts: it has an insert that it repeats until the copy takes it, with a hole before it.
    """
    copy = tmp_path / "copy"
    with SinkWorld(kafka, engine, unique, tmp_path) as world:
        truth, sink = Truth(world, customers=1), world.sink().start()  # all in one partition
        truth.send(20)
        world.settle()
        engine.stop()
        shutil.copytree(engine.data_dir, copy, symlinks=True)
        engine.start()
        truth.send(20)
        world.settle()
        if inserts:
            world.client.command("RENAME TABLE usage_batches_in TO not_there")
            truth.send(10)
            until(lambda: "usage_batches_in" in str(reasons(sink)))
        engine.stop()
        shutil.rmtree(engine.data_dir)
        shutil.copytree(copy, engine.data_dir, symlinks=True)
        engine.start()
        assert not truth.holds()
        until(lambda: not sink.running, 40)
        # By what it covers, or by the mark of a look that came after the copy: looks are a minute apart.
        said = tail(sink.log_path, 200)
        assert "ClickHouse has" in said or "a mark that was left in it is gone" in said
        assert sink.stop() == 1
        sink.start()
        world.settle()
        assert truth.holds()


def test_an_older_copy_without_a_new_event_is_told_and_what_came_of_the_other_logs_is_written_again(
    kafka: KafkaBroker, engine: ClickHouseLocal, unique: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with SinkWorld(kafka, engine, unique, tmp_path) as world:
        truth, sink = Truth(world, customers=1), world.sink().start()
        truth.send(5)
        world.settle()
        engine.stop()
        shutil.copytree(engine.data_dir, copy, symlinks=True)
        until(lambda: reasons(sink))
        engine.start()
        with CatalogStore(world.settings) as catalog:
            catalog.write(Customer(id="cus_new", name="New", organization_id=DEFAULT_ORGANIZATION, created_at=0), 0)
        until(lambda: world.rows("SELECT count() FROM customers WHERE id = 'cus_new'") == [(1,)])
        # Having seen it away, it has looked what it has, and left a mark that the copy lacks.
        until(lambda: world.rows("SELECT count() FROM store_marks")[0][0] >= 2)
        engine.stop()
        shutil.rmtree(engine.data_dir)
        shutil.copytree(copy, engine.data_dir, symlinks=True)
        until(lambda: reasons(sink))
        engine.start()
        assert world.rows("SELECT count() FROM customers WHERE id = 'cus_new'") == [(0,)]
        until(lambda: not sink.running, 40)
        assert "a mark that was left in it is gone" in tail(sink.log_path, 200)
        sink.stop()
        sink.start()
        until(lambda: world.rows("SELECT count() FROM customers WHERE id = 'cus_new'") == [(1,)])
        assert truth.holds()


def test_sinks_that_come_and_go_share_the_partitions(world: SinkWorld) -> None:
    truth = Truth(world)
    first, second = world.sink().start(), world.sink()
    truth.send(40)
    second.start()
    truth.send(40)
    first.stop()
    truth.send(40)
    first.start()
    second.kill()
    truth.send(40)
    world.settle(60)
    assert truth.holds()


def test_a_stopped_sink_ends_in_order(world: SinkWorld) -> None:
    world.send(Event("c1"))
    sink = world.sink().start()
    world.settle()
    assert sink.stop() == 0
    assert world.committed() == world.ends()


def test_what_expired_before_it_was_stored_is_told_and_does_not_hold_up_the_rest(world: SinkWorld) -> None:
    for _ in range(5):
        world.send(Event("c1"))
    home = partition_of(DEFAULT_ORGANIZATION, "c1", PARTITIONS)
    admin = admin_client(world.settings)
    (deleted,) = admin.delete_records([TopicPartition(world.topic, home, 3)]).values()
    assert deleted.result(10).low_watermark == 3
    sink = world.sink().start()
    world.settle()
    assert world.count_and_sum("c1") == (2, Decimal(2))
    assert expired(world) == [(home, 0), (home, 2)]
    assert "messages_expired_unread" in tail(sink.log_path, 200)
    # Where all of it expired there is no message to begin with; the log's end counts as stored all the same.
    sink.stop()
    world.send(Event("c1"))
    (deleted,) = admin.delete_records([TopicPartition(world.topic, home, 6)]).values()
    deleted.result(10)
    sink.start()
    world.settle()
    assert expired(world) == [(home, 0), (home, 2), (home, 5), (home, 5)]


def expired(world: SinkWorld) -> list[tuple[int, int]]:
    """Partition and offset of the first and last message of each run of which the audit says that it is lost."""
    found = audit(world.client, Watermark(world.epoch(), world.stored()), PARTITIONS, DEFAULT_ORGANIZATION)
    assert not found.ok
    (fault,) = found.faults
    assert fault.kind == "messages expired before they were stored"
    assert str(fault).startswith(f"{fault.kind}: at {world.epoch()}/")
    return [(partition, offset) for _, partition, offset, _ in fault.places]


def test_a_topic_made_again_is_a_new_epoch(world: SinkWorld) -> None:
    """Its offsets begin anew; events without ids at the same places are other events."""
    world.send(Event("c1"), Event("c1"))
    sink = world.sink().start()
    world.settle()
    admin = admin_client(world.settings)
    admin.delete_topics([world.topic])[world.topic].result(10)
    made = NewTopic(world.topic, PARTITIONS, 1)
    until(lambda: created(admin, made))
    # More messages than the old topic had: read on from the old place, some would be taken for the old topic's.
    for _ in range(4):
        world.send(Event("c1"), Event("c1"))
    until(lambda: not sink.running, 60)
    assert "is now" in tail(sink.log_path, 200)
    sink.start()
    world.settle()
    assert world.epoch() == 2
    assert world.count_and_sum("c1") == (10, Decimal(10))
    assert world.rows("SELECT kafka_epoch, count() FROM usage GROUP BY kafka_epoch ORDER BY kafka_epoch") == [
        (1, 2),
        (2, 8),
    ]


def created(admin: AdminClient, topic: NewTopic) -> bool:
    """False while the old one is still being deleted."""
    return admin.create_topics([topic])[topic.topic].exception(10) is None


def test_another_number_of_partitions_is_refused(world: SinkWorld) -> None:
    admin = admin_client(world.settings)
    admin.create_partitions([NewPartitions(world.topic, PARTITIONS + 1)])[world.topic].result(10)
    sink = world.sink()
    sink.launch()
    until(lambda: not sink.running, 30)
    assert sink.stop() == 1
    assert "partitions" in tail(sink.log_path)


def test_the_broker_away_for_seconds_is_waited_for(
    kafka_factory: Callable[[], KafkaBroker], clickhouse: ClickHouseLocal, unique: str, tmp_path: Path
) -> None:
    broker = kafka_factory()
    broker.start()
    with SinkWorld(broker, clickhouse, unique, tmp_path) as world:
        truth = Truth(world)
        sink = world.sink().start()
        truth.send(20)
        world.settle()
        broker.kill()
        until(lambda: "kafka" in reasons(sink), 40)
        assert lives(sink)
        broker.start()
        truth.send(20)
        world.settle(60)
        until(lambda: reasons(sink) == {}, 30)
        assert truth.holds()


def test_signals_end_a_sink_that_waits_for_the_engine(
    kafka: KafkaBroker, engine: ClickHouseLocal, unique: str, tmp_path: Path
) -> None:
    with SinkWorld(kafka, engine, unique, tmp_path) as world:
        sink = world.sink().start()
        engine.kill()
        world.send(Event("c1"))
        until(lambda: "clickhouse" in reasons(sink))
        assert sink.stop() == 0  # by itself: what has to be killed ends with another code
        engine.start()
        assert world.count_and_sum("c1") == (0, Decimal(0))
        sink.start()
        world.settle()
        assert world.count_and_sum("c1") == (1, Decimal(1))
