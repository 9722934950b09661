"""An analyst of one organization, on the local server through its ports: own rows, within limits, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clickhouse_connect
import httpx
import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.clickhouse_users import write_analyst
from deploy.local.process import free_ports
from schemas.settings import Settings
from stream_processors.avro_splice import by_schema, container, read_head
from stream_processors.inserts import DOORS, INSERT_SETTINGS
from tests.history import Sent, Void, Written, encoded
from tests.waiting import until
from warehouse.analysts import LIMITS, OPERATORS_TABLES, PUBLIC_VIEWS, Analyst, readable
from warehouse.client import Client, connect
from warehouse.migrate import migrate

ACCESS_DENIED, READONLY, OUT_OF_RANGE, TOO_MANY, TOO_MUCH_MEMORY, TIMED_OUT, TOO_SLOW = (
    "497", "164", "452", "202", "241", "159", "160",
)  # fmt: skip
DATABASE = "usage"
PASSWORD = "correct-horse"
# Names are numbers here, so that a conversion fails on no row of its own: an error would quote another's.
OWN, OTHER = "7", "secret-organization"
# As a stored organization's id may be.
QUOTED = "o'brien \\ & <sons>"


def sent(organization: str, customer: str, name: str, identity: str) -> Sent:
    return Sent(organization, customer, name, identity, 1_700_000_000_000_000, 5 * 10**9)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseLocal]:
    """With analysts who were made while it did not run: of one organization, of all, and of one with an odd id."""
    directory = tmp_path_factory.mktemp("analysts")
    engine = ClickHouseLocal(directory / "data", free_ports(1)[0], directory / "clickhouse.log")
    engine.data_dir.mkdir()
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    for analyst in (Analyst("anna", OWN), Analyst("olga"), Analyst("brian", QUOTED)):
        write_analyst(engine.data_dir, analyst, DATABASE, digest)
    engine.start()
    migrate(Settings(clickhouse_dsn=engine.dsn(DATABASE)))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def client(engine: ClickHouseLocal) -> Iterator[Client]:
    """The services'. Both organizations have the same number of rows everywhere."""
    with connect(Settings(clickhouse_dsn=engine.dsn(DATABASE))) as client:
        messages = [
            Written(tuple(sent(OWN, str(n), "11", f"c:{n}") for n in range(10)), batch=1),
            Written(tuple(sent(OTHER, f"secret-{n}", "secret_name", f"c:secret-{n}") for n in range(10)), batch=2),
            Written((sent(QUOTED, "1", "11", "c:1"),), batch=3),
            Written((Void(OWN, "1", "11", "c:1"), Void(OTHER, "secret-1", "secret_name", "c:secret-1")), batch=4),
        ]
        heads = [read_head(1, 0, offset, encoded(message), None) for offset, message in enumerate(messages)]
        for schema_id, some in by_schema(heads).items():
            body = b"".join(container(some, b"0" * 16))
            client.raw_insert(DOORS[schema_id], insert_block=body, fmt="Avro", settings=INSERT_SETTINGS)
        client.command(
            "INSERT INTO stored_organizations (id, name, version) VALUES"
            f" ('{OWN}', '12', 1), ('{OTHER}', 'secret-name', 1)"
        )
        tables = {table for tables in PUBLIC_VIEWS.values() for table in tables}
        for table in sorted(tables - {"usage_events", "usage_voids", "stored_organizations"}):
            ours, theirs = (f"'{OWN}', '1'", f"'{OTHER}', 'secret-customer'")
            column = "id" if table in ("stored_customers", "stored_meters", "stored_products") else "customer_id"
            client.command(f"INSERT INTO {table} (organization_id, {column}) VALUES ({ours}), ({theirs})")
        yield client


@pytest.fixture
def http(engine: ClickHouseLocal, client: Client) -> Iterator[httpx.Client]:
    """The analyst of OWN, by plain HTTP."""
    del client
    with theirs(engine, "anna") as http:
        yield http


def theirs(engine: ClickHouseLocal, name: str) -> httpx.Client:
    return httpx.Client(
        base_url=engine.url, timeout=60, trust_env=False, auth=(name, PASSWORD), params={"database": DATABASE}
    )


def told(answer: httpx.Response, statement: str = "") -> bool:
    """Whether the answer says a word of the other organization that was not in the statement."""
    text = answer.text.replace(statement, "") if statement else answer.text
    return "secret-" in text or "secret_name" in text


