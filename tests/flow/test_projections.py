"""catalog and ledger → tables: amounts of any lawful size; a record that no table takes stops no other and is named."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from ledger import records
from ledger.snapshot import InvoiceFixed, Line, Seller, with_hash
from schemas.partition import partition_of
from schemas.topics import BILLING_LEDGER, topic_name
from schemas.watermark import Watermark
from tests.flow.sinking import PARTITIONS, SinkWorld
from tests.flow.test_sink_faults import lives, reasons
from tests.waiting import until
from warehouse.projected import projection_faults

pytestmark = pytest.mark.timeout(300)
LARGEST_LAWFUL = Decimal(10) ** 18 * Decimal(10) ** 29


@pytest.fixture
def world(kafka: KafkaBroker, clickhouse: ClickHouseLocal, unique: str, tmp_path: Path) -> Iterator[SinkWorld]:
    with SinkWorld(kafka, clickhouse, unique, tmp_path) as made:
        yield made


def record(world: SinkWorld, name: str, amount: Decimal, customer: str = "c1") -> int:
    """An invoice of this amount in the ledger; the partition."""
    line = Line("mtr", 0, "per_unit", "calls", "1", "0", "1", f"{amount:f}", int(amount * 100))
    fixed = with_hash(
        InvoiceFixed(
            invoice_id=name,
            organization_id="default",
            customer_id=customer,
            subscription_id=f"sub_{name}",
            revision=1,
            cycle_start=0,
            cycle_end=1,
            active_until=1,
            time_zone="UTC",
            currency="eur",
            lines=(line,),
            total=f"{amount:f}",
            total_minor=int(amount * 100),
            watermark=Watermark(1, {}).as_json(),
            product={},
            meters=({"id": "mtr", "name": "calls", "event_name": "calls"},),
            seller=Seller("charge_automatically"),
            hash="",
            fixed_at=0,
        )
    )
    partition = partition_of("default", customer, PARTITIONS)
    topic = topic_name(world.settings, BILLING_LEDGER)
    world.producer.produce(topic, records.encode(fixed), records.record_key(fixed), partition=partition)
    world.flush()
    return partition


def invoices(world: SinkWorld) -> list[tuple[Any, ...]]:
    return list(world.rows("SELECT id, total FROM invoices ORDER BY id"))


def test_an_amount_beyond_38_digits_is_stored_and_summed(world: SinkWorld) -> None:
    """What a price below 10^18 and usage below 10^29 come to; it ended the sink, again and again."""
    world.sink().start()
    record(world, "inv_1", LARGEST_LAWFUL)
    record(world, "inv_2", LARGEST_LAWFUL)
    until(lambda: invoices(world) == [("inv_1", LARGEST_LAWFUL), ("inv_2", LARGEST_LAWFUL)], 60)
    until(lambda: list(world.rows("SELECT sum(amount) FROM invoice_lines")) == [(2 * LARGEST_LAWFUL,)])  # inserted next


def test_a_record_that_no_table_takes_is_set_aside_and_the_audit_names_it(world: SinkWorld) -> None:
    sink = world.sink().start()
    record(world, "inv_1", Decimal(1))
    partition = record(world, "inv_2", Decimal(10) ** 70)
    record(world, "inv_3", Decimal(3))
    until(lambda: [each for each, _ in invoices(world)] == ["inv_1", "inv_3"], 60)
    assert lives(sink)
    until(lambda: reasons(sink) == {})
    query = (
        "SELECT kafka_topic, kafka_partition, kafka_offset, table_name, organization_id, record LIKE '%inv_2%' "
        "FROM projection_failures FINAL ORDER BY table_name"
    )
    place = (topic_name(world.settings, BILLING_LEDGER), partition, 1)
    expected = [(*place, table, "default", 1) for table in ("stored_invoice_lines", "stored_invoices")]
    until(lambda: list(world.rows(query)) == expected)
    assert 'usage_projections_failures_total{table="stored_invoices"} 1.0' in sink.get("/metrics").text
    (fault,) = projection_faults(world.client, world.settings)
    assert (fault.kind, fault.organization_id, fault.tally.events) == ("record in no table", "default", 2)
    assert f"{place[0]}/{partition}/1 for stored_invoices" in str(fault)
    assert projection_faults(world.client, world.settings, "another") == ()
    # Another start finds it again, and keeps it once.
    assert sink.stop() == 0
    sink.start()
    until(lambda: reasons(sink) == {})
    assert list(world.rows(query)) == expected


def test_what_an_older_sink_failed_at_is_forgotten_when_this_one_has_read_everything(world: SinkWorld) -> None:
    world.client.command("INSERT INTO projection_failures (kafka_topic, kafka_offset, found_at) VALUES ('gone', 7, 1)")
    world.sink().start()
    until(lambda: not projection_faults(world.client, world.settings, wait_seconds=0))


def test_the_audit_sees_tables_that_stand_still(world: SinkWorld) -> None:
    sink = world.sink().start()
    record(world, "inv_1", Decimal(1))
    assert projection_faults(world.client, world.settings, wait_seconds=30) == ()
    assert sink.stop() == 0
    record(world, "inv_2", Decimal(1))
    (fault,) = projection_faults(world.client, world.settings, wait_seconds=0.5)
    assert (
        str(fault)
        == f"tables stand still: 1 records of {topic_name(world.settings, BILLING_LEDGER)} are in no table yet"
    )
