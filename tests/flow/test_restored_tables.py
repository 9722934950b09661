"""ClickHouse restored from a backup whose tables are of different instants → filled again, and the audit balances."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.usage_void import UsageVoids
from schemas.usage_void import encode as encode_voids
from schemas.watermark import Watermark
from tests.flow.sinking import PARTITIONS, SinkWorld
from tests.flow.test_sink_faults import Truth
from tests.services import environment
from tests.waiting import until
from warehouse.audit import Audit, audit

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def world(
    kafka: KafkaBroker, clickhouse_factory: Callable[[], ClickHouseLocal], unique: str, tmp_path: Path
) -> Iterator[tuple[SinkWorld, ClickHouseLocal]]:
    """With an engine of this test alone."""
    engine = clickhouse_factory()
    engine.start()
    with SinkWorld(kafka, engine, unique, tmp_path) as made:
        yield made, engine


def void(world: SinkWorld, truth: Truth, customer: str) -> None:
    """Void the customer's first event that has an id."""
    event = truth.named(customer)[0]
    voids = UsageVoids(
        bytes(15) + b"v", 0, [DEFAULT_ORGANIZATION], [customer], [event.name], [f"c:{event.event_id}"], [""]
    )
    world.send_bytes(partition_of(DEFAULT_ORGANIZATION, customer, PARTITIONS), encode_voids(voids))
    world.flush()
    count, total = truth.worth[customer]
    truth.worth[customer] = (count - 1, total - int(event.value or 0))


def audited(world: SinkWorld) -> Audit:
    return audit(world.client, Watermark(world.epoch(), world.ends()), PARTITIONS)


def is_whole(world: SinkWorld, truth: Truth) -> bool:
    counts = {
        world.rows(query)[0][0]
        for query in (
            "SELECT count() FROM usage_accepted FINAL",
            "SELECT sum(events) FROM ingest_batches FINAL",
            "SELECT sum(events) FROM accepted_batches FINAL",
        )
    }
    return truth.holds() and len(counts) == 1 and audited(world).ok


def copied(world: SinkWorld, table: str, to: Path) -> Path:
    """The table's files as they are now, as a backup takes them; its directory."""
    ((paths,),) = world.rows(
        "SELECT data_paths FROM system.tables WHERE database = currentDatabase() AND name = {table:String}", table=table
    )
    directory = Path(paths[0])
    # Parts that are being written are no part of an instant; what they are merged of is still there.
    shutil.copytree(directory, to / table, ignore=shutil.ignore_patterns("tmp*"))
    return directory


@pytest.mark.parametrize(("older", "sink_runs"), [
    ("usage_events", True), ("usage_events", False), ("usage_voids", True), ("usage_accepted", False), ("ingest_batches", True),
])  # fmt: skip
def test_a_table_of_an_earlier_instant_is_filled_again(
    world: tuple[SinkWorld, ClickHouseLocal], tmp_path: Path, older: str, sink_runs: bool
) -> None:
    sinks, engine = world
    truth = Truth(sinks)
    sink = sinks.sink().start()
    truth.send(60)
    void(sinks, truth, "customer-1")
    sinks.settle()
    directory = copied(sinks, older, tmp_path)
    truth.send(60)
    void(sinks, truth, "customer-2")
    sinks.settle()
    if not sink_runs:
        sink.stop()
    engine.stop()
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / older, directory)
    engine.start()
    if sink_runs and older == "ingest_batches":  # what it had committed is not covered: a new process fills it
        until(lambda: not sink.running, 30)
    if not sink.running:
        sink.start()
    until(lambda: is_whole(sinks, truth), 60)
    truth.send(20)
    sinks.settle()
    assert is_whole(sinks, truth)


def refill(world: SinkWorld, *ranges: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("usage-billing")), "refill", *ranges]
    return subprocess.run(command, env=environment(world.settings), capture_output=True, text=True, check=False)


def test_what_the_audit_names_is_refilled(world: tuple[SinkWorld, ClickHouseLocal]) -> None:
    """Rows from the midst of a table, which no end tells of."""
    sinks, _ = world
    truth = Truth(sinks)
    sinks.sink().start()
    truth.send(60)
    sinks.settle()
    partition = partition_of(DEFAULT_ORGANIZATION, "customer-3", PARTITIONS)
    lost = "kafka_partition = {partition:UInt16} AND kafka_offset BETWEEN 3 AND 5"
    sinks.client.command(
        f"DELETE FROM usage_events WHERE {lost}", parameters={"partition": partition}, settings={"mutations_sync": 2}
    )
    found = audited(sinks)
    assert not found.ok
    assert not truth.holds()
    epoch = sinks.epoch()
    assert found.faults[0].places[0][:3] == (epoch, partition, 3)
    done = refill(sinks, f"{epoch}/{partition}/3..4", f"{epoch}/{partition}/5/17")
    assert done.returncode == 0, done.stderr
    assert f"{epoch}/{partition}/3..4: 2 messages with 1,000 events" in done.stdout
    assert audited(sinks).ok
    assert truth.holds()
    again = refill(sinks, f"{epoch}/{partition}/0..5")
    assert again.returncode == 0, again.stderr
    assert audited(sinks).ok
    assert truth.holds()


def test_what_can_not_be_refilled_is_told(world: tuple[SinkWorld, ClickHouseLocal]) -> None:
    sinks, _ = world
    truth = Truth(sinks)
    sinks.sink().start()
    sinks.send_bytes(0, b"no batch")
    truth.send(30)
    sinks.settle()
    epoch, end = sinks.epoch(), sinks.ends()[0]
    beyond = refill(sinks, f"{epoch}/0/{end - 1}..{end + 9}")
    assert beyond.returncode == 1
    assert "does not have 10 of them" in beyond.stdout
    letter = refill(sinks, f"{epoch}/0/0")
    assert letter.returncode == 1
    assert "offset 0 can't be stored: framing" in letter.stdout
    other_epoch = refill(sinks, f"{epoch + 1}/0/0")
    assert other_epoch.returncode == 1
    assert f"is of epoch {epoch} now" in other_epoch.stderr
    assert refill(sinks, "1/2").returncode == 2
    assert refill(sinks).returncode == 2
    # Another message than the one that was stored there: the log was replaced under the same topic.
    sinks.client.command(
        "INSERT INTO ingest_batches SELECT * REPLACE (toFixedString('another batch', 16) AS batch_id,"
        " toUInt16(events + 1) AS events) FROM ingest_batches FINAL WHERE kafka_partition = 0 AND events > 0"
    )
    replaced = refill(sinks, f"{epoch}/0/1")
    assert replaced.returncode == 1
    assert "not what was stored of it" in replaced.stderr
