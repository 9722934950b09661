"""The sink before two servers that share usage: each is filled, waited for and filled again by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog.store import CatalogStore
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.watermark import Watermark
from tests.flow.sinking import PARTITIONS, SinkWorld
from tests.flow.test_sink_faults import Truth, lives, reasons
from tests.services import environment
from tests.waiting import until
from warehouse.audit import audit
from warehouse.shards import open_shards

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def engines(clickhouse_factory: Callable[[], ClickHouseLocal]) -> list[ClickHouseLocal]:
    made = [clickhouse_factory(), clickhouse_factory()]
    for engine in made:
        engine.start()
    return made


@pytest.fixture
def world(kafka: KafkaBroker, engines: list[ClickHouseLocal], unique: str, tmp_path: Path) -> Iterator[SinkWorld]:
    shards = ",".join(engine.dsn(unique) for engine in engines)
    with SinkWorld(kafka, engines[0], unique, tmp_path, clickhouse_shards=shards) as made:
        yield made


def of_server(world: SinkWorld, offsets: dict[int, int], shard: int) -> dict[int, int]:
    return {partition: offset for partition, offset in offsets.items() if world.shards.shard_of(partition) == shard}


def is_whole(world: SinkWorld, truth: Truth) -> bool:
    return truth.holds() and audit(world.shards, Watermark(world.epoch(), world.ends()), PARTITIONS).ok


@pytest.mark.parametrize("gone", [0, 1])
def test_a_killed_server_holds_up_its_own_partitions_alone(
    world: SinkWorld, engines: list[ClickHouseLocal], gone: int
) -> None:
    truth, sink = Truth(world), world.sink().start()
    truth.send(20)
    world.settle()
    before = world.committed()
    engines[gone].kill()
    truth.send(40)
    until(lambda: of_server(world, world.committed(), 1 - gone) == of_server(world, world.ends(), 1 - gone))
    assert of_server(world, world.committed(), gone) == of_server(world, before, gone)
    until(lambda: ("clickhouse_shard_2" if gone else "clickhouse") in reasons(sink))
    assert lives(sink)
    engines[gone].start()
    world.settle()
    assert is_whole(world, truth)
    assert all(world.shards.at(shard).query("SELECT count() FROM usage").result_rows[0][0] for shard in (0, 1))


@pytest.mark.parametrize("older", [0, 1])
def test_an_older_copy_of_one_server_is_filled_from_the_log(
    world: SinkWorld, engines: list[ClickHouseLocal], tmp_path: Path, older: int
) -> None:
    copy = tmp_path / "copy"
    truth, sink = Truth(world), world.sink().start()
    truth.send(20)
    world.settle()
    engines[older].stop()
    shutil.copytree(engines[older].data_dir, copy, symlinks=True)
    engines[older].start()
    truth.send(40)
    world.settle()
    engines[older].stop()
    shutil.rmtree(engines[older].data_dir)
    shutil.copytree(copy, engines[older].data_dir, symlinks=True)
    engines[older].start()
    assert not truth.holds()
    until(lambda: not sink.running, 60)
    sink.stop()
    sink.start()
    world.settle()
    assert is_whole(world, truth)


def test_every_server_has_the_catalog_that_its_usage_is_matched_with(world: SinkWorld) -> None:
    world.sink().start()
    with CatalogStore(world.settings) as catalog:
        catalog.write(Customer(id="cus_new", name="New", organization_id=DEFAULT_ORGANIZATION, created_at=0), 0)
    until(lambda: world.rows("SELECT count() FROM customers WHERE id = 'cus_new'") == [(1,), (1,)])


def test_a_partition_that_is_moved_is_filled_on_the_other_server_and_counted_there(
    world: SinkWorld, tmp_path: Path
) -> None:
    truth, sink = Truth(world), world.sink().start()
    truth.send(30)
    world.settle()
    sink.stop()
    moved = next(partition for partition, at in world.shards.placed.items() if at == 1)
    assert "is on shard 1" in command(world, "shards", "move", str(moved), "1")
    world.shards.close()
    world.shards = open_shards(world.settings)
    assert world.stored()[moved] == 0
    sink.start()
    truth.send(30)
    world.settle()
    assert audit(world.shards, Watermark(world.epoch(), world.ends()), PARTITIONS).ok
    assert "deleted on shard 2" in command(world, "shards", "drop-left", str(moved))
    assert is_whole(world, truth)
    assert str(moved) in command(world, "shards", "list")


def command(world: SinkWorld, *words: str) -> str:
    """What it prints."""
    env = {**os.environ, **environment(world.settings)}
    made = subprocess.run(
        [sys.executable, "-m", "usage_billing.cli", *words], env=env, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return made.stdout
