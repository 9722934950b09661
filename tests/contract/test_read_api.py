"""The read API on the real engine: exact as of its watermark, in the organization's zone, of one organization alone."""

import csv
import io
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import httpx
import pytest
from clickhouse_connect.driver.client import Client

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from dashboard.usage_queries import EventFilter, stored_events, usage_rows
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import create_topics
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.organization import ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.period import Cycle, parse_rfc3339
from schemas.product import FlatFeePrice, GraduatedPrice, PerUnitPrice, Product, Tier
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.watermark import Watermark
from usage_billing.importing.mapping import event_of, mapped
from usage_billing.importing.tables import Dialect, columns_of, rows
from warehouse.client import connect
from warehouse.epochs import register_epoch
from warehouse.migrate import migrate

pytestmark = pytest.mark.anyio
KEY, OTHER_KEY = new_secret(), new_secret()
ZONE = "America/New_York"
DATABASE = "read_api"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def settings(kafka: KafkaBroker, clickhouse: ClickHouseLocal) -> Settings:
    made = Settings(  # pyright: ignore[reportCallIssue]
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        topic_prefix="read-api.",
        event_partitions=2,
        clickhouse_dsn=clickhouse.dsn(DATABASE),
    )
    create_topics(made)
    migrate(made)
    return made


@pytest.fixture(scope="module")
def warehouse(settings: Settings) -> Iterator[Client]:
    with connect(settings) as client:
        yield client


def own(organization: str, id_: str) -> dict[str, Any]:
    return {"id": id_, "organization_id": organization, "created_at": 0}


@pytest.fixture(scope="module")
def store(settings: Settings) -> Iterator[CatalogStore]:
    with CatalogStore(settings) as opened:
        for name, secret in (("default", KEY), ("other", OTHER_KEY)):
            opened.write(Organization(**own(name, name), time_zone=ZONE), 0)
            digest = secret_digest(secret)
            opened.write(ApiKey(**own(name, f"key_{name}"), scopes=(Scope.READ,), sha256=digest, hint="0000"), 0)
        for meter, event, aggregation in (
            ("mtr_flights", "flight", "count"), ("mtr_miles", "flight", "sum"), ("mtr_delay", "delay", "max"),
        ):  # fmt: skip
            opened.write(
                Meter(
                    **own("default", meter),
                    name=meter[4:],
                    event_name=event,
                    unit="u",
                    aggregation=Aggregation(aggregation),
                ),
                0,
            )
        opened.write(
            Meter(**own("other", "mtr_theirs"), name="t", event_name="flight", unit="u", aggregation=Aggregation.COUNT),
            0,
        )
        opened.write(Customer(**own("default", "UA"), name="United"), 0)
        tiers = (
            Tier(up_to=Decimal(10000), unit_amount=Decimal("0.002")),
            Tier(up_to=Decimal(100000), unit_amount=Decimal("0.001")),
            Tier(up_to=None, unit_amount=Decimal("0.0005")),
        )
        prices = (
            GraduatedPrice(meter_id="mtr_miles", tiers=tiers),
            PerUnitPrice(meter_id="mtr_flights", unit_amount=Decimal("0.5"), included_units=Decimal(1)),
            FlatFeePrice(amount=Decimal("49.00")),
        )
        opened.write(Product(**own("default", "prod_1"), name="P", currency="eur", prices=prices, benefits=("b",)), 0)
        opened.write(
            Subscription(
                **own("default", "sub_1"),
                customer_id="UA",
                product_id="prod_1",
                started_at=parse_rfc3339("2026-01-01T00:00:00-05:00"),
                billing_interval="month",
                collection_method="charge_automatically",
                time_zone=ZONE,
            ),
            0,
        )
        yield opened


