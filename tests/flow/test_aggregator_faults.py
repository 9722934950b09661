"""Workers frozen, groups reset, changelogs lost → the same totals, nothing counted twice, no alert repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import admin_client, create_topics
from schemas.topics import USAGE_EVENTS, USAGE_TOTALS, topic_name
from tests.flow.metering import Event, MeteringWorld
from tests.waiting import until

CUSTOMERS = "abcdef"


@pytest.fixture
def world(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[MeteringWorld]:
    with MeteringWorld(kafka, topic_prefix, tmp_path) as world:
        yield world


def send(world: MeteringWorld, name: str) -> None:
    """Two events of every customer, one of them with an id, and the one with an id once more."""
    with_ids = [Event(customer, value="2", event_id=name) for customer in CUSTOMERS]
    world.send(*with_ids, *(Event(customer, value="0.5") for customer in CUSTOMERS))
    world.send(*with_ids)


def counted(world: MeteringWorld, times: int) -> bool:
    totals = world.totals()
    return {(each.customer_id, each.count, float(each.sum)) for each in totals.values()} == {
        (customer, 2 * times, 2.5 * times) for customer in CUSTOMERS
    }


def test_a_lost_changelog_is_made_again_from_the_log_though_nothing_new_comes(world: MeteringWorld) -> None:
    worker = world.worker().start()
    send(world, "first")
    until(lambda: counted(world, 1) and world.all_committed())
    assert worker.stop() == 0
    admin, topic = admin_client(world.settings), topic_name(world.settings, USAGE_TOTALS)
    admin.delete_topics([topic])[topic].result(15)
    until(lambda: topic not in admin.list_topics(timeout=10).topics)
    create_topics(world.settings)
    assert world.totals() == {}
    # The group's commit says that all was done; the state knows better.
    worker.start()
    until(lambda: counted(world, 1), seconds=40)
    send(world, "second")
    until(lambda: counted(world, 2))
    assert world.progress() == world.ends()


def test_a_changelog_made_again_under_a_running_worker_is_counted_anew(world: MeteringWorld) -> None:
    """It writes on what changes, until it learns that the topic is another one, and ends."""
    worker = world.worker().start()
    send(world, "first")
    until(lambda: counted(world, 1) and world.all_committed())
    until(lambda: "topics_watched" in worker.log_path.read_text())
    admin, topic = admin_client(world.settings), topic_name(world.settings, USAGE_TOTALS)
    admin.delete_topics([topic])[topic].result(15)
    until(lambda: topic not in admin.list_topics(timeout=10).topics)
    create_topics(world.settings)
    world.send(Event("a", value="2", event_id="between"))
    until(lambda: not worker.running, seconds=30)
    assert {each.customer_id for each in world.totals().values()} <= {"a"}
    worker.start()
    until(lambda: len(world.totals()) == len(CUSTOMERS) and world.progress() == world.ends(), seconds=40)
    assert {(each.customer_id, each.count, each.sum) for each in world.totals().values()} == {
        ("a", 3, "4.5"), *((customer, 2, "2.5") for customer in CUSTOMERS[1:])
    }  # fmt: skip
    assert "changelog_without_beginning" in worker.log_path.read_text()


BLIND = """
import os
from aiokafka.client import AIOKafkaClient

look = AIOKafkaClient._metadata_update

async def sometimes(self, cluster, topics):
    return False if topics and os.path.exists({marker!r}) else await look(self, cluster, topics)

AIOKafkaClient._metadata_update = sometimes
"""


def test_a_leader_that_had_not_seen_the_topics_gives_partitions_once_it_has(
    world: MeteringWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a start in the middle of a broker's: the client's looks at the cluster fail, and it leads the group."""
    marker = tmp_path / "blind"
    marker.touch()
    (tmp_path / "sitecustomize.py").write_text(BLIND.format(marker=str(marker)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = world.worker()
    worker.launch()
    until(lambda: "Ignoring missing topic" in worker.log_path.read_text())
    send(world, "first")
    assert not worker.ready()
    marker.unlink()
    until(lambda: counted(world, 1), seconds=30)
    assert worker.ready()


def test_a_group_that_was_reset_to_the_beginning_counts_nothing_twice(world: MeteringWorld) -> None:
    meter = world.meter("calls")
    world.rule("two", meter, "2")
    worker = world.worker().start()
    send(world, "first")
    until(lambda: counted(world, 1) and world.all_committed() and len(world.alerts()) == len(CUSTOMERS))
    assert worker.stop() == 0
    topic, group = topic_name(world.settings, USAGE_EVENTS), topic_name(world.settings, "aggregator")
    places = [TopicPartition(topic, partition, 0) for partition in world.ends()]

    def reset() -> bool:
        admin = admin_client(world.settings)
        try:
            admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])[group].result(10)
        except KafkaException:
            return False  # somebody is still a member
        return True

    until(reset, seconds=30, every=0.2)
    assert set(world.committed().values()) == {0}
    worker.start()
    send(world, "second")
    until(lambda: counted(world, 2) and world.all_committed())
    assert all(len(published) == 1 for published in world.alerts().values())


def test_a_worker_frozen_beyond_its_session_changes_nothing_when_it_goes_on(world: MeteringWorld) -> None:
    """Another takes its partitions over meanwhile; what it had in hand, it may still write."""
    first, second = world.worker().start(), world.worker().start()
    send(world, "0")
    until(lambda: counted(world, 1))
    for times, worker in ((2, first), (3, second)):
        send(world, f"{times} before")
        worker.pause()
        # It is frozen for as long as it takes the other to count everything.
        until(lambda times=times: counted(world, 2 * times - 2), seconds=40)
        send(world, f"{times} after")
        until(lambda times=times: counted(world, 2 * times - 1), seconds=40)
        worker.resume()
        until(worker.ready, seconds=40)
    send(world, "last")
    until(lambda: counted(world, 6) and world.all_committed(), seconds=40)
    assert first.stop() == 0
    assert second.stop() == 0
    assert counted(world, 6)
