"""Sink, one process: events/s from a filled topic into ClickHouse, all tables and views, over HTTP.

`python -m tests.benchmarks.bench_sink [--events N]`: broker and engine share the machine. The clock runs from the first
rows that are stored to the last, without the sink's start.
"""

import argparse
import tempfile
import time
from pathlib import Path

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from tests.benchmarks.bench_aggregator import fill
from tests.benchmarks.figures import Figure
from tests.services import Service, environment
from tests.waiting import until
from warehouse.client import connect
from warehouse.migrate import migrate

_CUSTOMERS = 1000
_SECONDS_MAX = 300.0
_STORED = "SELECT sum(events) FROM ingest_batches"


def measure(settings: Settings, events: int, directory: Path) -> float:
    """Events a second between the first insert that is visible and the last."""
    client = connect(settings)
    sink = Service("sink", environment(settings), directory)
    sink.launch()
    try:

        def stored() -> int:
            assert sink.running, sink.log_path.read_text()[-2000:]
            return int(client.query(_STORED).result_rows[0][0])

        until(stored, _SECONDS_MAX, every=0.02)
        before, started = stored(), time.perf_counter()
        until(lambda: stored() >= events, _SECONDS_MAX, every=0.05)
        return (events - before) / (time.perf_counter() - started)
    finally:
        sink.stop()
        client.close()


def run(events: int = 6_000_000) -> list[Figure]:
    figures: list[Figure] = []
    for name, ids in (("positions", False), ("client ids", True)):
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            port, controller_port, engine_port = free_ports(3)
            broker = KafkaBroker(directory / "kafka", port, controller_port, directory / "kafka.log")
            engine = ClickHouseLocal(directory / "clickhouse", engine_port, directory / "clickhouse.log")
            broker.start()
            engine.start()
            try:
                settings = Settings(
                    kafka_bootstrap_servers=broker.bootstrap_servers, clickhouse_dsn=engine.dsn("usage")
                )
                create_topics(settings)
                migrate(settings)
                fill(settings, events, _CUSTOMERS, ids=ids)
                rate = measure(settings, events, directory)
            finally:
                engine.stop()
                broker.stop()
        figures.append(Figure("sink, from a filled topic", rate, "events/s", 500_000, f"{events:,} events, {name}"))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=6_000_000)
    for figure in run(parser.parse_args().events):
        print(figure)
