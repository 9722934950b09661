"""Real broker and engine for every test that asks: started once a session, never skipped.

Tests share them and keep apart by names: `unique` for topics, groups and organizations, `database` for tables.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, settings

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from tests.matrix.engine import engine_of
from tests.matrix.versions import version_named

# How long an example takes is the machine's matter, and here it may be another's turn at any time.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_QUICK = {"flow": 0, "contract": 1}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that two processes end together: the short ones fill what is left."""
    items.sort(key=lambda item: _QUICK.get(item.path.parent.name, 2))


def _broker(directory: Path) -> KafkaBroker:
    port, controller_port = free_ports(2)
    return KafkaBroker(directory / "data", port, controller_port, directory / "kafka.log")


def _engine(directory: Path) -> ClickHouseLocal:
    """The pinned version, or the one of tests.matrix that the environment names."""
    files = directory / "data", free_ports(1)[0], directory / "clickhouse.log"
    name = os.environ.get("USAGE_TEST_CLICKHOUSE")
    return engine_of(version_named(name), *files) if name else ClickHouseLocal(*files)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """The session's broker, running. Don't stop it: `kafka_factory` makes ones that you may."""
    broker = _broker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseLocal]:
    """The session's engine, running. Don't stop it: `clickhouse_factory` makes ones that you may."""
    engine = _engine(tmp_path_factory.mktemp("clickhouse"))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def second_clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseLocal]:
    """Another engine, running, for tests of servers that share usage. Don't stop it."""
    engine = _engine(tmp_path_factory.mktemp("second_clickhouse"))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def unique() -> str:
    """A name that no other test has: letters and digits, fit for topics, groups, databases and ids."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def topic_prefix(unique: str) -> str:
    """Prefix of this test's topics and groups (setting USAGE_TOPIC_PREFIX)."""
    return f"{unique}."


@pytest.fixture
def database(clickhouse: ClickHouseLocal, unique: str) -> Iterator[str]:
    """Name of an empty database of this test in the session's engine; dropped afterwards."""
    client = clickhouse_connect.get_client(dsn=clickhouse.dsn(), autogenerate_session_id=False)
    client.command(f"CREATE DATABASE {unique}")
    yield unique
    client.command(f"DROP DATABASE {unique} SYNC")
    client.close()


@pytest.fixture
def clickhouse_client(clickhouse: ClickHouseLocal, database: str) -> Iterator[Client]:
    """A client of `database`."""
    client = clickhouse_connect.get_client(dsn=clickhouse.dsn(database), autogenerate_session_id=False)
    yield client
    client.close()


@pytest.fixture
def kafka_factory(tmp_path: Path) -> Iterator[Callable[[], KafkaBroker]]:
    """Makes brokers of this test alone, not started: start, stop, kill, pause them as you like."""
    made: list[KafkaBroker] = []

    def make() -> KafkaBroker:
        made.append(_broker(tmp_path / f"kafka-{len(made)}"))
        return made[-1]

    yield make
    for broker in made:
        broker.stop()


@pytest.fixture
def clickhouse_factory(tmp_path: Path) -> Iterator[Callable[[], ClickHouseLocal]]:
    """Makes engines of this test alone, not started: start, stop, kill, pause them as you like."""
    made: list[ClickHouseLocal] = []

    def make() -> ClickHouseLocal:
        made.append(_engine(tmp_path / f"clickhouse-{len(made)}"))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()