def refused(answer: httpx.Response, *codes: str) -> bool:
    return answer.status_code >= 400 and answer.headers["x-clickhouse-exception-code"] in codes


# -- what it reads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", sorted(PUBLIC_VIEWS))
def test_a_view_has_its_own_rows_and_no_others(http: httpx.Client, client: Client, view: str) -> None:
    organization = "id" if view == "organizations" else "organization_id"
    answer = http.post("/", content=f"SELECT * FROM {view} FORMAT TSV")
    assert answer.status_code == 200, answer.text
    assert not told(answer)
    whose = http.post("/", content=f"SELECT DISTINCT {organization} FROM {view}").text.split()
    assert set(whose) <= {OWN}
    everyone = {str(row[0]) for row in client.query(f"SELECT DISTINCT {organization} FROM {view}").result_rows}
    # finance_… views join what the rows here do not have.
    assert view.startswith("finance_") or {OWN, OTHER} <= everyone, "the services' user sees less than all"


def test_usage_counts_once_and_without_voids(http: httpx.Client) -> None:
    assert http.post("/", content="SELECT count(), sum(value) FROM usage").text == "9\t45\n"
    assert http.post("/", content="SELECT count() FROM usage_events FINAL").text == "10\n"


def test_the_native_clients_library_works(engine: ClickHouseLocal, client: Client) -> None:
    """It asks for the server's settings first, and must not send any of its own that are fixed."""
    del client
    with clickhouse_connect.get_client(
        dsn=f"http://anna:{PASSWORD}@127.0.0.1:{engine.port}/{DATABASE}", autogenerate_session_id=False
    ) as library:
        assert library.query("SELECT count() FROM usage").result_rows == [(9,)]


def test_an_id_with_quotes_is_its_own(engine: ClickHouseLocal, client: Client) -> None:
    del client
    with theirs(engine, "brian") as http:
        answer = http.post("/", content="SELECT organization_id FROM usage FORMAT JSON")
        assert [row["organization_id"] for row in answer.json()["data"]] == [QUOTED]


def test_an_analyst_of_all_reads_every_organization_and_the_log_s_tables(
    engine: ClickHouseLocal, client: Client
) -> None:
    del client
    with theirs(engine, "olga") as http:
        assert http.post("/", content="SELECT uniqExact(organization_id) FROM usage").text == "3\n"
        for name in OPERATORS_TABLES:
            assert http.post("/", content=f"SELECT count() FROM {name}").status_code == 200
        assert refused(http.post("/", content="SELECT count() FROM schema_migrations"), ACCESS_DENIED)
        assert refused(http.post("/", content="INSERT INTO kafka_epochs (epoch) VALUES (1)"), ACCESS_DENIED)


def test_every_view_of_ours_is_public_or_not_on_purpose(client: Client) -> None:
    found = client.query("SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'")
    assert {row[0] for row in found.result_rows} == {*PUBLIC_VIEWS, "dead_letters"}


def test_tables_that_are_read_belong_to_organizations(client: Client) -> None:
    """Whatever an analyst of one organization reads has a column that its row policy is about."""
    for name in readable(Analyst("anna", OWN)):
        columns = [row[0] for row in client.query(f"DESCRIBE TABLE {name}").result_rows]
        assert ("id" if name.endswith("organizations") else "organization_id") in columns, name


