"""The catalog over a real broker: writers read their own writes, a lost race is told, every process comes to one view."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from catalog.store import CatalogConflict, CatalogStore, CatalogUnavailable
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas.meter import Aggregation, Meter
from schemas.settings import Settings
from tests.waiting import until


def meter(name: str, number: int = 0) -> Meter:
    return Meter(
        id="mtr_1",
        organization_id="org",
        name=name,
        event_name="calls",
        unit="call",
        aggregation=Aggregation.COUNT,
        created_at=number,
    )


@pytest.fixture
def settings(kafka: KafkaBroker, topic_prefix: str) -> Settings:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix)
    create_topics(settings)
    return settings


def test_a_writer_reads_its_own_write_and_others_follow(settings: Settings) -> None:
    with CatalogStore(settings) as one, CatalogStore(settings) as other:
        one.write(meter("first"), 0)
        assert one.view.get(Meter, "org", "mtr_1") == meter("first")
        until(lambda: other.view.get(Meter, "org", "mtr_1") == meter("first"))
        other.write(meter("second"), 1)
        until(lambda: one.view.version(Meter, "org", "mtr_1") == 2)
    with CatalogStore(settings) as late:
        assert late.view.get(Meter, "org", "mtr_1") == meter("second")


def test_of_racing_writers_one_wins_and_the_others_are_told(settings: Settings) -> None:
    """Each round, both write on the version that both have seen."""
    with CatalogStore(settings) as one, CatalogStore(settings) as other:
        one.write(meter("start"), 0)
        for version in range(1, 11):
            winner = _race(one, other, version)
            found = one.view.get(Meter, "org", "mtr_1")
            assert found is not None
            assert found.name == winner
    with CatalogStore(settings) as late:
        assert late.view.version(Meter, "org", "mtr_1") == 11


def _race(one: CatalogStore, other: CatalogStore, version: int) -> str:
    """Both write on `version` at once; the name of the one that won, when the other lost."""
    for store in (one, other):
        until(lambda: store.view.version(Meter, "org", "mtr_1") == version)  # noqa: B023 - called before it changes

    def write(store: CatalogStore, name: str) -> str | None:
        try:
            return store.write(meter(name), version).name
        except CatalogConflict as conflict:
            return None if conflict.refusal.code == "version_conflict" else "refused for another reason"

    with ThreadPoolExecutor(2) as pool:
        fates = list(pool.map(write, (one, other), ("one", "other")))
    (winner,) = [name for name in fates if name is not None]
    return winner


def test_no_broker_is_told_in_time(kafka_factory: Callable[[], KafkaBroker]) -> None:
    broker = kafka_factory()
    broker.start()
    settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    create_topics(settings)
    with CatalogStore(settings):  # a broker that has just begun may take longer than the time-out below
        pass
    with CatalogStore(settings, timeout_seconds=3) as store:
        until(lambda: _written(store), seconds=30)
        broker.kill()
        started = time.monotonic()
        with pytest.raises(CatalogUnavailable):
            store.write(meter("away"), store.view.version(Meter, "org", "mtr_1"))
        assert time.monotonic() - started < 5
        broker.start()
        until(lambda: _written(store), seconds=30)


def _written(store: CatalogStore) -> bool:
    try:
        store.write(meter("after"), store.view.version(Meter, "org", "mtr_1"))
    except (CatalogUnavailable, CatalogConflict):
        return False
    return True
