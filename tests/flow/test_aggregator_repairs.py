"""usage.repairs → usage.totals through real workers: once each, whoever dies, and alerts are fired by them too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaBroker
from schemas.meter import Aggregation
from schemas.topics import USAGE_REPAIRS, topic_name
from tests.flow.metering import Event, MeteringWorld
from tests.services import Service
from tests.waiting import until


@pytest.fixture
def world(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[MeteringWorld]:
    with MeteringWorld(kafka, topic_prefix, tmp_path) as world:
        yield world


def metric(worker: Service, line: str) -> bool:
    return line in worker.get("/metrics").text.splitlines()


def test_repairs_count_once_across_kills_restarts_and_rebalances(world: MeteringWorld) -> None:
    meter = world.meter("calls", aggregation=Aggregation.COUNT)
    world.rule("ten", meter, "10")
    worker = world.worker().start()
    world.send(Event("a", value="2"), Event("b", value="9"), Event("b", value="4"), Event("c", value="1"))
    until(lambda: [world.total(each)[1] for each in "abc"] == [1, 2, 1])

    # Applied once, though it is there twice; what was computed from another state is not; what can't be read harms none.
    world.repair("a", repairs=0, count=1, value="0.5", max="3", max_was="2")
    world.repair("a", repairs=0, count=1, value="0.5", max="3", max_was="2")
    world.repair("a", repairs=5, count=100)
    for partition in range(3):
        world.producer.produce(topic_name(world.settings, USAGE_REPAIRS), b"nonsense", partition=partition)
    world.flush()
    world.repair("b", repairs=0, count=-1, value="-9", max="4", max_was="9")  # a void
    world.repair("d", repairs=0, count=3, value="7", max="5")  # there was no total yet
    until(lambda: world.total("d") == ("7", 3, "5"))
    until(lambda: world.total("a") == ("2.5", 2, "3") and world.total("b") == ("4", 1, "4"))
    until(lambda: metric(worker, 'usage_aggregator_repairs_total{outcome="stale"} 2.0'))
    assert metric(worker, 'usage_aggregator_repairs_total{outcome="unreadable"} 3.0')
    assert world.alerts() == {}

    # Not again after a kill; what came meanwhile is; and an alert is due by a repair alone.
    worker.kill()
    world.repair("a", repairs=1, count=8, value="0.5")
    worker.start()
    until(lambda: world.total("a") == ("3", 10, "3"))
    until(lambda: len(world.alerts()) == 1)
    assert world.total("b") == ("4", 1, "4")

    # A second worker takes partitions over, the first one dies; events and repairs go on.
    other = world.worker().start()
    world.repair("c", repairs=0, count=1)
    until(lambda: world.total("c") == ("1", 2, "1"))
    worker.kill()
    world.send(Event("c", value="1"), Event("d", value="6"))
    world.repair("c", repairs=1, count=1)
    world.repair("d", repairs=1, value="1")
    until(lambda: world.total("c") == ("2", 4, "1") and world.total("d") == ("14", 4, "6"), seconds=60)
    assert world.total("a") == ("3", 10, "3")
    assert [len(published) for published in world.alerts().values()] == [1]
    assert other.stop() == 0
    reached = {record.partition: record.repairs_next for record in world.progress_records().values()}
    assert reached == world.ends(USAGE_REPAIRS)
