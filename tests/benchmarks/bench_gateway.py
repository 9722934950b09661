"""Gateway, one process: acknowledged events/s in batches of 1,000, and requests/s of one event.

`python -m tests.benchmarks.bench_gateway [--seconds 6]`: broker, gateway and client share the machine.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from tests.benchmarks import load
from tests.benchmarks.figures import Figure
from tests.services import Service

KEY = "ubk_admin_of_the_benchmark"
NAMES = ("api_request", "storage_gb", "seats")


def body(events: int, customers: int, *, ids: bool) -> bytes:
    chance = random.Random(7)
    rows = [
        {
            "customer_id": f"cus_{chance.randrange(customers)}",
            "event_name": chance.choice(NAMES),
            "timestamp": f"2026-03-30T12:{chance.randrange(60):02}:{chance.randrange(60):02}.{chance.randrange(10**6):06}Z",
            "value": chance.randrange(1, 1000),
            **({"event_id": f"{chance.getrandbits(128):032x}"} if ids else {}),
        }
        for _ in range(events)
    ]
    return json.dumps({"events": rows}).encode()


def run(seconds: float = 6.0) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        port, controller_port = free_ports(2)
        broker = KafkaBroker(Path(directory, "kafka"), port, controller_port, Path(directory, "kafka.log"))
        broker.start()
        env = {"USAGE_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "USAGE_ADMIN_KEY": KEY}
        create_topics(Settings(kafka_bootstrap_servers=broker.bootstrap_servers))
        gateway = Service("gateway", env, Path(directory)).start()
        try:
            figures: list[Figure] = []
            for name, ids in (("positions", False), ("client ids", True)):
                batches = body(1000, 1000, ids=ids)
                load.run(gateway.port, batches, KEY, 16, 2.0)  # warm
                found = load.run(gateway.port, batches, KEY, 16, seconds)
                assert found.failures == 0, f"{found.failures} requests failed"
                note = f"{name}; 16 connections, p99 {found.percentile(0.99) * 1000:.0f} ms"
                figures.append(Figure("gateway, batches of 1,000", found.per_second * 1000, "events/s", 250_000, note))
            single = body(1, 1000, ids=True)
            load.run(gateway.port, single, KEY, 256, 2.0)
            found = load.run(gateway.port, single, KEY, 256, seconds)
            assert found.failures == 0, f"{found.failures} requests failed"
            note = f"256 connections, p99 {found.percentile(0.99) * 1000:.0f} ms"
            figures.append(Figure("gateway, one event a request", found.per_second, "requests/s", 10_000, note))
            return figures
        finally:
            gateway.stop()
            broker.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=6.0)
    for figure in run(parser.parse_args().seconds):
        print(figure)
