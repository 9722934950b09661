"""usage.events lost its end (a power cut with one broker): nothing goes on silently, and what comes after it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from confluent_kafka import Producer

from catalog.store import CatalogStore
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from ingest_gateway import metrics
from ingest_gateway.producer import EventProducer
from schemas.log_break import LogBreak
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from schemas.partition import partition_of
from schemas.topics import CATALOG, topic_name
from schemas.usage_batch import encode
from stream_processors.live_totals import LiveTotalsReader
from tests.flow.metering import Event, batch_of
from tests.flow.sinking import PARTITIONS, SinkWorld
from tests.flow.test_sink_faults import reasons
from tests.known import make_known
from tests.services import Service, environment
from tests.truncation import cut_log
from tests.waiting import until
from warehouse.audit import audit
from warehouse.settled import settled

pytestmark = pytest.mark.timeout(400)
HOME = partition_of(DEFAULT_ORGANIZATION, "c1", PARTITIONS)
SENT, KEPT = 10, 6


@pytest.fixture
def broker(kafka_factory: Callable[[], KafkaBroker]) -> KafkaBroker:
    made = kafka_factory()
    made.start()
    return made


@pytest.fixture
def world(broker: KafkaBroker, clickhouse: ClickHouseLocal, unique: str, tmp_path: Path) -> Iterator[SinkWorld]:
    with SinkWorld(broker, clickhouse, unique, tmp_path, reconcile_seconds=5.0) as made:
        yield made


def send(world: SinkWorld, count: int, value: str) -> None:
    """Each a batch of the log of its own."""
    for _ in range(count):
        world.send(Event("c1", value=value))


def cut(world: SinkWorld, broker: KafkaBroker, kept: int = KEPT) -> None:
    """The broker comes back without the last messages of a partition."""
    broker.stop()
    assert cut_log(broker.data_dir, world.topic, HOME, kept) == kept
    broker.start()
    # One that knows what the broker forgot would be told so.
    world.producer = Producer({**world.settings.kafka_properties, "acks": "all", "enable.idempotence": True})


def breaks(world: SinkWorld) -> list[tuple[int, int, int]]:
    with CatalogStore(world.settings) as catalog:
        return [(each.partition, each.number, each.start) for each in catalog.view.all(LogBreak)]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("again", [3, 30])
def test_offsets_that_are_given_again_are_other_events(
    world: SinkWorld, broker: KafkaBroker, running: bool, again: int
) -> None:
    """again: events that come after it, fewer or more than were lost: then the log's end tells nothing."""
    sink = world.sink().start()
    send(world, SENT, "1")
    world.settle()
    if not running:
        assert sink.stop() == 0
    cut(world, broker)
    send(world, again, "100")
    if not running:
        sink.start()
    world.settle(90)
    assert world.count_and_sum("c1") == (SENT + again, Decimal(SENT + 100 * again))
    assert world.rows("SELECT count() FROM usage_accepted FINAL") == [(SENT + again,)]
    assert breaks(world) == [(HOME, 1, KEPT)]
    until(lambda: reasons(sink) == {})
    assert f'usage_log_ends_lost{{partition="{HOME}"}} 1.0' in sink.get("/metrics").text
    epochs, watermark = settled(world.client, world.settings)
    assert watermark.epochs == {HOME: epochs.base + 1}
    found = audit(world.client, watermark, PARTITIONS)
    assert found.ok
    assert [(each.partition, each.offset) for each in found.lost_ends] == [(HOME, KEPT)]
    # Another start is another look, and changes nothing.
    sink.stop()
    sink.start()
    world.settle()
    assert world.count_and_sum("c1") == (SENT + again, Decimal(SENT + 100 * again))
    assert breaks(world) == [(HOME, 1, KEPT)]


@pytest.mark.parametrize("again", [1, 20])
def test_an_end_that_is_lost_again_further_back(world: SinkWorld, broker: KafkaBroker, again: int) -> None:
    """Of the epoch that began with the first break the log has nothing any more."""
    sink = world.sink().start()
    send(world, SENT, "1")
    world.settle()
    cut(world, broker)
    send(world, 3, "100")
    world.settle(90)
    assert sink.stop() == 0
    cut(world, broker, KEPT - 2)
    send(world, again, "1000")
    sink.start()
    world.settle(90)
    assert world.count_and_sum("c1") == (SENT + 3 + again, Decimal(SENT + 300 + 1000 * again))
    assert sorted(breaks(world)) == [(HOME, 1, KEPT), (HOME, 2, KEPT - 2)]
    assert audit(world.client, settled(world.client, world.settings)[1], PARTITIONS).ok


def test_an_end_that_is_lost_while_clickhouse_is_away(
    broker: KafkaBroker, clickhouse_factory: Callable[[], ClickHouseLocal], unique: str, tmp_path: Path
) -> None:
    """The sink hears of it while it waits for something else, and no second time."""
    engine = clickhouse_factory()
    engine.start()
    with SinkWorld(broker, engine, unique, tmp_path) as world:
        sink = world.sink().start()
        send(world, SENT, "1")
        world.settle()
        engine.stop()
        until(lambda: "clickhouse" in reasons(sink), 60)
        cut(world, broker)
        send(world, 3, "100")
        waited = sink.log_path.read_text().count("waiting")
        until(lambda: sink.log_path.read_text().count("waiting") > waited + 2, 60)
        engine.start()
        world.settle(90)
        assert world.count_and_sum("c1") == (SENT + 3, Decimal(SENT + 300))
        assert breaks(world) == [(HOME, 1, KEPT)]


