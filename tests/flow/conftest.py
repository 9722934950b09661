"""What several files of flow tests share. A file that needs another world makes a fixture of this name of its own."""

from collections.abc import Iterator

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from tests.flow.billing import BillingWorld


@pytest.fixture(scope="module")
def world(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BillingWorld]:
    """Billing with all that it needs, for the tests of one file: each takes customers of its own."""
    with BillingWorld(kafka, clickhouse, tmp_path_factory.mktemp("billing")) as world:
        yield world


@pytest.fixture
def faults_end(world: BillingWorld) -> Iterator[None]:
    """What a test ordered the stand-in to do wrong ends with the test."""
    yield
    world.stripe.control("DELETE", "faults")
