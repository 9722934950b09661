"""Thousands of requests, broken in every way, to every route: no 500, no hang, no growth of memory."""

import asyncio
from pathlib import Path

import pytest
from stripe_standin.process import StripeStandin

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.settings import Settings
from tests.fuzz.run import Outcome, failing, run
from tests.fuzz.world import FuzzWorld
from tests.services import Service, environment
from tests.standin import stripe_standin

INPUTS = 20_000
SEED = 2


def settings_of(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, stripe: StripeStandin, name: str, directory: Path
) -> Settings:
    return Settings.model_validate(
        {
            "kafka_bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": f"{name}.",
            "event_partitions": 2,
            "clickhouse_dsn": clickhouse.dsn(name),
            "admin_key": "ubk_admin_of_the_fuzzer_" + "x" * 24,
            "local_dir": str(directory),
            "stripe_api_base": stripe.address,
            "stripe_api_key": stripe.api_key,
            "stripe_retry_seconds": 1.0,
            # Most of what is sent fails, and is to be read all the same.
            "key_failures_per_minute": 10**9,
            "organization_failures_per_minute": 10**9,
        }
    )


async def fuzzed(settings: Settings, directory: Path, seed: int, count: int, *, progress: bool = False) -> Outcome:
    """With a sink behind it, so that what reads ClickHouse reads what was posted."""
    async with FuzzWorld(settings) as world:
        env = environment(settings) | {
            "STRIPE_API_BASE": settings.stripe_api_base, "STRIPE_API_KEY": settings.stripe_api_key.get_secret_value(),
        }  # fmt: skip
        sink = await asyncio.to_thread(Service("sink", env, directory).start)
        try:
            return await run(world, seed, count, progress=progress)
        finally:
            sink.stop()


@pytest.mark.timeout(600)
def test_no_input_breaks_a_route(kafka: KafkaBroker, clickhouse: ClickHouseLocal, unique: str, tmp_path: Path) -> None:
    with stripe_standin(tmp_path) as stripe:
        settings = settings_of(kafka, clickhouse, stripe, unique, tmp_path)
        outcome = asyncio.run(fuzzed(settings, tmp_path, SEED, INPUTS))
    assert not failing([outcome]), str(outcome)
