"""The whole schema against the running service, with whatever a generator thinks of: nothing is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas.organization import new_secret
from schemas.settings import Settings
from tests.services import Service, environment
from tests.standin import stripe_standin
from tests.waiting import until
from warehouse.migrate import migrate

KEY = new_secret()
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
EXAMPLES_MAX = 12
ENDLESS = "/api/v1/stream"  # server-sent events; tested by those who listen


@pytest.fixture(scope="module")
def service(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = Settings(  # pyright: ignore[reportCallIssue]
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        topic_prefix="openapi.",
        event_partitions=2,
        clickhouse_dsn=clickhouse.dsn("openapi"),
        admin_key=KEY,  # pyright: ignore[reportArgumentType]
    )
    stripe = stripe_standin(tmp_path_factory.mktemp("stripe"))
    create_topics(settings)
    migrate(settings)
    directory = tmp_path_factory.mktemp("openapi")
    sink = Service("sink", environment(settings), directory).start()
    stripe.__enter__()
    asked = {"STRIPE_API_BASE": stripe.address, "STRIPE_API_KEY": stripe.api_key}
    started = Service("serve", environment(settings) | asked, directory).start()
    until(lambda: httpx.get(f"{started.address}/api/v1/audit", headers=AUTHORIZED, timeout=30).status_code == 200)
    yield started
    started.stop()
    sink.stop()
    stripe.__exit__()


@pytest.mark.timeout(400)
def test_schemathesis_finds_nothing(service: Service) -> None:
    """Every check but one: data that a schema allows may still name what is not there, and is then refused."""
    program = str(Path(sys.executable).with_name("schemathesis"))
    made = subprocess.run(
        [
            program, "run", f"{service.address}/openapi.json", "--header", f"Authorization: Bearer {KEY}",
            "--exclude-path", ENDLESS, "--exclude-checks", "positive_data_acceptance", "--max-examples",
            str(EXAMPLES_MAX), "--generation-deterministic", "--seed", "1", "--no-color", "--workers", "2",
        ],
        capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-8000:] + made.stderr[-2000:]
    assert service.running, "the service died of it"
