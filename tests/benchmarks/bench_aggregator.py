"""Aggregator, one process: events/s from a filled topic into written and committed totals.

`python -m tests.benchmarks.bench_aggregator [--events N] [--customers N] [--ids]`: the broker shares the machine. The
clock runs from the first event that counts to the commit of the last, without the worker's start.
"""

import argparse
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from confluent_kafka import Consumer, Producer, TopicPartition

from catalog.store import CatalogStore
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from runtime.kafka.admin import create_topics
from schemas.event import client_identity
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.period import parse_rfc3339
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import HEADER_LENGTH, UsageBatch, encode, unscaled_bytes
from tests.benchmarks.figures import Figure
from tests.known import make_known
from tests.services import Service, environment

NAMES = ("api_request", "storage_gb", "seats")
EVENTS_PER_MESSAGE = 1000
MESSAGES_MADE_MAX = 600  # distinct ones; more are the same again under other batch_ids, so without ids they count again
CYCLE_START = parse_rfc3339("2026-03-01T00:00:00Z")
_APPLIED = re.compile(r"^usage_aggregator_events_applied_total ([0-9.e+]+)$", re.MULTILINE)
_SECONDS_MAX = 600.0


def customer_id(number: int) -> str:
    return f"cus_{number:07}"


def messages(count: int, customers: int, partitions: int, *, ids: bool) -> Iterator[tuple[int, bytes]]:
    """Partition and message, `count` of them; each of random customers of its partition, 1,000 events."""
    chance = random.Random(7)
    of_partition: list[list[str]] = [[] for _ in range(partitions)]
    for number in range(customers):
        customer = customer_id(number)
        of_partition[partition_of(DEFAULT_ORGANIZATION, customer, partitions)].append(customer)
    made: list[tuple[int, bytes]] = []
    for number in range(count):
        if not ids and number >= MESSAGES_MADE_MAX:
            partition, message = made[number % MESSAGES_MADE_MAX]
            yield partition, with_batch_id(message, chance.randbytes(16))
            continue
        partition = number % partitions
        batch = UsageBatch(
            batch_id=chance.randbytes(16),
            received_at=CYCLE_START + number * 1000,
            organization_id=[DEFAULT_ORGANIZATION] * EVENTS_PER_MESSAGE,
            customer_id=chance.choices(of_partition[partition], k=EVENTS_PER_MESSAGE),
            event_name=chance.choices(NAMES, k=EVENTS_PER_MESSAGE),
            timestamp=[CYCLE_START + chance.randrange(10**12) for _ in range(EVENTS_PER_MESSAGE)],
            value=[unscaled_bytes(chance.randrange(1, 10**12)) for _ in range(EVENTS_PER_MESSAGE)],
            identity=[client_identity(chance.randbytes(16).hex()) for _ in range(EVENTS_PER_MESSAGE)] if ids else (),
        )
        message = (partition, encode(batch))
        if not ids:
            made.append(message)
        yield message


def with_batch_id(message: bytes, batch_id: bytes) -> bytes:
    """The same message as if it were another batch: the id stands behind the framing."""
    return message[:HEADER_LENGTH] + batch_id + message[HEADER_LENGTH + len(batch_id) :]


def fill(settings: Settings, events: int, customers: int, *, ids: bool) -> dict[int, int]:
    """Partition → messages in it."""
    producer = Producer({**settings.kafka_properties, "compression.type": "lz4", "linger.ms": 5})
    ends: dict[int, int] = {}
    for partition, message in messages(events // EVENTS_PER_MESSAGE, customers, settings.event_partitions, ids=ids):
        while True:
            try:
                producer.produce(topic_name(settings, USAGE_EVENTS), message, partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
        ends[partition] = ends.get(partition, 0) + 1
    assert producer.flush(60) == 0
    return ends


def cpu_seconds(pid: int | None) -> float:
    """CPU time of a process so far; 0 where the system does not say (no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(settings: Settings, ends: dict[int, int], directory: Path) -> tuple[float, float]:
    """Events a second of one worker that finds the topic filled; and its cores in use meanwhile."""
    group = {"group.id": topic_name(settings, "aggregator"), "enable.auto.commit": False}
    reader = Consumer({**settings.kafka_properties, **group})
    topic = topic_name(settings, USAGE_EVENTS)
    worker = Service("aggregator", environment(settings), directory)
    worker.launch()
    try:
        deadline = time.monotonic() + _SECONDS_MAX
        began: tuple[float, float, float] | None = None
        with httpx.Client(base_url=worker.address, timeout=10) as client:
            while True:
                assert worker.running, worker.log_path.read_text()[-2000:]
                assert time.monotonic() < deadline, f"not done within {_SECONDS_MAX:g} s"
                try:
                    found = _APPLIED.search(client.get("/metrics").text)
                except httpx.TransportError:
                    found = None
                applied = float(found[1]) if found else 0.0
                if applied and began is None:
                    began = (time.perf_counter(), applied, cpu_seconds(worker.pid))
                if began and applied == sum(ends.values()) * EVENTS_PER_MESSAGE:
                    committed = reader.committed([TopicPartition(topic, p) for p in ends], timeout=10)
                    if {each.partition: each.offset for each in committed} == ends:
                        break
                time.sleep(0.05 if began is None else 0.1)
        seconds = time.perf_counter() - began[0]
        return (applied - began[1]) / seconds, (cpu_seconds(worker.pid) - began[2]) / seconds
    finally:
        worker.stop()
        reader.close()


def bench(events: int, customers: int, *, ids: bool, floor: float) -> Figure:
    with tempfile.TemporaryDirectory() as directory:
        port, controller_port = free_ports(2)
        broker = KafkaBroker(Path(directory, "kafka"), port, controller_port, Path(directory, "kafka.log"))
        broker.start()
        try:
            settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
            create_topics(settings)
            with CatalogStore(settings) as catalog:
                make_known(catalog, map(customer_id, range(customers)), NAMES)
            ends = fill(settings, events, customers, ids=ids)
            rate, cores = measure(settings, ends, Path(directory))
        finally:
            broker.stop()
    how = f"{events / 1e6:g} M events {'with client ids' if ids else 'without ids'}; {cores:.2f} cores in use"
    return Figure(f"aggregator, {customers:,} customers × {len(NAMES)} event names", rate, "events/s", floor, how)


def run() -> list[Figure]:
    return [
        bench(4_000_000, 1_000, ids=False, floor=200_000),
        bench(2_000_000, 1_000, ids=True, floor=200_000),
        bench(3_000_000, 100_000, ids=False, floor=100_000),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int)
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--ids", action="store_true", help="every event has an event_id of its own")
    given = parser.parse_args()
    if given.events is None:
        for figure in run():
            print(figure, flush=True)
    else:
        least = 200_000 if given.customers <= 1000 else 100_000
        print(bench(given.events, given.customers, ids=given.ids, floor=least))