# organization, customer, event_name, timestamp, value, identity, properties
EVENTS: list[list[tuple[str, str, str, str, str | None, str, dict[str, str]]]] = [
    [
        ("default", "UA", "flight", "2026-03-01T04:59:59Z", "100",    "c:a", {"from": "EWR"}),  # 28 February in New York
        ("default", "UA", "flight", "2026-03-01T05:00:00Z", "149900", "c:b", {"from": "EWR"}),
        ("default", "UA", "flight", "2026-03-02T12:00:00Z", "0.1",    "c:c", {"from": "JFK"}),
        ("default", "UA", "delay",  "2026-03-02T12:00:00Z", "-5",     "c:d", {}),
    ],
    [
        ("default", "UA", "flight", "2026-03-05T12:00:00Z", "7",      "c:b", {}),  # a duplicate, of another day
        ("default", "UA", "flight", "2026-03-02T13:00:00Z", "1000",   "c:v", {}),  # voided below
        ("default", "UA", "flight", "2026-03-31T12:00:00Z", "99.9",   "",    {}),
        ("default", "UA", "flight", "2026-03-31T12:00:00Z", None,     "",    {}),
        ("default", "=cmd|' /C calc'!A0", "flight", "2026-03-31T12:00:00Z", "1", "", {"note": "@x"}),
        ("other",   "UA", "flight", "2026-03-02T12:00:00Z", "5",      "c:z", {}),
    ],
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def stored(warehouse: Client) -> None:
    epoch = register_epoch(warehouse, "topic-1")
    for offset, events in enumerate(EVENTS):
        columns = list(zip(*events, strict=True))
        warehouse.insert(
            "usage_batches_in",
            [[
                epoch, 0, offset, uuid.uuid4().bytes, datetime(2026, 3, 31, 12, 0, offset, tzinfo=UTC),
                *(list(column) for column in columns[:3]),
                [datetime.fromisoformat(text) for text in columns[3]],
                [None if text is None else Decimal(text) for text in columns[4]],
                list(columns[5]), list(columns[6]),
            ]],
            column_names=[
                "kafka_epoch", "kafka_partition", "kafka_offset", "batch_id", "received_at",
                "organization_id", "customer_id", "event_name", "timestamp", "value", "identity", "properties",
            ],
        )  # fmt: skip
    warehouse.insert(
        "usage_voids_in",
        [[epoch, 0, len(EVENTS), datetime(2026, 3, 31, tzinfo=UTC), ["default"], ["UA"], ["flight"], ["c:v"], ["a test"]]],
        column_names=[
            "kafka_epoch", "kafka_partition", "kafka_offset", "received_at",
            "organization_id", "customer_id", "event_name", "identity", "reason",
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
async def api(settings: Settings, store: CatalogStore) -> AsyncIterator[httpx.AsyncClient]:
    board = Dashboard(settings, store)
    transport = httpx.ASGITransport(board.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://usage/api/v1") as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield client
    board.services.warehouse.close()


MARCH = {"from": "2026-03-01T00:00:00-05:00", "to": "2026-04-01T00:00:00-04:00"}
AS_OF = {"epoch": 1, "offsets": {"0": 3, "1": 0}}


@pytest.mark.parametrize(
    ("meter", "quantity"),
    [("mtr_flights", "4"), ("mtr_miles", "150000"), ("mtr_delay", "-5")],
)
async def test_usage_is_exact_and_counts_each_event_once(api: httpx.AsyncClient, meter: str, quantity: str) -> None:
    answer = (await api.get("/usage", params={**MARCH, "customer_id": "UA", "meter_id": meter})).json()
    (row,) = answer["data"]
    assert row == {
        "quantity": quantity,
        "customer_id": "UA",
        "meter_id": meter,
        "from": "2026-03-01T05:00:00Z",
        "to": "2026-04-01T04:00:00Z",
        "group": None,
    }
    assert answer["as_of"] == AS_OF


def test_a_search_for_an_id_reads_only_where_it_may_be(warehouse: Client) -> None:
    asked: list[tuple[str, Any]] = []

    def query(text: str, parameters: Any) -> Mock:
        asked.append((text, parameters))
        return Mock(result_rows=[])

    wanted = EventFilter(Cycle(0, parse_rfc3339("2027-01-01T00:00:00Z")), event_id="a")
    stored_events(cast(Client, Mock(query=query)), "default", wanted, 10, None)
    ((text, parameters),) = asked
    plan = "\n".join(row[0] for row in warehouse.query(f"EXPLAIN indexes = 1 {text}", parameters).result_rows)
    assert "identity_bloom" in plan


async def test_duplicates_are_listed_with_their_copies(api: httpx.AsyncClient) -> None:
    answer = await api.get("/usage/duplicates")
    place = {"epoch": 1, "partition": 0}
    (found,) = answer.json()["data"]
    assert found == {
        "customer_id": "UA", "event_name": "flight", "event_id": "b", "idempotency_key": None, "times": 2,
        "conflict": True,
        "copies": [
            {**place, "offset": 0, "index": 1, "value": "149900", "received_at": "2026-03-31T12:00:00Z"},
            {**place, "offset": 1, "index": 0, "value": "7", "received_at": "2026-03-31T12:00:01Z"},
        ],
    }  # fmt: skip
    assert answer.json()["next_cursor"] is None
    for params, count in (({"conflicts": True}, 1), ({"customer_id": "nobody"}, 0)):
        assert len((await api.get("/usage/duplicates", params=params)).json()["data"]) == count, params
    theirs = await api.get("/usage/duplicates", headers={"Authorization": f"Bearer {OTHER_KEY}"})
    assert theirs.json()["data"] == []
    for cursor in ("x", "W10=", "WzEsOSwwLDBd", "Wy0xLDAsMCwwXQ==", "WzEsMCw5OTk5OTk5OTk5OTk5OTk5OTk5OTk5LDBd"):
        refused = await api.get("/usage/duplicates", params={"cursor": cursor})
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "invalid_cursor"), cursor


async def test_usage_is_grouped_by_a_property(api: httpx.AsyncClient) -> None:
    params = {"from": "2026-02-01T00:00:00Z", "to": "2026-05-01T00:00:00Z", "meter_id": "mtr_miles", "group_by": "from"}
    answer = (await api.get("/usage", params={**params, "customer_id": "UA"})).json()
    assert {(row["group"], row["quantity"]) for row in answer["data"]} == {
        ("EWR", "150000"), ("JFK", "0.1"), ("", "99.9"),
    }  # fmt: skip
    injected = (await api.get("/usage", params={**params, "group_by": "from'] OR 1=1 --"})).json()
    assert {row["group"] for row in injected["data"]} == {""}


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        ("month", [("2026-02-01T05:00:00Z", "2026-03-01T05:00:00Z", "1"), ("2026-03-01T05:00:00Z", "2026-04-01T04:00:00Z", "4")]),
        ("day",   [("2026-02-28T05:00:00Z", "2026-03-01T05:00:00Z", "1"), ("2026-03-01T05:00:00Z", "2026-03-02T05:00:00Z", "1"),
                   ("2026-03-02T05:00:00Z", "2026-03-03T05:00:00Z", "1"), ("2026-03-31T04:00:00Z", "2026-04-01T04:00:00Z", "2")]),
        ("hour",  [("2026-03-01T04:00:00Z", "2026-03-01T05:00:00Z", "1"), ("2026-03-01T05:00:00Z", "2026-03-01T06:00:00Z", "1"),
                   ("2026-03-02T12:00:00Z", "2026-03-02T13:00:00Z", "1"), ("2026-03-31T12:00:00Z", "2026-03-31T13:00:00Z", "2")]),
    ],
)  # fmt: skip
async def test_windows_are_the_organizations(
    api: httpx.AsyncClient, window: str, rows: list[tuple[str, str, str]]
) -> None:
    params = {
        "from": "2026-01-01T00:00:00Z",
        "to": "2027-01-01T00:00:00Z",
        "customer_id": "UA",
        "meter_id": "mtr_flights",
    }
    answer = (await api.get("/usage", params={**params, "window": window})).json()
    assert [(row["from"], row["to"], row["quantity"]) for row in answer["data"]] == rows


@pytest.mark.parametrize(
    ("zone", "midnight"),
    [("America/New_York", 5), ("America/Los_Angeles", 8), ("Atlantic/Azores", 1), ("Pacific/Honolulu", 10)],
)
async def test_the_first_instant_of_1970_lies_in_december_west_of_greenwich(
    warehouse: Client, unique: str, zone: str, midnight: int
) -> None:
    """ClickHouse's Date begins with 1970-01-01: the month before it has no start there."""
    _store(warehouse, 100, unique, "1970-01-01T00:00:00Z", "1970-01-15T00:00:00Z")
    meter = Meter(**own(unique, "m"), name="m", event_name="calls", unit="u", aggregation=Aggregation.COUNT)
    new_year, first_of_february = midnight * 3_600_000_000, (31 * 24 + midnight) * 3_600_000_000

    def rows(period: Cycle) -> list[tuple[int, int, str]]:
        found = usage_rows(warehouse, unique, [meter], period, watermark=None, window="month", zone=zone)
        return [(row.period.start_us, row.period.end_us, str(row.quantity)) for row in found]

    assert rows(Cycle(0, first_of_february)) == [(0, new_year, "1"), (new_year, first_of_february, "1")]
    december = parse_rfc3339("1969-12-01T12:00:00Z")
    assert rows(Cycle(december, new_year)) == [(december, new_year, "1")]


def _store(warehouse: Client, offset: int, organization: str, *timestamps: str) -> None:
    count = len(timestamps)
    warehouse.insert(
        "usage_batches_in",
        [[
            99, 1, offset, uuid.uuid4().bytes, datetime(2026, 3, 31, tzinfo=UTC), [organization] * count, ["c"] * count,
            ["calls"] * count, [datetime.fromisoformat(text) for text in timestamps], [None] * count,
            [f"c:{text}" for text in timestamps], [{}] * count,
        ]],
        column_names=[
            "kafka_epoch", "kafka_partition", "kafka_offset", "batch_id", "received_at",
            "organization_id", "customer_id", "event_name", "timestamp", "value", "identity", "properties",
        ],
    )  # fmt: skip


async def test_no_usage_is_zero_where_one_number_is_asked_for(api: httpx.AsyncClient) -> None:
    answer = (await api.get("/usage", params={"customer_id": "UA", "meter_id": "mtr_flights"})).json()
    assert [row["quantity"] for row in answer["data"]] == ["0"]
    assert (await api.get("/usage", params={"customer_id": "UA"})).json()["data"] == []


async def test_events_have_their_coordinates_and_come_in_pages(api: httpx.AsyncClient) -> None:
    seen: list[dict[str, Any]] = []
    params: dict[str, Any] = {**MARCH, "customer_id": "UA", "limit": 2}
    while True:
        page = (await api.get("/usage/events", params=params)).json()
        seen += page["data"]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    places = [(event["timestamp"], event["offset"], event["index"]) for event in seen]
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == 5
    first = next(event for event in seen if event["event_id"] == "b")
    assert (first["value"], first["offset"], first["index"], first["epoch"]) == ("149900", 0, 1, 1)
    (found,) = (await api.get("/usage/events", params={"event_id": "c"})).json()["data"]
    assert (found["value"], found["properties"]) == ("0.1", {"from": "JFK"})


async def test_an_export_holds_every_event_and_no_formula(api: httpx.AsyncClient) -> None:
    answer = await api.get("/usage/export", params=MARCH)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert len(rows) == 6
    values = [Decimal(row["value"]) for row in rows if row["event_name"] == "flight" and row["value"]]
    assert sum(values) == Decimal(150001)
    assert {row["customer_id"] for row in rows} == {"UA", "'=cmd|' /C calc'!A0"}
    assert {row["value"] for row in rows if row["event_name"] == "delay"} == {"-5"}


async def test_json_lines_and_parquet_say_what_the_csv_does(api: httpx.AsyncClient, tmp_path: Path) -> None:
    """Text is as it is there, values are exact, and both go in again."""
    texts = list(csv.DictReader(io.StringIO((await api.get("/usage/export", params=MARCH)).text, newline="")))
    lines = await api.get("/usage/export", params={**MARCH, "format": "jsonl"})
    assert lines.headers["Content-Type"] == "application/jsonl"
    parquet = await api.get("/usage/export", params={**MARCH, "format": "parquet"})
    assert parquet.headers["Content-Disposition"] == 'attachment; filename="usage.parquet"'
    events: dict[str, list[dict[str, Any]]] = {}
    for name, answer in (("usage.jsonl", lines), ("usage.parquet", parquet)):
        path = tmp_path / name
        path.write_bytes(answer.content)
        kind, dialect = path.suffix, Dialect()
        mapping = mapped(columns_of(path, kind, dialect), renames={}, constants={})
        events[name] = [event_of(row, mapping) for row in rows(path, kind, dialect)]

    def by_place(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted(
            (e["customer_id"], e["event_name"], parse_rfc3339(e["timestamp"]), e.get("event_id") or "",
             str(Decimal(e["value"]).normalize()) if e.get("value") else "", str(sorted(e.get("properties", {}).items())))
            for e in found
        )  # fmt: skip

    assert by_place(events["usage.jsonl"]) == by_place(events["usage.parquet"])
    of_csv = [
        {**row, "customer_id": row["customer_id"].removeprefix("'"),
         "properties": json.loads(row["properties"] or "{}")}
        for row in texts
    ]  # fmt: skip
    assert by_place(of_csv) == by_place(events["usage.jsonl"])
    assert (await api.get("/usage/export", params={**MARCH, "format": "xlsx"})).status_code == 422


async def test_a_process_without_a_ledger_previews_nothing(api: httpx.AsyncClient) -> None:
    answer = await api.get("/invoices/preview", params={"customer_id": "UA"})
    assert (answer.status_code, answer.json()["title"]) == (503, "Service Unavailable")
    assert (await api.get("/invoices/preview", params={"customer_id": "nobody"})).status_code == 404


@pytest.fixture(scope="module")
def invoices(warehouse: Client) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    for month, state in ((1, "paid"), (2, "payment_failed"), (3, "paid")):
        start, end = datetime(2026, month, 1, 5, tzinfo=UTC), datetime(2026, month + 1, 1, 5, tzinfo=UTC)
        document = {
            "id": f"inv_{month}", "organization_id": "default", "customer_id": "UA", "subscription_id": "sub_1",
            "cycle": {"start": start.isoformat().replace("+00:00", "Z"), "end": end.isoformat().replace("+00:00", "Z")},
            "currency": "eur", "lines": [], "total": "1.00", "state": state, "hash": "h",
        }  # fmt: skip
        made.append(document)
        rows.append(
            ["default", f"inv_{month}", "UA", "sub_1", start, end, state, "eur", Decimal(1), 1, json.dumps(document)]
        )
    warehouse.insert(
        "stored_invoices", rows,
        column_names=["organization_id", "id", "customer_id", "subscription_id", "cycle_start", "cycle_end", "state",
                      "currency", "total", "version", "document"],
    )  # fmt: skip
    warehouse.insert(
        "stored_orders",
        [["default", f"ord_{m}", f"inv_{m}", "UA", "sub_1", "eur", Decimal(1), datetime(2026, m + 1, 2, tzinfo=UTC)] for m in (1, 3)],
        column_names=["organization_id", "id", "invoice_id", "customer_id", "subscription_id", "currency", "amount_paid", "paid_at"],
    )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("params", "ids"),
    [
        ({},                                  ["inv_3", "inv_2", "inv_1"]),
        ({"customer_id": "UA"},               ["inv_3", "inv_2", "inv_1"]),
        ({"customer_id": "other"},            []),
        ({"state": "paid"},                   ["inv_3", "inv_1"]),
        ({"cycle": "2026-02-01T05:00:00Z"},   ["inv_2"]),
        ({"cycle": "2026-02-14T00:00:00Z"},   ["inv_2"]),
        ({"subscription_id": "sub_1", "state": "void"}, []),
    ],
)  # fmt: skip
async def test_invoices_are_found(
    api: httpx.AsyncClient, invoices: list[Any], params: dict[str, str], ids: list[str]
) -> None:
    answer = (await api.get("/invoices", params=params)).json()
    assert [invoice["id"] for invoice in answer["data"]] == ids


async def test_invoices_and_orders_come_in_pages(api: httpx.AsyncClient, invoices: list[dict[str, Any]]) -> None:
    for path, expected in (("/invoices", ["inv_3", "inv_2", "inv_1"]), ("/orders", ["ord_3", "ord_1"])):
        seen: list[str] = []
        params: dict[str, Any] = {"limit": 1}
        while True:
            page = (await api.get(path, params=params)).json()
            seen += [each["id"] for each in page["data"]]
            if page["next_cursor"] is None:
                break
            params["cursor"] = page["next_cursor"]
        assert seen == expected
    assert (await api.get("/invoices/inv_2")).json() == invoices[1]


# path, parameters, field, code
REFUSALS: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("/usage",            {"from": "2026-03-01"},                              "from",        "timestamp_invalid"),
    ("/usage",            {"from": "2026-03-01T00:00:00"},                     "from",        "timestamp_missing_offset"),
    ("/usage",            {**MARCH, "to": MARCH["from"]},                      "to",          "period_empty"),
    ("/usage",            {"meter_id": "mtr_theirs"},                          "meter_id",    "unknown_reference"),
    ("/usage",            {"window": "week"},                                  "window",      "literal_error"),
    ("/usage",            {"from": "1970-01-01T00:00:00Z", "window": "hour"},  "window",      "too_many_windows"),
    ("/usage/events",     {"cursor": "x"},                                     "cursor",      "invalid_cursor"),
    ("/usage/events",     {"limit": 501},                                      "limit",       "less_than_equal"),
    ("/usage/export",     {"meter_id": "mtr_theirs"},                          "meter_id",    "unknown_reference"),
    ("/usage/live",       {"from": "x"},                                       "from",        "timestamp_invalid"),
    ("/invoices",         {"state": "happy"},                                  "state",       "literal_error"),
    ("/invoices",         {"cycle": "March"},                                  "cycle",       "timestamp_invalid"),
    ("/usage/events",     {"cursor": "WzFlOTk5LDEsMSwxLDFd"},                  "cursor",      "invalid_cursor"),
    ("/usage/events",     {"cursor": "WzFlMzAsMSwxLDEsMV0="},                  "cursor",      "invalid_cursor"),
    ("/orders",           {"cursor": "WzEsIlx1ZDgwMCJd"},                      "cursor",      "invalid_cursor"),
    ("/invoices",         {"cursor": "W10="},                                  "cursor",      "invalid_cursor"),
    ("/invoices/preview", {},                                                  "customer_id", "missing"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "params", "field", "code"), REFUSALS)
