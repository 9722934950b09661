"""Close without Stripe: seconds for 100,000 subscriptions with three meters each, totalled and priced; and their memory.

`python -m tests.benchmarks.bench_close [--subscriptions N] [--events N]`: the engine shares the machine. The clock runs
from the question what is due to the last invoice's record, hash included: the first month, and the second one with late
usage of the first for one customer in a hundred. The catalog is in memory before, as it is in the worker.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from billing_job.context import forbear_collecting
from billing_job.invoice.builder import build_snapshots
from billing_job.invoice.due import due_cycles
from billing_job.invoice.usage_reader import Need, Quantities, quantities, windows
from catalog.record import CatalogRecord
from catalog.view import CatalogView
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.process import free_ports
from ledger.snapshot import InvoiceFixed
from ledger.view import InvoiceLedger
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.watermark import Watermark
from tests.benchmarks.figures import Figure
from warehouse.client import Client, connect
from warehouse.late import late_windows
from warehouse.migrate import migrate
from warehouse.totals import exact_totals

MARCH, APRIL, MAY = (parse_rfc3339(f"2026-{month}-01T00:00:00Z") for month in ("03", "04", "05"))
NOW = parse_rfc3339("2026-06-01T00:00:00Z")
METERS = (("calls", Aggregation.SUM), ("requests", Aggregation.COUNT), ("peak", Aggregation.MAX))
PARTITIONS = 12
SECONDS_MAX = 20
LATE_ONE_IN = 100

# Event n is of customer n % SUBSCRIPTIONS; each name in turn; offsets grow with n, as in a log.
_EVENTS = """
    INSERT INTO usage_events
    SELECT
        'default', concat('cus_', leftPad(toString(CUSTOMER), 7, '0')),
        ['calls', 'requests', 'peak'][intDiv(number, SUBSCRIPTIONS) % 3 + 1], '',
        bitOr(bitShiftLeft(toUInt64(1), 54), bitShiftLeft(toUInt64(number + FIRST), 10)),
        fromUnixTimestamp64Micro(toInt64(START + (number % 2500000) * 1000000)), toDecimal128(number % 100 + 1, 9), map(),
        fromUnixTimestamp64Micro(toInt64(START)), 1, cityHash64(CUSTOMER) % PARTITIONS, number + FIRST, 0,
        bitNot(bitOr(bitShiftLeft(toUInt64(1), 54), bitShiftLeft(toUInt64(number + FIRST), 10))), 0
    FROM numbers(COUNT)
"""


class EngineCounts:
    """What billing asks of ClickHouse, without Kafka."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def totals(self, needs: Sequence[Need], watermark: Watermark) -> Quantities:
        return quantities(needs, exact_totals(self._client, windows(needs), watermark))

    def with_late_events(self, needs: Sequence[Need], since: Watermark, watermark: Watermark) -> set[str]:
        late = late_windows(self._client, windows(needs), since, watermark)
        return {need.invoice_id for need in needs if any(need.window(meter) in late for meter in need.meters)}


def catalog(subscriptions: int) -> CatalogView:
    """One product of three prices, and so many customers with a subscription to it."""
    view = CatalogView()

    def put(state: Any) -> None:
        assert view.apply(CatalogRecord(state, 0, 0)) is None

    common: dict[str, Any] = {"organization_id": DEFAULT_ORGANIZATION, "created_at": 0}
    put(Organization(id=DEFAULT_ORGANIZATION, **common))
    for name, aggregation in METERS:
        put(Meter(id=f"mtr_{name}", name=name, event_name=name, unit="units", aggregation=aggregation, **common))
    tiers = [{"up_to": "100", "unit_amount": "0.02"}, {"up_to": None, "unit_amount": "0.01"}]
    prices = [
        {"model": "graduated", "meter_id": "mtr_calls", "tiers": tiers},
        {"model": "per_unit", "meter_id": "mtr_requests", "unit_amount": "0.001", "included_units": "2"},
        {"model": "volume", "meter_id": "mtr_peak", "tiers": tiers},
        {"model": "flat_fee", "amount": "9.00"},
    ]
    put(Product.model_validate({"id": "prod", "name": "p", "currency": "eur", "prices": prices, **common}))
    for number in range(subscriptions):
        customer_id = f"cus_{number:07}"
        put(Customer(id=customer_id, name=customer_id, **common))
        put(
            Subscription(
                id=f"sub_{number:07}", customer_id=customer_id, product_id="prod", started_at=MARCH,
                billing_interval="month", collection_method="charge_automatically", time_zone="UTC", **common,
            )
        )  # fmt: skip
    return view


