"""python -m tests.fuzz [--inputs N] [--seed N]: `make fuzz`. Its own broker and engine; 1 when an input breaks something."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from tests.fuzz.run import failing
from tests.fuzz.test_fuzz import fuzzed, settings_of
from tests.standin import stripe_standin


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="usage-fuzz-") as name:
        directory = Path(name)
        port, controller_port, engine_port = free_ports(3)
        kafka = KafkaBroker(directory / "kafka", port, controller_port, directory / "kafka.log")
        engine = ClickHouseLocal(directory / "clickhouse", engine_port, directory / "clickhouse.log")
        kafka.start()
        try:
            engine.start()
            with stripe_standin(directory) as stripe:
                settings = settings_of(kafka, engine, stripe, "fuzz", directory)
                outcome = asyncio.run(fuzzed(settings, directory, asked.seed, asked.inputs, progress=True))
        finally:
            engine.stop()
            kafka.stop()
    print(outcome)
    return int(failing([outcome]))


if __name__ == "__main__":
    sys.exit(main())
