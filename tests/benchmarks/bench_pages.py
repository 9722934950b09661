"""Pages of a large merchant: milliseconds until each answers, with many customers, meters and stored events.

`python -m tests.benchmarks.bench_pages [--events N] [--customers N] [--meters N]`: broker, engine and `serve` share the
machine. Events and invoices are made within the engine; live totals, customers and subscriptions go through the log.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from confluent_kafka import Producer

from catalog.record import CatalogObject
from catalog.store import CatalogStore
from catalog.view import Refusal
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from ledger.invoice import Invoice
from runtime.kafka.admin import create_topics
from schemas import totals
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from schemas.partition import partition_of
from schemas.period import calendar_month_containing, parse_rfc3339
from schemas.product import Product
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.topics import USAGE_TOTALS, topic_name
from schemas.totals import Progress, UsageTotal
from tests.services import Service, environment
from tests.waiting import until
from warehouse.client import Client, connect
from warehouse.epochs import register_epoch
from warehouse.migrate import migrate

KEY = "ubk_admin_of_the_benchmark"
METERS_A_CUSTOMER = 10
ROUNDS = 30
LIMIT_MS = 150.0
NOW = time.time_ns() // 1000
MONTH = calendar_month_containing("UTC", NOW)
OWN: dict[str, Any] = {"organization_id": DEFAULT_ORGANIZATION, "created_at": 0}


def customer_id(number: int) -> str:
    return f"cus_{number:06}"


def configure(settings: Settings, customers: int, meters: int) -> None:
    """Meters, a product for each tenth of them, customers, and a subscription of each."""
    with CatalogStore(settings) as store:
        waiting: list[Future[Refusal | None]] = []

        def write(state: CatalogObject) -> None:
            waiting.append(store.submit(state, 0))

        write(Organization(id=DEFAULT_ORGANIZATION, **OWN))
        for n in range(meters):
            meter = {"id": f"mtr_{n}", "name": f"Meter {n}", "event_name": f"event_{n}", "unit": "units"}
            write(Meter.model_validate({**OWN, **meter, "aggregation": Aggregation.SUM}))
        _all_in_force(waiting)
        groups = meters // METERS_A_CUSTOMER
        for group in range(groups):
            prices = [
                {"model": "per_unit", "meter_id": f"mtr_{group * METERS_A_CUSTOMER + n}", "unit_amount": "0.001"}
                for n in range(METERS_A_CUSTOMER)
            ]
            product = {"id": f"prod_{group}", "name": f"Product {group}", "currency": "eur", "prices": prices}
            write(Product.model_validate({**OWN, **product}))
        _all_in_force(waiting)
        for n in range(customers):
            write(Customer(id=customer_id(n), name=f"Customer {n}", **OWN))
        _all_in_force(waiting)
        for n in range(customers):
            subscription = {
                "id": f"sub_{n}", "customer_id": customer_id(n), "product_id": f"prod_{n % groups}",
                "started_at": MONTH.start_us, "billing_interval": "month", "time_zone": "UTC",
                "collection_method": "charge_automatically",
            }  # fmt: skip
            write(Subscription.model_validate({**OWN, **subscription}))
        _all_in_force(waiting)


def _all_in_force(waiting: list[Future[Refusal | None]]) -> None:
    for fate in waiting:
        assert fate.result(60) is None
    waiting.clear()


def publish_totals(settings: Settings, customers: int, meters: int) -> None:
    """A total of the present month for each meter of each customer's product."""
    producer = Producer({**settings.kafka_properties, "compression.type": "lz4", "linger.ms": 20})
    topic, groups = topic_name(settings, USAGE_TOTALS), meters // METERS_A_CUSTOMER
    for n in range(customers):
        customer = customer_id(n)
        partition = partition_of(DEFAULT_ORGANIZATION, customer, settings.event_partitions)
        for m in range(METERS_A_CUSTOMER):
            name = f"event_{(n % groups) * METERS_A_CUSTOMER + m}"
            total = UsageTotal(
                DEFAULT_ORGANIZATION, customer, name, MONTH.start_us, MONTH.end_us, "12345.5", 200, "99", "topic",
                partition, 0, 1, NOW,
            )  # fmt: skip
            key = totals.total_key(DEFAULT_ORGANIZATION, customer, name, MONTH.start_us, MONTH.end_us)
            _produce(producer, topic, totals.encode(total), key, partition)
    for partition in range(settings.event_partitions):
        progress = totals.encode(Progress("topic", partition, 0, NOW, NOW))
        _produce(producer, topic, progress, totals.PROGRESS_KEY, partition)
    assert producer.flush(60) == 0


