"""Sink, one process: events/s from a filled topic into ClickHouse, all tables and views, over HTTP.

`python -m tests.benchmarks.bench_sink [--events N]`: broker and engine share the machine. The clock runs from the first
rows that are stored to the last, without the sink's start. `--shards N`: into as many engines that share usage;
`--pinned`: each on a core of its own, so that one engine is the limit on a machine of few cores.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
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
    servers = [connect(settings, shard=shard) for shard in range(len(settings.clickhouse_dsns))]
    sink = Service("sink", environment(settings), directory)
    sink.launch()
    try:

        def stored() -> int:
            assert sink.running, sink.log_path.read_text()[-2000:]
            return sum(int(client.query(_STORED).result_rows[0][0]) for client in servers)

        until(stored, _SECONDS_MAX, every=0.02)
        before, started = stored(), time.perf_counter()
        until(lambda: stored() >= events, _SECONDS_MAX, every=0.05)
        return (events - before) / (time.perf_counter() - started)
    finally:
        sink.stop()
        for client in servers:
            client.close()


def run(events: int = 6_000_000, shards: int = 1, *, pinned: bool = False) -> list[Figure]:
    figures: list[Figure] = []
    for name, ids in (("positions", False), ("client ids", True)):
        with ExitStack() as started:
            directory = Path(started.enter_context(tempfile.TemporaryDirectory()))
            port, controller_port, *engine_ports = free_ports(2 + shards)
            broker = KafkaBroker(directory / "kafka", port, controller_port, directory / "kafka.log")
            broker.start()
            started.callback(broker.stop)
            dsns: list[str] = []
            for core, engine_port in enumerate(engine_ports):
                engine = ClickHouseLocal(directory / f"clickhouse{core}", engine_port, directory / f"{core}.log")
                engine.spawn([*(["taskset", "-c", str(core)] if pinned else []), *engine.command()])
                started.callback(engine.stop)
                engine.wait_until(engine.ready, 60)
                dsns.append(engine.dsn("usage"))
            settings = Settings(
                kafka_bootstrap_servers=broker.bootstrap_servers, clickhouse_dsn=dsns[0],
                clickhouse_shards=",".join(dsns) if shards > 1 else "",
            )  # fmt: skip
            create_topics(settings)
            migrate(settings)
            fill(settings, events, _CUSTOMERS, ids=ids)
            rate = measure(settings, events, directory)
        what = f"{events:,} events, {name}{f', {shards} servers' if shards > 1 else ''}"
        figures.append(Figure("sink, from a filled topic", rate, "events/s", 500_000, what))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=6_000_000)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--pinned", action="store_true")
    arguments = parser.parse_args()
    for figure in run(arguments.events, arguments.shards, pinned=arguments.pinned):
        print(figure)