def store(client: Client, *, first: int, count: int, subscriptions: int, start: int, customer: str) -> None:
    """`count` events from offset `first` on."""
    values = {"CUSTOMER": customer, "SUBSCRIPTIONS": subscriptions, "FIRST": first, "COUNT": count, "START": start}
    query = _EVENTS
    for name, value in {**values, "PARTITIONS": PARTITIONS}.items():
        query = query.replace(name, str(value))
    client.command(query, settings={"max_insert_threads": 1})


def close_month(view: CatalogView, ledger: InvoiceLedger, client: Client, as_of: int, end: int) -> list[InvoiceFixed]:
    """What `close` does between the watermark and the ledger."""
    watermark = Watermark(1, dict.fromkeys(range(PARTITIONS), end))
    due = due_cycles(
        view.all(Subscription), as_of_us=as_of, now_us=NOW, grace_seconds=lambda _: 3600, trues_up=lambda _: True
    ).due
    unfixed = [each for each in due if ledger.get(each.invoice_id) is None]
    return build_snapshots(view, ledger, EngineCounts(client), unfixed, watermark, now_us=NOW, writer="bench")


def rss_mb(pid: int) -> float:
    """Most memory that a process has had, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def run(subscriptions: int = 100_000, events: int = 3_000_000) -> list[Figure]:
    view, ledger = catalog(subscriptions), InvoiceLedger()
    forbear_collecting()  # as the worker does
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (port,) = free_ports(1)
        engine = ClickHouseLocal(directory / "clickhouse", port, directory / "clickhouse.log")
        engine.start()
        try:
            settings = Settings(clickhouse_dsn=engine.dsn("usage"))
            migrate(settings)
            client = connect(settings, read_timeout_seconds=300)
            late = subscriptions // LATE_ONE_IN
            everyone, some = "number % SUBSCRIPTIONS", f"number % {late}"
            shape: dict[str, Any] = {"subscriptions": subscriptions}
            store(client, first=0, count=events, start=MARCH, customer=everyone, **shape)
            ends = [events]
            for month, as_of in (("first month", APRIL), ("second month, 1 % late", MAY)):
                if month.startswith("second"):
                    store(client, first=events, count=events, start=APRIL, customer=everyone, **shape)
                    store(client, first=2 * events, count=late * 3, start=MARCH, customer=some, **shape)
                    ends.append(2 * events + late * 3)
                started = time.perf_counter()
                made = close_month(view, ledger, client, as_of, ends[-1])
                seconds = time.perf_counter() - started
                assert len(made) == subscriptions
                corrected = sum(bool(each.corrections) for each in made)
                assert corrected == (late if month.startswith("second") else 0), corrected
                for each in made:
                    assert ledger.apply(each)
                del made
                own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                note = (
                    f"{subscriptions:,} subscriptions × 3 meters, {ends[-1]:,} events stored, at most {SECONDS_MAX} s; "
                    f"most memory {own:,.0f} MiB of this process, {rss_mb(engine.pid or os.getpid()):,.0f} MiB of the engine"
                )
                rate = subscriptions / seconds
                figures.append(
                    Figure(f"close, {month}: {seconds:.1f} s", rate, "invoices/s", subscriptions / SECONDS_MAX, note)
                )
        finally:
            engine.stop()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--subscriptions", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=3_000_000)
    given = parser.parse_args()
    for figure in run(given.subscriptions, given.events):
        print(figure)
