"""Audit: events/s that are put into classes, of stored rows, by the engine alone.

`python -m tests.benchmarks.bench_audit [--events N]`: 9,600 customers, 12 partitions, 96,000 invoices. The
clock runs over the whole audit, staging included.
"""

import argparse
import tempfile
from pathlib import Path

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.process import free_ports
from schemas.settings import Settings
from schemas.watermark import Watermark
from tests.benchmarks.figures import Figure
from warehouse.audit import audit
from warehouse.client import Client, connect
from warehouse.migrate import migrate

_PARTITIONS = 12
_CUSTOMERS = 800 * _PARTITIONS
_EVENTS_PER_MESSAGE = 1000
_START = 1_767_225_600  # 2026-01-01
_FILL = """
    INSERT INTO usage_batches_in
    SELECT
        1, {partition:UInt16}, number, 'g', 'b', fromUnixTimestamp64Micro(toInt64({start:Int64} * 1000000), 'UTC'),
        arrayMap(i -> 'default', range({events:UInt32})),
        arrayMap(
            i -> concat('cus_', toString({partition:UInt16} * 800 + (number * 7919 + i * 31) % 800)),
            range({events:UInt32})),
        arrayMap(i -> 'calls', range({events:UInt32})),
        arrayMap(
            i -> fromUnixTimestamp64Micro(toInt64(({start:Int64} + (number * 1009 + i * 257) % 31536000) * 1000000), 'UTC'),
            range({events:UInt32})),
        arrayMap(i -> toNullable(toDecimal128(i, 9)), range({events:UInt32})),
        arrayMap(i -> concat('c:', toString(number * 1000 + i)), range({events:UInt32})),
        [], 'g', cityHash64({partition:UInt16}, number)
    FROM numbers({messages:UInt64})
"""
_INVOICES = """
    INSERT INTO stored_invoices
        (organization_id, id, customer_id, subscription_id, cycle_start, cycle_end, active_until, state, event_names, watermark, version)
    SELECT
        'default', concat('inv_', id, toString(number)), id, concat('sub_', id),
        addMonths(fromUnixTimestamp64Micro(toInt64({start:Int64} * 1000000), 'UTC'), number) AS began,
        addMonths(began, 1), addMonths(began, 1), 'paid', ['calls'], {watermark:String}, 1
    FROM numbers(10) AS months CROSS JOIN (SELECT id FROM stored_customers) AS customers
"""


def fill(client: Client, events: int) -> Watermark:
    """Events of a year, invoices of ten months; the watermark above all of them."""
    messages = events // _EVENTS_PER_MESSAGE // _PARTITIONS
    common = {"start": _START, "events": _EVENTS_PER_MESSAGE, "messages": messages}
    for partition in range(_PARTITIONS):
        client.command(_FILL, parameters={**common, "partition": partition})
    ids = [f"cus_{number}" for number in range(_CUSTOMERS)]
    client.insert("stored_customers", [["default", id_, 1] for id_ in ids], ["organization_id", "id", "version"])
    client.insert("stored_meters", [["default", "mtr", "calls", 1]], ["organization_id", "id", "event_name", "version"])
    client.insert(
        "stored_products", [["default", "prod", ["mtr"], 1]], ["organization_id", "id", "meter_ids", "version"]
    )
    document = (
        '{{"id":"sub_{0}","organization_id":"default","customer_id":"{0}","product_id":"prod","started_at":{1},'
        '"billing_interval":"month","time_zone":"UTC","created_at":0,"collection_method":"charge_automatically"}}'
    )
    rows = [["default", f"sub_{id_}", id_, document.format(id_, _START * 10**6), 1] for id_ in ids]
    client.insert("stored_subscriptions", rows, ["organization_id", "id", "customer_id", "document", "version"])
    end = Watermark(1, dict.fromkeys(range(_PARTITIONS), messages))
    offsets = ",".join(f'"{partition}":{messages}' for partition in end.offsets)
    client.command(_INVOICES, parameters={"start": _START, "watermark": f'{{"epoch":1,"offsets":{{{offsets}}}}}'})
    return end


def run(events: int = 5_000_000) -> list[Figure]:
    with tempfile.TemporaryDirectory() as temporary:
        engine = ClickHouseLocal(Path(temporary) / "data", free_ports(1)[0], Path(temporary) / "clickhouse.log")
        engine.start()
        try:
            settings = Settings(clickhouse_dsn=engine.dsn("usage"))
            migrate(settings)
            with connect(settings, read_timeout_seconds=600) as client:
                watermark = fill(client, events)
                found = audit(client, watermark, _PARTITIONS)
        finally:
            engine.stop()
    assert found.ok, found.faults[:3]
    (one,) = found.organizations
    rate = one.accepted.events / found.seconds
    print({kind.label: tally.events for kind, tally in one.classes.items()}, f"{found.seconds:.1f} s")
    note = f"{one.accepted.events:,} events, {_CUSTOMERS * 10:,} invoices, {found.seconds:.1f} s"
    return [Figure("audit, every event into its class", rate, "events/s", 200_000, note)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=5_000_000)
    for figure in run(parser.parse_args().events):
        print(figure)
