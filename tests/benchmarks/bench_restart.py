"""Aggregator, one process: seconds from its start to readiness with a million totals in the changelog.

`python -m tests.benchmarks.bench_restart [--totals N]`: the broker shares the machine. Half of the totals were written
twice, as before a compaction.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Producer

from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from runtime.kafka.admin import create_topics, describe_topic
from schemas import totals
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.period import parse_rfc3339
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, USAGE_TOTALS, topic_name
from schemas.totals import BEGUN_KEY, PROGRESS_KEY, Progress, UsageTotal, total_key
from tests.benchmarks.figures import Figure
from tests.services import Service, environment

TOTALS = 1_000_000
SECONDS_MAX = 60.0  # what must hold
START, END = parse_rfc3339("2026-03-01T00:00:00Z"), parse_rfc3339("2026-04-01T00:00:00Z")


def records(count: int, partitions: int, topic_id: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Partition, key and value of a changelog with so many totals; the last records are each partition's progress."""
    for partition in range(partitions):
        yield partition, BEGUN_KEY, b"0"
    for number in (*range(count // 2), *range(count)):
        customer = f"cus_{number:07}"
        partition = partition_of(DEFAULT_ORGANIZATION, customer, partitions)
        key = total_key(DEFAULT_ORGANIZATION, customer, "calls", START, END)
        total = UsageTotal(
            DEFAULT_ORGANIZATION, customer, "calls", START, END, "12.5", 5, "4", topic_id, partition, 0, 0, START
        )
        yield partition, key, totals.encode(total)
    for partition in range(partitions):
        yield partition, PROGRESS_KEY, totals.encode(Progress(topic_id, partition, 0, START, START, 0))


def fill(settings: Settings, count: int) -> None:
    producer = Producer({**settings.kafka_properties, "compression.type": "lz4", "linger.ms": 20})
    topic, topic_id = topic_name(settings, USAGE_TOTALS), describe_topic(settings, USAGE_EVENTS).topic_id
    for partition, key, value in records(count, settings.event_partitions, topic_id):
        while True:
            try:
                producer.produce(topic, value, key, partition)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(120) == 0


def bench(count: int = TOTALS) -> Figure:
    with tempfile.TemporaryDirectory() as directory:
        port, controller_port = free_ports(2)
        broker = KafkaBroker(Path(directory, "kafka"), port, controller_port, Path(directory, "kafka.log"))
        broker.start()
        try:
            settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
            create_topics(settings)
            fill(settings, count)
            worker, began = Service("aggregator", environment(settings), Path(directory)), time.monotonic()
            worker.launch()
            try:
                worker.wait_until(worker.ready, 3 * SECONDS_MAX)
                seconds = time.monotonic() - began
            finally:
                worker.kill()
        finally:
            broker.stop()
    how = f"{seconds:.1f} s to readiness; {SECONDS_MAX:g} s must hold"
    return Figure(f"aggregator, restart with {count:,} totals", count / seconds, "totals/s", count / SECONDS_MAX, how)


def run() -> list[Figure]:
    return [bench()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--totals", type=int, default=TOTALS)
    print(bench(parser.parse_args().totals))
