"""Live totals repaired to what ClickHouse counts, and audited: real broker, engine, aggregator and sink."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas import repair as repairs
from schemas.alert_rule import AlertKind
from schemas.meter import Meter
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from schemas.partition import partition_of
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.repair import RepairReason, UsageRepair, repair_id
from schemas.subscription import Subscription
from schemas.topics import USAGE_REPAIRS, topic_name
from schemas.usage_void import UsageVoids
from schemas.usage_void import encode as encode_voids
from stream_processors.reconcile import Reconciler
from tests.flow.metering import APRIL, MARCH, Event, MeteringWorld
from tests.known import make_known
from tests.services import Service, environment
from tests.waiting import until
from warehouse.client import Client, connect
from warehouse.migrate import migrate
from warehouse.one_store import StoreReplaced
from warehouse.settled import settled
from warehouse.totals import NO_USAGE, TotalsRequest

pytestmark = pytest.mark.timeout(240)
MID_MARCH = parse_rfc3339("2026-03-15T00:00:00Z")
MID_APRIL = parse_rfc3339("2026-04-15T00:00:00Z")


class World(MeteringWorld):
    """With a sink, whose thread reconciles."""

    def __init__(self, kafka: KafkaBroker, clickhouse: ClickHouseLocal, directory: Path) -> None:
        name = f"r{secrets.token_hex(6)}"
        super().__init__(
            kafka, f"{name}.", directory, clickhouse_dsn=clickhouse.dsn(name), dedupe_ids_max=1000, flush_seconds=0.2
        )
        migrate(self.settings)
        self._database = name

    def __enter__(self) -> World:
        super().__enter__()
        organization = Organization(id=DEFAULT_ORGANIZATION, organization_id=DEFAULT_ORGANIZATION, created_at=0)
        self.catalog.write(organization, 0)
        self.meter("calls")
        self.worker().start()
        self.sink = Service("sink", environment(self.settings), self.directory).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.sink.kill()
        super().__exit__(*exception)
        with connect(self.settings) as client:
            client.command(f"DROP DATABASE {self._database} SYNC")

    @contextmanager
    def left_alone(self) -> Generator[None]:
        """No sink runs, which would repair by itself what is to be found by a command."""
        self.sink.stop()
        yield
        self.sink.start()

    def void(self, customer: str, *event_ids: str) -> None:
        n = len(event_ids)
        voids = UsageVoids(
            b"v" * 16, MARCH, [DEFAULT_ORGANIZATION] * n, [customer] * n, ["calls"] * n,
            [f"c:{event_id}" for event_id in event_ids], ["wrong"] * n,
        )  # fmt: skip
        self.send_bytes(
            partition_of(DEFAULT_ORGANIZATION, customer, self.settings.event_partitions), encode_voids(voids)
        )
        self.flush()

    def forge(self, customer: str) -> None:
        """Add 1000 to the customer's total of March, as nobody should."""
        total = self.totals()[customer, "calls", MARCH]
        forged = UsageRepair(
            repair_id(b"forged", 0, total.topic_id, 0), *total.cycle_key, 0, 1, "1000", "1000", total.max,
            total.topic_id, total.partition, total.last_offset, RepairReason.RECONCILE, 0,
        )  # fmt: skip
        producer = Producer({**self.settings.kafka_properties, "acks": "all"})
        topic = topic_name(self.settings, USAGE_REPAIRS)
        producer.produce(topic, repairs.encode(forged), forged.key, partition=forged.partition)
        assert producer.flush(10) == 0

    def is_settled(self) -> bool:
        """Whether the totals contain, and ClickHouse has, all of the log."""
        with connect(self.settings) as client:
            return self.all_committed() and settled(client, self.settings)[1].offsets == self.ends()

    def command(self, *arguments: str, name: str = "reconcile") -> tuple[int, str]:
        """Exit code and output of `usage-billing reconcile`, or of another command."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("usage-billing")), name, *arguments],
            env=os.environ | environment(self.settings), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(kafka, clickhouse, tmp_path_factory.mktemp("reconcile")) as made:
        yield made


def test_what_the_catalog_does_not_know_is_not_kept_until_it_does(world: World) -> None:
    """Every misspelled id kept a live total for ever."""
    world.send_unknown(Event("new", value="2"), Event("new", "unread", value="3"), Event("nobody", value="5"))
    until(world.is_settled, 30)
    assert [key for key in world.totals() if key[0] in ("new", "nobody")] == []
    world.customer("new")
    until(lambda: world.total("new") == ("2", 1, "2"), 60)
    world.send_unknown(Event("new", value="1"), Event("new", "unread", value="1"))
    make_known(world.catalog, [], ["unread"])
    until(lambda: (world.total("new"), world.total("new", "unread")) == (("3", 2, "2"), ("4", 2, "3")), 60)
    assert world.total("nobody") == ("0", 0, None)


def test_an_older_copy_of_clickhouse_while_it_is_counted_repairs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(Event("copied", value="5"))
    until(world.is_settled, 30)

    def of_the_copy(client: Client, wanted: Sequence[TotalsRequest], _: object) -> dict[TotalsRequest, Any]:
        client.command("TRUNCATE TABLE store_marks")
        return dict.fromkeys(wanted, NO_USAGE)

    monkeypatch.setattr("stream_processors.reconcile.exact_totals", of_the_copy)
    with world.left_alone(), connect(world.settings) as client:
        before = world.ends(USAGE_REPAIRS)
        reconciler = Reconciler(world.settings, world.catalog.view, lambda: client)
        try:
            with pytest.raises(StoreReplaced):
                reconciler.run(range(world.settings.event_partitions))
        finally:
            reconciler.close()
        assert world.ends(USAGE_REPAIRS) == before


def test_what_was_used_before_a_subscription_counts_in_its_cycles(world: World) -> None:
    """And leaves the calendar months that it had counted in."""
    world.send(*[Event("early", value=value, at=at) for value, at in (("1", MARCH), ("2", MID_MARCH), ("4", APRIL))])
    until(lambda: world.total("early") == ("3", 2, "2"), 30)
    assert world.total("early", cycle_start=APRIL) == ("4", 1, "4")
    price = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}
    product = {"id": "prod_1", "organization_id": DEFAULT_ORGANIZATION, "created_at": 0, "name": "P", "currency": "eur"}
    world.catalog.write(Product.model_validate({**product, "prices": [price]}), 0)
    world.customer("early")
    subscription = {
        "id": "sub_1", "organization_id": DEFAULT_ORGANIZATION, "created_at": 0, "customer_id": "early",
        "product_id": "prod_1", "started_at": MID_MARCH, "billing_interval": "month",
        "collection_method": "charge_automatically", "time_zone": "UTC",
    }  # fmt: skip
    world.catalog.write(Subscription.model_validate(subscription), 0)
    until(lambda: world.total("early", cycle_start=MID_MARCH) == ("6", 2, "4"), 40)
    until(lambda: world.total("early", cycle_start=APRIL) == ("0", 0, None), 40)
    assert world.total("early") == ("1", 1, "1"), "before the subscription, the calendar month"
    world.send(Event("early", value="8", at=MID_APRIL - 1), Event("early", value="16", at=MID_APRIL))
    until(lambda: world.total("early", cycle_start=MID_MARCH) == ("14", 3, "8"), 30)
    assert world.total("early", cycle_start=MID_APRIL) == ("16", 1, "16")


def test_a_void_leaves_the_live_total(world: World) -> None:
    world.send(*[Event("voided", value=value, event_id=f"e{value}") for value in ("1", "2", "4")])
    until(lambda: world.total("voided") == ("7", 3, "4"), 30)
    world.void("voided", "e4", "e1")
    until(lambda: world.total("voided") == ("2", 1, "2"), 40)
    world.send(Event("voided", value="4", event_id="e4"), Event("voided", value="3", event_id="e3"))
    until(lambda: world.total("voided") == ("5", 2, "3"), 30)


def test_a_duplicate_beyond_the_memory_of_ids_is_repaired_by_the_command(world: World) -> None:
    first = Event("dup", value="7", event_id="first")
    world.send(first)
    for batch in range(4):
        world.send(*[Event("dup", value="1", event_id=f"{batch}/{i}") for i in range(400)])
        until(world.is_settled, 30)
    world.send(first)
    until(world.is_settled, 30)
    with world.left_alone():
        until(lambda: world.total("dup") == ("1614", 1602, "7"), 30)
        code, said = world.command("--dry-run")
        assert (code, "1 differ" in said) == (1, True), said
        assert world.total("dup") == ("1614", 1602, "7"), "nothing was repaired"
        code, said = world.command()
        assert code == 0, said
    assert world.total("dup") == ("1607", 1601, "7")
    code, said = world.command("--organization", DEFAULT_ORGANIZATION)
    assert (code, "0 differ" in said) == (0, True), said


def test_a_total_that_someone_changed_is_found_and_repaired(world: World) -> None:
    world.send(Event("tampered", value="5"))
    until(world.is_settled, 30)
    with world.left_alone():
        code, said = world.command(name="audit")
        assert (code, "balances" in said) == (0, True), said
        world.forge("tampered")
        until(lambda: world.total("tampered") == ("1005", 2, "1000"), 30)
        code, said = world.command("--json", name="audit")
        assert code == 1
        (named,) = json.JSONDecoder().raw_decode(said)[0]["live_totals"]["differences"]
        assert (named["customer_id"], named["count"], named["sum"], named["max"]) == ("tampered", -1, "-1000", "5")
        code, said = world.command()
        assert code == 0, said
        assert "tampered" in said
        assert world.total("tampered") == ("5", 1, "5")


def test_a_row_that_is_gone_is_named_by_its_place(world: World) -> None:
    world.send(Event("gone", value="5", event_id="a"), Event("gone", value="2", event_id="b"))
    until(world.is_settled, 30)
    with connect(world.settings) as client:
        query = "SELECT kafka_partition, kafka_offset FROM usage_events WHERE customer_id = 'gone' AND identity = 'c:b'"
        ((partition, offset),) = client.query(query).result_rows
        delete = "ALTER TABLE usage_events DELETE WHERE customer_id = 'gone' AND identity = 'c:b' SETTINGS mutations_sync = 1"
        client.command(delete)
    code, said = world.command("--organization", DEFAULT_ORGANIZATION, name="audit")
    assert code == 1
    assert f"row lost of default: 1 events, value -2, at 1/{partition}/{offset}/1" in said
    assert "does not balance" in said


def test_a_wrong_organization_is_wrong_usage(world: World) -> None:
    assert world.command("--organization", "nobody")[0] == 2
    assert world.command("--organization", "nobody", name="audit")[0] == 2


def test_a_subscription_without_a_calendar_stops_no_total_alert_or_repair_of_others(world: World) -> None:
    """Its start is one that no calendar has: the aggregator ended at the customer's next event, again and again."""
    meter = world.catalog.view.all(Meter)[0]
    for customer in ("odd", "even"):
        world.customer(customer)
    even = world.subscription("even", meter, included="0", unit_amount="1")
    of_no_calendar = {"id": "sub_odd", "customer_id": "odd", "started_at": -(10**17)}
    world.catalog.write(even.model_copy(update=of_no_calendar), 0)
    world.rule("money", meter, "3", kind=AlertKind.AMOUNT, customer_id=None)
    world.rule("units", meter, "3", customer_id="even")

    with world.left_alone():
        world.send(Event("odd", value="5"), Event("even", value="4"))
        until(lambda: world.total("even") == ("4", 1, "4"), 30)
        until(lambda: world.total("odd") == ("5", 1, "5"), 30)  # in the calendar month
        fired = {(alert.rule_id, alert.customer_id) for (alert, *_) in world.alerts().values()}
        assert fired >= {("rule_money", "even"), ("rule_units", "even")}
        assert ("rule_money", "odd") not in fired
        world.forge("even")
        until(lambda: world.total("even")[0] == "1004", 30)
    until(world.is_settled, 30)
    with world.left_alone():
        code, said = world.command()
        assert code == 1
        assert "calls of customer odd of default was not compared: ValueError" in said
        assert world.total("even") == ("4", 1, "4")