def _produce(producer: Producer, topic: str, value: bytes, key: bytes, partition: int) -> None:
    while True:
        try:
            producer.produce(topic, value, key, partition)
            return
        except BufferError:
            producer.poll(0.1)


def store_events(client: Client, settings: Settings, events: int, customers: int, meters: int) -> None:
    """Events of the present month up to now, spread evenly; and an invoice of the month before of every customer."""
    epoch, groups = register_epoch(client, "topic"), meters // METERS_A_CUSTOMER
    step = max(1, (NOW - MONTH.start_us) // events)
    at_once = 2_000_000
    for first in range(0, events, at_once):
        count = min(at_once, events - first)
        client.command(f"""
            INSERT INTO usage_events SELECT
                '{DEFAULT_ORGANIZATION}', concat('cus_', leftPad(toString(customer), 6, '0')),
                concat('event_', toString((customer % {groups}) * {METERS_A_CUSTOMER} + intDiv(n, {customers}) % {METERS_A_CUSTOMER})),
                concat('c:', toString(n)), 0, fromUnixTimestamp64Micro(toInt64({MONTH.start_us} + n * {step})),
                toDecimal128(n % 1000, 9), map('region', ['eu', 'us', 'ap'][n % 3 + 1]),
                fromUnixTimestamp64Micro(toInt64({MONTH.start_us} + n * {step})), {epoch},
                customer % {settings.event_partitions}, intDiv(n, 1000), n % 1000, bitNot(toUInt64(n)), 0
            FROM (SELECT number AS n, number % {customers} AS customer FROM numbers({first}, {count}))
        """)
    client.command(f"""
        INSERT INTO accepted_batches SELECT '{DEFAULT_ORGANIZATION}',
            fromUnixTimestamp64Micro(toInt64({MONTH.start_us} + number * 1000 * {step})), {epoch},
            number % {settings.event_partitions}, number, 1000 FROM numbers({events // 1000})
    """)
    client.command(f"""
        INSERT INTO ingest_batches (kafka_epoch, kafka_partition, kafka_offset, next_offset, batch_id, received_at,
            stored_at, events, value_sum, reason)
        SELECT {epoch}, number, 0, {events // 1000 + 1}, '', now64(6), now64(6), 0, 0, 'no_message'
        FROM numbers({settings.event_partitions})
    """)
    invoice = Invoice(
        id="INVOICE",
        organization_id=DEFAULT_ORGANIZATION,
        customer_id="CUSTOMER",
        subscription_id="sub_0",
        cycle_start=parse_rfc3339("2026-01-01T00:00:00Z"),
        cycle_end=parse_rfc3339("2026-02-01T00:00:00Z"),
        state="paid",
        updated_at=0,
    )
    document = json.dumps({**invoice.document(), "currency": "eur", "total": "21.00", "number": "A-1"})
    client.command(f"""
        INSERT INTO stored_invoices (organization_id, id, customer_id, subscription_id, cycle_start, cycle_end, state,
            currency, total, version, document)
        SELECT '{DEFAULT_ORGANIZATION}', concat('inv_', toString(number)), concat('cus_', leftPad(toString(number), 6, '0')),
            'sub_0', '2026-01-01', '2026-02-01', 'paid', 'eur', 21, 1,
            replaceOne(replaceOne('{document}', 'INVOICE', concat('inv_', toString(number))), 'CUSTOMER',
                concat('cus_', leftPad(toString(number), 6, '0')))
        FROM numbers({customers})
    """)


PAGES = (
    "/", "/live/numbers", "/live/totals", "/usage", "/usage?customer_id=cus_000005",
    "/usage?customer_id=cus_000005&window=cycle&meter_id=mtr_50", "/usage/events?customer_id=cus_000005",
    "/usage/events?event_id=12345", "/invoices", "/invoices?customer_id=cus_000005", "/invoices/inv_77", "/orders",
    "/alerts", "/customers", "/customers?q=customer+77", "/customers/by-id/cus_000005", "/subscriptions",
    "/subscriptions/sub_5", "/subscriptions/new", "/products", "/products/prod_3", "/products/new", "/meters",
    "/meters/mtr_7", "/export", "/api-keys", "/settings", "/docs",
)  # fmt: skip
COUNTED = (
    "/invoices/upcoming?customer_id=cus_000005", "/usage/figures?meter_id=mtr_3",
    "/usage/figures?meter_id=mtr_3&group_by=region",
)  # fmt: skip
"""Parts that a page does not wait for: events are counted, of a customer or of the whole organization."""


def measure(address: str) -> dict[str, list[float]]:
    """Path → milliseconds, sorted. A visitor goes through all pages again and again, the first time before the clock:
    so each meets figures that were kept for it and such that are counted anew, as often as a visitor does."""
    signed = httpx.post(f"{address}/sign-in", data={"key": KEY})
    took: dict[str, list[float]] = {}
    with httpx.Client(base_url=address, cookies=signed.cookies, headers={"Accept": "text/html"}, timeout=60) as client:
        for rounds, paths in ((ROUNDS, PAGES), (3, COUNTED)):
            for path in paths:
                client.get(path)
            for path in paths * rounds:
                started = time.perf_counter()
                answer = client.get(path)
                took.setdefault(path, []).append((time.perf_counter() - started) * 1000)
                assert answer.status_code == 200, (path, answer.status_code, answer.text[:300])
    return {path: sorted(times) for path, times in took.items()}


def resident_mb(pid: int | None) -> float:
    """Resident memory of a process; 0 where the system does not say (no /proc)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return float(status.partition("VmRSS:")[2].split()[0]) / 1024


def export(service: Service) -> None:
    """Stream the first six days as CSV, and watch the memory of the process that makes it."""
    signed = httpx.post(f"{service.address}/sign-in", data={"key": KEY})
    first = datetime.fromtimestamp(MONTH.start_us / 1e6, UTC).date()
    days = {"from_date": first.isoformat(), "to_date": (first + timedelta(days=5)).isoformat()}
    before, rows, taken = resident_mb(service.pid), 0, 0
    greatest, started = before, time.perf_counter()
    with httpx.stream(
        "GET", f"{service.address}/export/usage.csv", params=days, cookies=signed.cookies, timeout=120
    ) as answer:
        for chunk in answer.iter_bytes():
            rows += chunk.count(b"\n")
            taken += len(chunk)
            greatest = max(greatest, resident_mb(service.pid))
    seconds = time.perf_counter() - started
    print(
        f"export: {rows - 1:,} rows, {taken / 1e6:.0f} MB in {seconds:.1f} s; resident {before:.0f} MB before, "
        f"{greatest:.0f} MB at most"
    )


def bench(events: int, customers: int, meters: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        port, controller_port = free_ports(2)
        broker = KafkaBroker(directory / "kafka", port, controller_port, directory / "kafka.log")
        engine = ClickHouseLocal(directory / "clickhouse", free_ports(1)[0], directory / "clickhouse.log")
        broker.start()
        engine.start()
        services: list[Service] = []
        try:
            values: dict[str, Any] = {
                "kafka_bootstrap_servers": broker.bootstrap_servers,
                "clickhouse_dsn": engine.dsn("pages"),
                "admin_key": KEY,
            }
            settings = Settings(**values)
            create_topics(settings)
            migrate(settings)
            for what, make in (
                ("catalog", lambda: configure(settings, customers, meters)),
                ("totals", lambda: publish_totals(settings, customers, meters)),
                ("events", lambda: _stored(settings, events, customers, meters)),
            ):
                started = time.perf_counter()
                make()
                print(f"  {what} made in {time.perf_counter() - started:.1f} s", flush=True)
            services += [Service(name, environment(settings), directory).start() for name in ("sink", "serve")]
            serve = services[-1]
            took = measure(serve.address)
            export(serve)
            return took
        finally:
            for service in services:
                service.stop()
            engine.stop()
            broker.stop()


def _stored(settings: Settings, events: int, customers: int, meters: int) -> None:
    with connect(settings, read_timeout_seconds=300) as client:
        store_events(client, settings, events, customers, meters)
        # A merchant's events came in months, not in a minute: their parts are long merged.
        until(lambda: client.query("SELECT count() FROM system.merges").result_rows[0][0] == 0, 300)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--customers", type=int, default=10_000)
    parser.add_argument("--meters", type=int, default=100)
    given = parser.parse_args()
    took = bench(given.events, given.customers, given.meters)
    everything = sorted(each for path in PAGES for each in took[path])
    for path, times in took.items():
        p95 = times[int(len(times) * 0.95)]
        mark = "" if p95 < LIMIT_MS or path in COUNTED else "  above the limit"
        print(f"{path:<62} p50 {statistics.median(times):7.1f} ms   p95 {p95:7.1f} ms{mark}")
    whole = everything[int(len(everything) * 0.95)]
    print(
        f"all pages: p95 {whole:.1f} ms, limit {LIMIT_MS:g} ms ({given.events:,} events, {given.customers:,} customers)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
