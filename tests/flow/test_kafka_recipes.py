"""The recipes of docs/how-to/kafka.md, as printed, with Kafka's own programs and Confluent's clients on a real broker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog.store import CatalogStore
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker, resolve_jars
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.usage_void import UsageVoids
from schemas.usage_void import encode as encode_voids
from tests.doc_commands import ROOT, blocks
from tests.flow.metering import Event
from tests.flow.sinking import PARTITIONS, SinkWorld
from tests.services import Service, environment

pytestmark = pytest.mark.timeout(600)
PAGE = ROOT / "docs" / "how-to" / "kafka.md"
PROGRAMS = {
    "kafka-consumer-groups.sh": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-console-consumer.sh": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-get-offsets.sh": "org.apache.kafka.tools.GetOffsetShell",
}


@pytest.fixture
def world(
    kafka_factory: Callable[[], KafkaBroker], clickhouse: ClickHouseLocal, unique: str, tmp_path: Path
) -> Iterator[SinkWorld]:
    """A broker of its own, whose topics have the names that the page has."""
    broker = kafka_factory()
    broker.start()
    with SinkWorld(broker, clickhouse, unique, tmp_path, topic_prefix="") as made:
        yield made


@pytest.fixture
def run(world: SinkWorld, tmp_path: Path) -> Callable[[str], str]:
    """Types a block of the page that has this word."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, java_class in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec java -Xmx128m -cp "{resolve_jars()}/*" {java_class} "$@"\n')
        (programs / name).chmod(0o755)
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "KAFKA": world.settings.kafka_bootstrap_servers}

    def typed(word: str) -> str:
        (block,) = (each.text for each in blocks(PAGE) if each.language == "bash" and word in each.text)
        done = subprocess.run(["bash", "-euc", block], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return typed


def sent(world: SinkWorld) -> None:
    for number in range(5):
        world.send(Event("ann", value="1.5", event_id=f"e{number}"))
    partition = partition_of(DEFAULT_ORGANIZATION, "ann", PARTITIONS)
    voids = UsageVoids(bytes(15) + b"v", 0, [DEFAULT_ORGANIZATION], ["ann"], ["calls"], ["c:e0"], ["by mistake"])
    world.send_bytes(partition, encode_voids(voids))
    world.flush()


def lags(text: str) -> list[str]:
    lines = [line.split() for line in text.splitlines() if line.startswith("usage-sink")]
    return [line[5] for line in lines]


def test_lag_reset_and_replay(world: SinkWorld, run: Callable[[str], str]) -> None:
    sink = world.sink().start()
    sent(world)
    world.settle()
    counted = world.count_and_sum("ann")
    assert counted[0] == 4
    assert lags(run("--describe")) == ["0"] * PARTITIONS
    sink.stop()
    run("--to-earliest")
    assert sum(map(int, lags(run("--describe")))) == 6
    world.client.command("TRUNCATE TABLE usage_events")  # it is all read again, or this stays empty
    sink.start()
    world.settle()
    assert world.count_and_sum("ann") == counted
    replayed = run("my-replay")
    assert "usage.events:0:0" in replayed
    assert "my-replay" in replayed
    assert lags(run("--describe")) == ["0"] * PARTITIONS  # the services' groups are where they were


def test_the_catalog_is_read_as_json(world: SinkWorld, run: Callable[[str], str]) -> None:
    with CatalogStore(world.settings) as store:
        store.write(Customer(id="ann", organization_id=DEFAULT_ORGANIZATION, name="Ann", created_at=0), 0)
    printed = run("--topic catalog")
    assert "Offset:0" in printed
    assert '"kind":"customer"' in printed


def test_confluents_clients_read_usage_events(world: SinkWorld, tmp_path: Path) -> None:
    dashboard = Service("dashboard", environment(world.settings), tmp_path).start()
    try:
        sent(world)
        (program,) = (block.text for block in blocks(PAGE) if block.language == "python")
        env = os.environ | {
            "KAFKA": world.settings.kafka_bootstrap_servers,
            "REGISTRY": f"{dashboard.address}/schema-registry",
        }
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    finally:
        dashboard.stop()
    assert done.returncode == 0, done.stderr
    partition = partition_of(DEFAULT_ORGANIZATION, "ann", PARTITIONS)
    expected = [f"{partition} {offset} ann calls 1.500000000" for offset in range(5)]
    assert done.stdout.splitlines() == [*expected, f"{partition} 5 ann calls None"]