async def test_a_refusal_names_the_parameter(
    api: httpx.AsyncClient, path: str, params: dict[str, Any], field: str | None, code: str
) -> None:
    answer = await api.get(path, params=params)
    assert answer.status_code == 422
    assert (field, code) in {(error["field"], error["code"]) for error in answer.json()["errors"]}


async def test_nothing_of_another_organization_is_read(api: httpx.AsyncClient, invoices: list[Any]) -> None:
    theirs = {"Authorization": f"Bearer {OTHER_KEY}"}
    usage = (await api.get("/usage", params=MARCH, headers=theirs)).json()["data"]
    assert [(row["customer_id"], row["meter_id"], row["quantity"]) for row in usage] == [("UA", "mtr_theirs", "1")]
    events = (await api.get("/usage/events", params=MARCH, headers=theirs)).json()["data"]
    assert [event["event_id"] for event in events] == ["z"]
    export = (await api.get("/usage/export", params=MARCH, headers=theirs)).text
    assert len(export.splitlines()) == 2
    for path in ("/invoices", "/orders", "/alerts"):
        assert (await api.get(path, headers=theirs)).json()["data"] == []
    for path in ("/invoices/inv_1", "/invoices/preview?customer_id=UA"):
        assert (await api.get(path, headers=theirs)).status_code == 404


