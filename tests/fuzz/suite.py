"""20,000 requests, broken in every way, to every route: no 500, no hang, no growth of memory."""

import asyncio
from pathlib import Path

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.settings import Settings
from tests.fuzz.run import Outcome, failing, run
from tests.fuzz.world import FuzzWorld

INPUTS = 20_000
SEED = 20_261_128


def settings_of(kafka: KafkaBroker, clickhouse: ClickHouseLocal, name: str, directory: Path) -> Settings:
    return Settings.model_validate(
        {
            "kafka_bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": f"{name}.",
            "event_partitions": 2,
            "clickhouse_dsn": clickhouse.dsn(name),
            "admin_key": "ubk_admin_of_the_fuzzer",
            "local_dir": str(directory),
        }
    )


async def fuzzed(settings: Settings, seed: int, count: int, *, progress: bool = False) -> Outcome:
    async with FuzzWorld(settings) as world:
        return await run(world, seed, count, progress=progress)


def test_no_input_breaks_a_route(kafka: KafkaBroker, clickhouse: ClickHouseLocal, unique: str, tmp_path: Path) -> None:
    outcome = asyncio.run(fuzzed(settings_of(kafka, clickhouse, unique, tmp_path), SEED, INPUTS))
    assert not failing([outcome]), str(outcome)
