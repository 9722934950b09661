"""Live totals are bounded: a real worker's memory and topic, what a restart finds, and what the pages say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas import totals
from schemas.period import parse_rfc3339
from schemas.topics import USAGE_TOTALS, topic_name
from schemas.totals import Partial
from schemas.usage_batch import encode
from tests.flow.board import READ_KEY, Running, running_board, signed_in
from tests.flow.metering import Event, MeteringWorld, batch_of
from tests.services import Service
from tests.waiting import until

DAY_US = 86_400_000_000
FAR_AHEAD = parse_rfc3339("2099-01-01T00:00:00Z")
TOTALS = "usage_aggregator_totals"
PARTIAL = "usage_aggregator_partial_organizations"


@pytest.fixture
def world(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[MeteringWorld]:
    bounds = {"live_series_per_organization_max": 2, "live_cycle_days": 1}
    with MeteringWorld(kafka, topic_prefix, tmp_path, event_partitions=1, **bounds) as world:
        yield world


def gauge(worker: Service, name: str) -> float | None:
    lines = worker.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{")), None)


def live(world: MeteringWorld) -> set[str]:
    return {customer for customer, _, _ in world.totals()}


def test_series_beyond_the_limit_are_not_kept_and_it_is_told(world: MeteringWorld) -> None:
    worker = world.worker().start()
    for again in range(2):
        world.send(*(Event(customer) for customer in "abc"))
        until(lambda: gauge(worker, PARTIAL) == 1.0)
        until(world.all_committed)
        assert (live(world), world.total("a")[1]) == ({"a", "b"}, again + 1)
        assert worker.stop() == 0
        worker.start()
    assert worker.log_path.read_text().count("live_totals_partial") == 1


def test_closed_cycles_are_gone_after_a_restart_too(world: MeteringWorld) -> None:
    worker = world.worker().start()
    world.send(Event("a"), Event("b", at=FAR_AHEAD))
    until(lambda: live(world) == {"a", "b"})
    a_day_later = replace(batch_of([Event("b", at=FAR_AHEAD)]), received_at=time.time_ns() // 1000 + DAY_US)
    world.send_bytes(0, encode(a_day_later))
    world.flush()
    until(lambda: live(world) == {"b"})
    until(lambda: gauge(worker, TOTALS) == 1.0)
    worker.kill()
    worker.start()
    world.send(Event("a"), Event("b", at=FAR_AHEAD))
    until(world.all_committed)
    assert (live(world), world.total("b", cycle_start=FAR_AHEAD)[1]) == ({"b"}, 3)


@pytest.fixture
def running(kafka: KafkaBroker, clickhouse: ClickHouseLocal) -> Iterator[Running]:
    with running_board(kafka, clickhouse, "bounds") as running:
        yield running


def test_pages_and_api_say_that_live_totals_are_incomplete(running: Running) -> None:
    key = totals.partial_key("default")

    def publish(value: bytes | None) -> None:
        running.producer.produce(topic_name(running.settings, USAGE_TOTALS), value, key, 0)
        running.producer.flush()

    running.total("UA", 3, "1", offset=1)
    until(lambda: bool(running.get("/usage/live")["data"]))
    pages = ("/", "/live/totals", "/customers/by-id/UA", "/usage?customer_id=UA&meter_id=mtr_flights")
    with signed_in(running) as client:
        for value, is_whole in ((None, True), (totals.encode(Partial("default", 0, 7)), False), (None, True)):
            publish(value)
            until(lambda is_whole=is_whole: running.get("/usage/live", READ_KEY)["complete"] is is_whole)
            for page in pages:
                text = client.get(page, follow_redirects=True).text
                assert ("Live totals are incomplete" not in text) is is_whole, page
