"""docs/analysts.md: its queries run as an analyst, its columns are those that there are, its grants are enough."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.clickhouse_users import USERS_DIRECTORY, write_analyst
from deploy.local.process import HOST, free_ports
from schemas.settings import Settings
from schemas.watermark import Watermark
from stream_processors.avro_splice import by_schema, container, read_head
from stream_processors.inserts import DOORS, INSERT_SETTINGS
from tests.history import Sent, Void, Written, encoded
from warehouse.analysts import PUBLIC_VIEWS, Analyst
from warehouse.audit import audit
from warehouse.client import Client, connect
from warehouse.coverage import checkpoint, coverage, recounted_coverage
from warehouse.epochs import register_epoch
from warehouse.migrate import migrate, migrations
from warehouse.one_store import one_store
from warehouse.table_ends import first_stops
from warehouse.totals import TotalsRequest, exact_totals, independent_totals

PAGE = (Path(__file__).parents[2] / "docs" / "analysts.md").read_text()
QUERIES = re.findall(
    r"^([^\n]+:)\n\n```sql\n(.*?)```", PAGE.partition("## Twelve queries")[2].partition("\n## ")[0], re.M | re.S
)
GRANTS = re.findall(r"^(GRANT .*);$", PAGE.partition("## The services' own user")[2].partition("\n## ")[0], re.M)
DATABASE, PASSWORD, OWN = "usage", "correct-horse", "acme"
DIGEST = hashlib.sha256(PASSWORD.encode()).hexdigest()

# What a merchant has: usage of this month and the last of two customers, one of whom has gone, and what was billed.
ROWS = (
    """
    INSERT INTO usage_events (organization_id, customer_id, event_name, identity, timestamp, value, properties, received_at,
        kafka_epoch, kafka_offset, version)
    SELECT 'acme', ['cus_1', 'cus_1', 'cus_2', 'cus_unknown'][number % 4 + 1], if(number % 9 = 8, 'misspelled', 'calls'),
        concat('c:', toString(number)),
        now64(6) - toIntervalDay(if(number % 4 = 2, 20 + number % 10, number % 40)), 5, map('region', ['eu', 'us'][number % 2 + 1]),
        now64(6), 1, number, number
    FROM numbers(400)
    """,
    "INSERT INTO stored_meters (organization_id, id, name, event_name, aggregation) VALUES ('acme', 'm1', 'Calls', 'calls', 'sum')",
    "INSERT INTO stored_customers (organization_id, id, name) VALUES ('acme', 'cus_1', 'One'), ('acme', 'cus_2', 'Two')",
    """
    INSERT INTO stored_invoices (organization_id, id, customer_id, number, state, currency, total, amount_due, issued_at, booked_month)
    VALUES ('acme', 'i1', 'cus_1', 'A-1', 'open', 'eur', 3.50, 3.50, now64(6) - toIntervalDay(3), toStartOfMonth(now()))
    """,
    """
    INSERT INTO stored_invoice_lines (organization_id, customer_id, invoice_id, line, meter_id, meter_name, currency, amount)
    VALUES ('acme', 'cus_1', 'i1', 0, 'm1', 'Calls', 'eur', 1.25), ('acme', 'cus_1', 'i1', 1, '', '', 'eur', 2.25)
    """,
)  # fmt: skip


def service_user_xml(grants: list[str]) -> str:
    """A user beside the local server's own, with these rights alone."""
    root = ET.Element("clickhouse")
    user = ET.SubElement(ET.SubElement(root, "users"), "billing")
    ET.SubElement(user, "password_sha256_hex").text = DIGEST
    ET.SubElement(ET.SubElement(user, "networks"), "ip").text = HOST
    ET.SubElement(user, "profile").text = "default"
    ET.SubElement(user, "quota").text = "default"
    of_user = ET.SubElement(user, "grants")
    for grant in grants:
        ET.SubElement(of_user, "query").text = grant.replace("usage.*", "billing.*")
    return ET.tostring(root, encoding="unicode")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseLocal]:
    directory = tmp_path_factory.mktemp("page")
    engine = ClickHouseLocal(directory / "data", free_ports(1)[0], directory / "clickhouse.log")
    engine.data_dir.mkdir()
    write_analyst(engine.data_dir, Analyst("anna", OWN), DATABASE, DIGEST)
    (engine.data_dir / USERS_DIRECTORY / "billing.xml").write_text(service_user_xml(GRANTS))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def client(engine: ClickHouseLocal) -> Iterator[Client]:
    settings = Settings(clickhouse_dsn=engine.dsn(DATABASE))
    migrate(settings)
    with connect(settings) as client:
        for statement in ROWS:
            client.command(statement)
        yield client


