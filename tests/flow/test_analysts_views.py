"""Views that analysts hang on our tables: one that fails holds up the log loudly, and changes what nobody counts."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from tests.flow.metering import Event
from tests.flow.sinking import SinkWorld
from tests.flow.test_sink_faults import reasons
from tests.services import Service
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)
COUNTED = 20
_FAILED = "usage_sink_foreign_failures_total{"


@pytest.fixture
def world(kafka: KafkaBroker, clickhouse: ClickHouseLocal, unique: str, tmp_path: Path) -> Iterator[SinkWorld]:
    with SinkWorld(kafka, clickhouse, unique, tmp_path) as made:
        yield made


def failures(sink: Service) -> float:
    lines = sink.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(_FAILED))


def counting_view(world: SinkWorld, name: str, source: str, count: str) -> None:
    """As an analyst makes one who has read that retries carry a token."""
    world.client.command(
        f"CREATE TABLE {name}_counts (day Date, events UInt64) ENGINE = MergeTree ORDER BY day "
        "SETTINGS non_replicated_deduplication_window = 1000"
    )
    world.client.command(
        f"CREATE MATERIALIZED VIEW {name} TO {name}_counts AS SELECT today() AS day, {count} AS events FROM {source}"
    )


def counted(world: SinkWorld, name: str) -> int:
    return world.rows(f"SELECT sum(events) FROM {name}_counts")[0][0]


def test_a_view_that_fails_on_good_messages_is_waited_for_and_named(world: SinkWorld) -> None:
    """It has the error code of damaged bytes. Other views, on our tables and on our door, count each event once."""
    counting_view(world, "on_events", "usage_events", "count()")
    counting_view(world, "on_door", "usage_batches_in", "sum(length(customer_id))")
    world.client.command("CREATE TABLE tokens (value UInt64) ENGINE = MergeTree ORDER BY value")
    world.client.command(
        "CREATE MATERIALIZED VIEW `their tokens` TO tokens AS "
        "SELECT toUInt64(properties['tokens']) AS value FROM usage_events"
    )
    sink = world.sink().start()
    world.send(*[Event("c1", value="1") for _ in range(COUNTED)])
    until(lambda: failures(sink) >= 4, 60)
    assert "their tokens" in reasons(sink)["clickhouse"]
    assert "not ours" in reasons(sink)["clickhouse"]
    assert world.rows("SELECT count() FROM usage_events")[0][0] <= COUNTED, "each retry added rows"
    world.client.command("DROP VIEW `their tokens`")
    world.settle(60)
    until(lambda: reasons(sink) == {})
    assert world.count_and_sum("c1") == (COUNTED, Decimal(COUNTED))
    assert world.rows("SELECT count() FROM dead_letters") == [(0,)]
    assert world.rows("SELECT count() FROM ingest_batches FINAL WHERE reason != ''") == [(0,)]
    assert world.rows("SELECT count() FROM usage_events") == [(COUNTED,)]
    assert (counted(world, "on_events"), counted(world, "on_door")) == (COUNTED, COUNTED)


def test_rows_that_were_lost_are_stored_again_whatever_was_inserted_before(world: SinkWorld) -> None:
    """Tables remember tokens of inserts, not of messages: a refill is another insert."""
    world.send(*[Event("c1", value="1") for _ in range(COUNTED)])
    sink = world.sink().start()
    world.settle()
    sink.stop()
    for table in ("usage_events", "usage_accepted", "ingest_batches"):
        world.client.command(f"TRUNCATE TABLE {table}")
    sink.start()
    world.settle()
    assert world.count_and_sum("c1") == (COUNTED, Decimal(COUNTED))