# -- doors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [
    "SELECT * FROM ingest_batches",                                       # messages of several organizations
    "SELECT * FROM usage_accepted",
    "SELECT * FROM dead_letters",
    "SELECT * FROM stored_dead_letters",
    "SELECT * FROM totals_requests",
    "SELECT * FROM audit_windows",
    "SELECT * FROM projection_failures",
    "SELECT * FROM system.processes",                                     # other people's queries
    "SELECT * FROM system.errors",
    "SELECT * FROM system.parts",
    "SELECT * FROM system.users",
    "SELECT * FROM system.row_policies",
    "SELECT * FROM mergeTreeIndex(currentDatabase(), usage_events)",      # keys of all rows
    "SELECT * FROM mergeTreeIndex(currentDatabase(), stored_customers)",
    "SELECT * FROM loop(currentDatabase(), 'usage_events') LIMIT 100",
    "INSERT INTO stored_customers (organization_id, id) VALUES ('7', 'x')",
    "INSERT INTO usage_batches_in (kafka_epoch) VALUES (1)",
    "ALTER TABLE stored_customers DELETE WHERE 1",
    "DELETE FROM stored_customers WHERE 1",
    "TRUNCATE TABLE stored_customers",
    "DROP TABLE stored_customers",
    "DROP VIEW usage",
    "OPTIMIZE TABLE usage_events FINAL",
    "CREATE TABLE mine (a Int8) ENGINE = Memory",
    "CREATE TEMPORARY TABLE mine (a Int8)",
    "CREATE VIEW mine AS SELECT * FROM usage_events",
    "CREATE MATERIALIZED VIEW mine ENGINE = Memory AS SELECT * FROM usage_events",
    "CREATE DATABASE mine",
    "CREATE FUNCTION mine AS x -> x",
    "CREATE USER other NOT IDENTIFIED",
    "ALTER USER anna IDENTIFIED BY 'other'",
    "GRANT SELECT ON *.* TO anna",
    "DROP ROW POLICY IF EXISTS usage_services ON usage_events",
    "CREATE ROW POLICY mine ON usage_events USING 1 TO anna",
    "KILL QUERY WHERE 1",
    "SYSTEM SHUTDOWN",
    "SELECT * FROM url('http://127.0.0.1:1/', LineAsString)",
    "SELECT * FROM s3('http://127.0.0.1:1/bucket/o', LineAsString)",
    "SELECT * FROM remote('127.0.0.1:1', system.one)",
    "SELECT * FROM executable('x.sh', LineAsString, 'a String')",
    "SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "BACKUP DATABASE usage TO File('copy')",
])  # fmt: skip
def test_what_is_not_its_own_is_refused(http: httpx.Client, statement: str) -> None:
    assert refused(http.post("/", content=statement), ACCESS_DENIED), statement


@pytest.mark.parametrize("statement", [
    "SELECT * FROM merge(currentDatabase(), '.*')",
    "SELECT organization_id FROM merge(currentDatabase(), '^stored_customers$')",
    "SELECT * FROM view(SELECT * FROM usage_events)",
    "SELECT ('secret-organization', 'secret-customer') IN (SELECT organization_id, id FROM stored_customers)",
    "SELECT count() FROM usage WHERE organization_id = 'secret-organization' HAVING count() > 0",
    "SELECT max(organization_id), max(customer_id), any(event_name), topK(9)(identity) FROM usage_events",
    "SELECT * FROM usage_events FINAL PREWHERE throwIf(startsWith(customer_id, 'secret'))",
    # An error would quote the row on which the conversion fails.
    "SELECT toInt64(organization_id), toInt64(event_name), toInt64(customer_id) FROM usage",
    "SELECT count() FROM usage WHERE toInt64(organization_id) + toInt64(event_name) + toInt64(customer_id) > 0",
    "SELECT count() FROM usage_events WHERE toInt64(event_name) > 0 OR toInt64(substring(identity, 3)) > 0",
    "SELECT count() FROM usage_events PREWHERE toInt64(customer_id) >= 0",
    "SELECT count() FROM usage_events FINAL PREWHERE toInt64(customer_id) >= 0 AND toInt64(event_name) > 0",
    "SELECT count() FROM customers WHERE toInt64(id) > 0",
    "SELECT count() FROM stored_customers FINAL PREWHERE toInt64(id) > 0",
    "SELECT max(toInt64(name)) FROM organizations WHERE toInt64(id) > 0",
    "SELECT count() FROM stored_organizations PREWHERE toInt64(name) > 0",
    "EXPLAIN indexes = 1 SELECT count() FROM usage WHERE customer_id > '3'",
    "SHOW TABLES",
    "SHOW CREATE TABLE usage",
    "SELECT * FROM system.tables WHERE database = currentDatabase()",
    "SELECT * FROM system.columns WHERE database = currentDatabase()",
    "SELECT * FROM system.completions",
    "SHOW GRANTS",
])  # fmt: skip
def test_no_query_tells_of_another_organization(http: httpx.Client, statement: str) -> None:
    """Refused, or answered without a word of it."""
    answer = http.post("/", content=f"{statement}{'' if statement.startswith(('SHOW', 'EXPLAIN')) else ' FORMAT TSV'}")
    assert not told(answer, statement)
    if not statement.startswith("SELECT * FROM merge("):  # columns of tables that differ
        assert answer.status_code == 200, answer.text