def test_there_are_twelve() -> None:
    assert len(QUERIES) == 12


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_query_of_the_page_answers(engine: ClickHouseLocal, client: Client, title: str, query: str) -> None:
    del client
    answer = httpx.post(
        engine.url, params={"database": DATABASE}, content=f"{query} FORMAT JSONCompact", auth=("anna", PASSWORD),
        timeout=60, trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    rows = answer.json()["data"]
    assert rows, title
    if title.startswith("Usage of each customer"):
        assert {row[1] for row in rows} == {"Calls"}
    if title.startswith("Customers without"):
        assert [row[0] for row in rows] == ["cus_2"]
    if title.startswith("Invoices whose lines"):
        assert rows == [["A-1", 3.5, 3.5, True]] or rows == [["A-1", 3.5, 3.5, 1]]
    if title.startswith("What is owed"):
        assert [(row[1], row[2], row[4]) for row in rows] == [("A-1", 3.5, 3)]


def test_the_page_lists_every_column(client: Client) -> None:
    listed: dict[str, list[tuple[str, str]]] = {}
    columns = PAGE.partition("\n## Columns")[2]
    for view, table in re.findall(r"^### `(\w+)`\n\n[^\n]*\n\n((?:\|[^\n]*\n)+)", columns, re.M):
        listed[view] = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", table, re.M)
    found = {
        view: [(str(row[0]), str(row[1])) for row in client.query(f"DESCRIBE TABLE {view}").result_rows]
        for view in PUBLIC_VIEWS
    }
    assert listed == found


def test_the_grants_of_the_page_are_enough(engine: ClickHouseLocal) -> None:
    """For a database that is not there yet, with tombstones and repeats, up to the audit."""
    assert len(GRANTS) == 3
    dsn = f"http://billing:{PASSWORD}@{HOST}:{engine.port}/billing"
    assert len(migrate(Settings(clickhouse_dsn=dsn))) == len(migrations())
    assert migrate(Settings(clickhouse_dsn=dsn)) == []
    events = tuple(Sent("acme", "a", "calls", f"c:{n % 4}", 1_700_000_000_000_000 + n, 10**9) for n in range(5))
    written = [Written(events, batch=1), Written((Void("acme", "a", "calls", "c:1"),), batch=2)]
    with connect(Settings(clickhouse_dsn=dsn)) as client:
        epoch = register_epoch(client, "topic")
        heads = [read_head(epoch, 0, offset, encoded(message), None) for offset, message in enumerate(written)]
        for schema_id, some in by_schema(heads).items():
            body = b"".join(container(some, b"0" * 16))
            client.raw_insert(DOORS[schema_id], insert_block=body, fmt="Avro", settings=INSERT_SETTINGS)
        with one_store(client) as mark:
            assert checkpoint(client, epoch, 1, mark).offsets == {0: 2}
        assert coverage(client, epoch, 1).offsets == recounted_coverage(client, epoch, 1).offsets == {0: 2}
        assert first_stops(client, {0: [(0, epoch)]}) == {}
        wanted = TotalsRequest("acme", "a", "calls", 0, 2_000_000_000_000_000)
        below = Watermark(epoch, {0: 2})
        assert exact_totals(client, [wanted], below)[wanted].count == 3
        assert independent_totals(client, [wanted], below)[wanted].count == 3
        client.command("DELETE FROM coverage_checkpoints WHERE next_offset > 100")
        client.command("DELETE FROM projection_failures WHERE found_at < now64(6)")
        client.command("DELETE FROM stored_accruals WHERE organization_id = 'acme'")
        assert audit(client, below, 1).ok
