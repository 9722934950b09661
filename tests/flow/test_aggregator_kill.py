"""Workers killed in a loop → totals equal to an independent count: nothing over, nothing under, each alert once."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaBroker
from schemas.alert_rule import alert_id
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.usage_batch import encode
from tests.flow.metering import APRIL, MARCH, Event, MeteringWorld, batch_of
from tests.known import make_known
from tests.services import Service
from tests.waiting import until

SEED = 20260301
KILLS = 5
CUSTOMERS = 400
EVENTS_PER_MESSAGE = 100
THRESHOLD = 3000
PRODUCE_SECONDS_MIN = 25.0
Truth = dict[tuple[str, str, int], list[int]]
"""(customer, event_name, cycle_start) → sum, count, max."""


class Load(threading.Thread):
    """Sends messages until it is told to stop, and counts by itself what they are worth: ids once, all else always."""

    def __init__(self, world: MeteringWorld) -> None:
        super().__init__(name="load", daemon=True)
        self.truth: Truth = defaultdict(lambda: [0, 0, -(10**30)])
        self.messages = 0
        self.events = 0
        self.stopping = threading.Event()
        self._world = world
        self._random = random.Random(SEED)
        self._seen: set[tuple[str, str, str]] = set()
        partitions = world.settings.event_partitions
        self._customers: dict[int, list[str]] = defaultdict(list)
        for number in range(CUSTOMERS):
            customer = f"customer-{number}"
            self._customers[partition_of(DEFAULT_ORGANIZATION, customer, partitions)].append(customer)

    def run(self) -> None:
        while not self.stopping.is_set():
            for partition in self._customers:
                events = [self._event(partition) for _ in range(EVENTS_PER_MESSAGE)]
                self._world.send_bytes(partition, encode(batch_of(events)))
                self.messages += 1
            self._world.producer.poll(0)
            self.stopping.wait(0.02)
        self._world.flush()

    def _event(self, partition: int) -> Event:
        rnd = self._random
        customer, name = rnd.choice(self._customers[partition]), rnd.choice(("calls", "bytes"))
        value = rnd.randrange(1, 100)
        # A third have no id; of the others some come again, soon or late, perhaps in another cycle.
        event_id = None if rnd.random() < 0.33 else f"e{rnd.randrange(self.messages * 20 + 100)}"
        at = rnd.choice((MARCH, MARCH, APRIL)) + rnd.randrange(10**9)
        self.events += 1
        if event_id is None or (customer, name, event_id) not in self._seen:
            if event_id is not None:
                self._seen.add((customer, name, event_id))
            total = self.truth[customer, name, MARCH if at < APRIL else APRIL]
            total[0] += value
            total[1] += 1
            total[2] = max(total[2], value)
        return Event(customer, name, str(value), event_id, at)


def _kill_in_a_loop(world: MeteringWorld, load: Load, workers: list[Service]) -> None:
    """Kill a working worker, again and again, each time after something has been counted since the last time."""
    rnd = random.Random(SEED)
    started = time.monotonic()
    for _ in range(KILLS):
        counted = sum(world.progress().values())
        until(lambda counted=counted: sum(world.progress().values()) > counted, seconds=60)
        load.stopping.wait(rnd.uniform(0.2, 2.5))  # a moment that has nothing to do with what the worker is doing
        victim = rnd.choice([worker for worker in workers if worker.running])
        victim.kill()
        load.stopping.wait(rnd.choice((0.0, 0.5, 3.0)))
        victim.launch()
    load.stopping.wait(max(0.0, PRODUCE_SECONDS_MIN - (time.monotonic() - started)))


@pytest.mark.timeout(300)
def test_totals_are_exact_when_workers_are_killed(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> None:
    with MeteringWorld(kafka, topic_prefix, tmp_path, event_partitions=4, flush_seconds=0.2) as world:
        world.rule("much", world.meter("calls"), str(THRESHOLD))
        workers = [world.worker() for _ in range(2)]
        for worker in workers:
            worker.launch()
        make_known(world.catalog, (f"customer-{number}" for number in range(CUSTOMERS)), ("calls", "bytes"))
        load = Load(world)
        load.start()
        _kill_in_a_loop(world, load, workers)
        load.stopping.set()
        load.join(60)
        until(lambda: all(worker.ready() for worker in workers), seconds=60, every=0.5)
        until(world.all_committed, seconds=120, every=0.5)
        assert [worker.stop() for worker in workers] == [0, 0]

        found = {key: [int(total.sum), total.count, int(total.max or 0)] for key, total in world.totals().items()}
        over = sum(max(0, found.get(key, [0, 0])[1] - count) for key, (_, count, _) in load.truth.items())
        under = sum(max(0, count - found.get(key, [0, 0])[1]) for key, (_, count, _) in load.truth.items())
        said = f"{load.messages} messages, {load.events} events, {KILLS} kills: {over} over, {under} under"
        print(said)
        assert (over, under) == (0, 0), said
        assert found == load.truth, said
        assert world.progress() == world.ends()

        due = {
            alert_id("rule_much", customer, cycle_start)
            for (customer, name, cycle_start), (quantity, _, _) in load.truth.items()
            if name == "calls" and quantity >= THRESHOLD
        }
        alerts = world.alerts()
        assert len(due) > CUSTOMERS / 4
        assert set(alerts) == due
        print(f"{len(due)} alerts, {sum(map(len, alerts.values()))} publications")