def test_files_are_not_read_by_the_function_either(engine: ClickHouseLocal, http: httpx.Client) -> None:
    """ClickHouse checks it for a server only: the password of the services lies in the engine's directory."""
    secrets = [engine.data_dir / "password", engine.data_dir / "users.xml", Path("/etc/passwd")]
    for path in (*map(str, secrets), "password", "users.xml"):
        for call in (f"file('{path}')", f"file('{path}', 'none')", f"file(materialize('{path}'), NULL)"):
            answer = http.post("/", content=f"SELECT {call}")
            assert answer.status_code >= 400, f"{call}: {answer.text[:40]}"
    for table in ("file('/etc/passwd', LineAsString)", "default.`/etc/passwd`", "`/etc/passwd`"):
        assert http.post("/", content=f"SELECT * FROM {table}").status_code >= 400


def test_its_password_is_wanted(engine: ClickHouseLocal) -> None:
    for user in (("anna", ""), ("anna", "guessed")):
        answer = httpx.post(engine.url, content="SELECT 1", auth=user, trust_env=False)
        assert refused(answer, "516")


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "value"), [
    *((name, 10**12) for name, value in LIMITS.items() if value not in (0, 1) and name not in ("max_execution_time", "priority")),
    *((name, 1 - int(value)) for name, value in LIMITS.items() if value in (0, 1)),
    ("max_memory_usage", 0), ("max_concurrent_queries_for_user", 0), ("priority", 0), ("readonly", 2),
    ("max_untracked_memory", 10**12), ("os_thread_priority", -10), ("use_query_cache", 1), ("log_queries", 0),
    ("timeout_overflow_mode", "break"), ("max_block_size", 10**6), ("max_final_threads", 64), ("workload", "other"),
])  # fmt: skip
def test_no_limit_is_lifted_and_no_setting_changed(http: httpx.Client, setting: str, value: int | str) -> None:
    assert refused(http.post("/", content="SELECT 1", params={setting: value}), READONLY)
    assert refused(http.post("/", content=f"SELECT 1 SETTINGS {setting} = '{value}'"), READONLY)
    assert refused(http.post("/", content=f"SET {setting} = '{value}'"), READONLY)
    if setting in LIMITS:
        in_force = http.post("/", content=f"SELECT toFloat64(getSetting('{setting}'))").text
        assert float(in_force) == float(LIMITS[setting])


def test_a_tool_may_ask_for_less_time_and_not_for_more(http: httpx.Client) -> None:
    assert http.post("/", content="SELECT 1", params={"max_execution_time": 5}).text == "1\n"
    for value in (0, 61, 10**6):
        assert refused(http.post("/", content="SELECT 1", params={"max_execution_time": value}), OUT_OF_RANGE)


def test_memory_has_a_bound(http: httpx.Client) -> None:
    greedy = "SELECT groupArray(number) FROM numbers(1000000000)"
    assert refused(http.post("/", content=greedy), TOO_MUCH_MEMORY)


def test_ingest_goes_on_beside_as_many_queries_as_it_may_have(http: httpx.Client, client: Client) -> None:
    slow = "SELECT sum(cityHash64(number, number)) FROM numbers(1000000000000)"

    def run(_: int) -> httpx.Response:
        """Its own turn, once no question of the test is in the way."""
        while refused(answer := http.post("/", content=slow, params={"max_execution_time": 15}), TOO_MANY):
            pass
        return answer

    def has_its_most() -> bool:
        return refused(http.post("/", content="SELECT 1"), TOO_MANY)

    most = int(LIMITS["max_concurrent_queries_for_user"])
    with ThreadPoolExecutor(most) as pool:
        answers = [pool.submit(run, number) for number in range(most)]
        until(lambda: has_its_most() and has_its_most())
        for number in range(5):
            client.insert("usage_voids", [["other", f"x{number}"]], column_names=["organization_id", "customer_id"])
        stored = client.query("SELECT count() FROM usage_voids WHERE organization_id = 'other'").result_rows
        assert has_its_most(), "the inserts came after the queries"
        assert stored == [(5,)]
        assert all(refused(answer.result(), TIMED_OUT, TOO_SLOW) for answer in answers)