async def test_the_audit_puts_every_event_into_a_class(
    api: httpx.AsyncClient, settings: Settings, warehouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No sink commits here: the watermark is as far as the rows go.
    monkeypatch.setattr("dashboard.read.audit.settled", lambda *_: ("topic-1", Watermark(1, {0: 3, 1: 0})))
    monkeypatch.setattr("dashboard.read.audit.projection_faults", lambda *_: ())
    warehouse.insert("stored_meters", [["default", "mtr_miles", "flight"]], ["organization_id", "id", "event_name"])
    warehouse.insert("stored_customers", [["default", "UA"]], ["organization_id", "id"])
    answer = (await api.get("/audit")).json()
    assert answer["as_of"] == AS_OF
    assert (answer["balances"], answer["accepted"]["events"], answer["faults"]) == (True, 9, [])
    counted = {kind: each["events"] for kind, each in answer["classes"].items() if each["events"]}
    assert counted == {"duplicate": 1, "voided": 1, "unmatched": 2, "unpriced": 5}
    assert answer["classes"]["voided"]["value"].startswith("1000")
    (conflict,) = answer["conflicts_at"]
    assert conflict["last"] == {"epoch": 1, "partition": 0, "offset": 1, "index": 0}
    theirs = (await api.get("/audit", headers={"Authorization": f"Bearer {OTHER_KEY}"})).json()
    assert (theirs["accepted"]["events"], theirs["classes"]["unmatched"]["value"][:1]) == (1, "5")


async def test_without_clickhouse_reading_is_503_and_says_so(settings: Settings, store: CatalogStore) -> None:
    broken = settings.model_copy(update={"clickhouse_dsn": "http://default@127.0.0.1:9/none"})
    transport = httpx.ASGITransport(Dashboard(broken, store).app)
    async with httpx.AsyncClient(transport=transport, base_url="http://usage/api/v1") as client:
        for path in ("/usage", "/usage/events", "/usage/export", "/invoices", "/orders"):
            answer = await client.get(path, headers={"Authorization": f"Bearer {KEY}"})
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), path
            assert answer.headers["Retry-After"] == "1"