def test_an_older_copy_of_clickhouse_gets_the_same_epochs_again(world: SinkWorld, broker: KafkaBroker) -> None:
    sink = world.sink().start()
    send(world, SENT, "1")
    world.settle()
    cut(world, broker)
    send(world, 3, "100")
    world.settle(90)
    sink.stop()
    for table in ("usage_events", "usage_accepted", "ingest_batches", "coverage_checkpoints"):
        world.client.command(f"TRUNCATE TABLE {table}")
    world.client.command("DELETE FROM kafka_epochs WHERE topic_id LIKE '%/%'")
    sink.start()
    world.settle(90)
    # What only the lost end and the lost tables had is gone.
    assert world.count_and_sum("c1") == (KEPT + 3, Decimal(KEPT + 300))
    assert breaks(world) == [(HOME, 1, KEPT)]


@pytest.mark.parametrize("kept", [0, KEPT])
def test_an_end_that_nobody_had_read_is_told_by_the_gateway(world: SinkWorld, broker: KafkaBroker, kept: int) -> None:
    """Only who was given the acknowledgement can know that it is worth nothing any more.

    A broker that knows an earlier message of the producer refuses its next one, which ends the process, loudly.
    """

    async def acknowledged(producer: EventProducer) -> int | None:
        answer = asyncio.get_running_loop().create_future()
        message = encode(batch_of([Event("c1")]))
        producer.produce(HOME, None, message, lambda offset, reason: answer.set_result(offset))
        return await asyncio.wait_for(answer, 60)

    async def produced() -> list[int | None]:
        producer = EventProducer(world.settings, asyncio.get_running_loop())
        offsets = [await acknowledged(producer) for _ in range(SENT)]
        assert metrics.ENDS_LOST.labels(HOME)._value.get() == lost  # pyright: ignore[reportPrivateUsage]
        await asyncio.to_thread(cut, world, broker, kept)
        offsets.append(await acknowledged(producer))
        assert (producer.fatal is None) == (kept == 0), producer.fatal
        await asyncio.to_thread(producer.close, 10)
        return offsets

    lost = metrics.ENDS_LOST.labels(HOME)._value.get()  # pyright: ignore[reportPrivateUsage]
    assert asyncio.run(produced()) == [*range(SENT), None if kept else 0]
    told = metrics.ENDS_LOST.labels(HOME)._value.get() - lost  # pyright: ignore[reportPrivateUsage]
    assert told == (0 if kept else 1)


def live(world: SinkWorld) -> tuple[int, Decimal]:
    reader = LiveTotalsReader(world.settings)
    try:
        totals = reader.snapshot(HOME).totals.values()
        return sum(each.count for each in totals), sum((Decimal(each.sum) for each in totals), Decimal(0))
    finally:
        reader.close()


@pytest.fixture
def aggregator(world: SinkWorld, tmp_path: Path) -> Iterator[Service]:
    with CatalogStore(world.settings) as catalog:
        make_known(catalog, ["c1"], ["calls"])
    service = Service("aggregator", environment(world.settings), tmp_path).start()
    yield service
    service.kill()


def test_live_totals_go_on_where_the_log_does(world: SinkWorld, broker: KafkaBroker, aggregator: Service) -> None:
    world.sink().start()
    send(world, SENT, "1")
    world.settle()
    until(lambda: live(world) == (SENT, SENT), 60)
    cut(world, broker)
    send(world, 3, "100")
    until(lambda: live(world) == world.count_and_sum("c1") == (SENT + 3, Decimal(SENT + 300)), 120)
    until(lambda: reasons(aggregator) == {}, 60)


def test_what_only_the_aggregator_had_read_is_taken_off_again(
    world: SinkWorld, broker: KafkaBroker, aggregator: Service
) -> None:
    """Acknowledged, counted live, and lost before it was stored: no one has it any more."""
    sink = world.sink().start()
    send(world, KEPT - 1, "1")
    world.settle()
    assert sink.stop() == 0
    send(world, SENT - KEPT + 1, "1")
    until(lambda: live(world) == (SENT, SENT), 60)
    cut(world, broker)
    until(lambda: "lost its end" in reasons(aggregator).get("assignment", ""), 60)
    sink.start()
    until(lambda: reasons(aggregator) == {}, 90)
    send(world, 3, "100")
    until(lambda: live(world) == world.count_and_sum("c1") == (KEPT + 3, Decimal(KEPT + 300)), 120)


def test_a_view_of_a_catalog_that_lost_its_end_ends_its_process(world: SinkWorld, broker: KafkaBroker) -> None:
    """What it has read can't be taken back; a new process reads the log as it is."""
    sink = world.sink().start()
    with CatalogStore(world.settings) as catalog:
        for name in ("kept", "lost"):
            catalog.write(Organization(id=name, organization_id=name, created_at=0, name=name), 0)
    until(lambda: world.rows("SELECT id FROM organizations ORDER BY id") == [("kept",), ("lost",)], 60)
    broker.stop()
    assert cut_log(broker.data_dir, topic_name(world.settings, CATALOG), 0, 1) == 1
    broker.start()
    until(lambda: not sink.running, 120)
    assert "no longer has what was read of it" in sink.log_path.read_text()
    sink.start()
    with CatalogStore(world.settings) as catalog:
        assert [each.id for each in catalog.view.all(Organization)] == ["kept"]
