"""The local engine's HTTP interface answers clients as a ClickHouse server does."""

import gzip
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import clickhouse_connect
import fastavro
import httpx
import lz4.frame
import pytest
import zstandard
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from deploy.local.clickhouse_http import ClickHouseLocal
from tests.waiting import until

ROWS = [[1, "plain", Decimal("0.1"), None], [2, "tab\tquote'\n", Decimal("-3"), "x"], [3, "ä", Decimal("5"), ""]]
COLUMNS = ["a", "s", "d", "n"]


@pytest.fixture
def http(clickhouse: ClickHouseLocal, database: str) -> Iterator[httpx.Client]:
    """Plain HTTP, as with curl; `database` is the test's."""
    params = {"database": database}
    with httpx.Client(base_url=clickhouse.url, params=params, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def table(clickhouse_client: Client) -> str:
    clickhouse_client.command(
        "CREATE TABLE t (a Int64, s String, d Decimal(38, 9), n Nullable(String)) ENGINE = MergeTree ORDER BY a"
    )
    return "t"


def sql(client: httpx.Client, text: str, **params: str | int) -> httpx.Response:
    return client.post("/", content=text, params=params)


# -- clickhouse-connect ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, "gzip", "zstd", "lz4"])
def test_rows_come_back_as_they_went_in(
    clickhouse: ClickHouseLocal, database: str, table: str, compress: bool | str
) -> None:
    client = clickhouse_connect.get_client(dsn=clickhouse.dsn(database), compress=compress)
    summary = client.insert(table, ROWS, column_names=COLUMNS)
    assert summary.written_rows == 3
    assert [list(row) for row in client.query("SELECT * FROM t ORDER BY a").result_rows] == ROWS
    client.close()


def test_parameters_are_typed_and_safe(clickhouse_client: Client, table: str) -> None:
    clickhouse_client.insert(table, ROWS, column_names=COLUMNS)
    found = clickhouse_client.query(
        "SELECT a FROM t WHERE s = {s:String} OR a IN {ids:Array(Int64)} ORDER BY a",
        parameters={"s": "tab\tquote'\n", "ids": [3, 9]},
    )
    assert [row[0] for row in found.result_rows] == [2, 3]


def test_parameters_may_be_longer_than_an_address(clickhouse_client: Client) -> None:
    """The client sends more than 4 KiB of them as a form."""
    names = [f"{number} ä\r\n--{number}\r\n'\\t" for number in range(3_000)]
    found = clickhouse_client.query(
        "SELECT length({names:Array(String)}), cityHash64({names:Array(String)}) = cityHash64(arrayMap("
        "n -> concat(toString(n), ' ä\\r\\n--', toString(n), '\\r\\n\\'\\\\t'), range(3000)))",
        parameters={"names": names},
    )
    assert found.result_rows == [(3_000, True)]


def test_settings_are_the_requests_own(clickhouse_client: Client) -> None:
    get = "SELECT toInt64(getSetting('max_block_size'))"
    before = clickhouse_client.query(get).first_row
    assert clickhouse_client.query(get, settings={"max_block_size": 4321}).first_row == (4321,)
    assert clickhouse_client.query(get).first_row == before


@pytest.mark.parametrize(
    ("query", "code"), [("SELEC 1", 62), ("SELECT * FROM nosuch", 60), ("SELECT 1 SETTINGS nosuch = 1", 115)]
)
def test_errors_carry_the_engines_code(clickhouse_client: Client, query: str, code: int) -> None:
    with pytest.raises(DatabaseError, match=f"Code: {code}\\."):
        clickhouse_client.query(query)


def test_an_unknown_database_is_named(clickhouse: ClickHouseLocal) -> None:
    with pytest.raises(DatabaseError, match=r"Code: 81\."):
        clickhouse_connect.get_client(dsn=clickhouse.dsn("nosuch"))


def test_a_big_result_streams_and_is_whole(clickhouse_client: Client) -> None:
    query = "SELECT number, toString(number) AS text FROM numbers(1000000)"
    with clickhouse_client.query_rows_stream(query) as rows:
        assert sum(row[0] for row in rows) == 1_000_000 * 999_999 // 2
    with clickhouse_client.raw_stream(query, fmt="CSVWithNames") as stream:
        lines = b"".join(stream).split(b"\n")
    assert lines[0] == b'"number","text"'
    assert len(lines) == 1_000_002
    assert lines.count(lines[0]) == 1


def test_an_error_after_the_first_block_is_no_whole_result(clickhouse_client: Client) -> None:
    query = "SELECT throwIf(number = 900000) FROM numbers(1000000) SETTINGS max_threads = 1"
    with pytest.raises(StreamFailureError), clickhouse_client.query_rows_stream(query) as rows:
        for _ in rows:
            pass


def test_sessions_keep_temporary_tables_and_refuse_a_second_request(clickhouse: ClickHouseLocal, unique: str) -> None:
    client = clickhouse_connect.get_client(dsn=clickhouse.dsn(), session_id=unique)
    client.command("CREATE TEMPORARY TABLE mine (a Int64)")
    client.insert("mine", [[7]], column_names=["a"])
    assert client.query("SELECT a FROM mine").result_rows == [(7,)]
    client.close()
    params = {"session_id": unique}
    with httpx.Client(base_url=clickhouse.url, params=params, timeout=60, trust_env=False) as http:
        # Either of the two may find the session taken by the other.
        sleeping = threading.Thread(target=until, args=(lambda: sql(http, "SELECT sleep(2)").status_code == 200,))
        sleeping.start()
        until(lambda: sql(http, "SELECT 1").headers.get("x-clickhouse-exception-code") == "373", every=0.2)
        sleeping.join()
        assert sql(http, "SELECT count() FROM mine").text == "1\n"


# -- plain HTTP --------------------------------------------------------------------------------------------------------


def test_ping(http: httpx.Client) -> None:
    assert http.get("/ping").text == "Ok.\n"


@pytest.mark.parametrize(
    ("params", "body", "format_name"),
    [
        ({"query": "SELECT 1 AS x FORMAT JSONEachRow"}, b"", "JSONEachRow"),
        ({"query": "SELECT 1 AS x", "default_format": "JSONEachRow"}, b"", "JSONEachRow"),
        ({"query": "SELECT 1 AS x"}, b"FORMAT JSONEachRow", "JSONEachRow"),
        ({}, b"SELECT 1 AS x FORMAT JSONEachRow", "JSONEachRow"),
    ],
)
def test_text_and_format_may_stand_in_address_or_body(
    http: httpx.Client, params: dict[str, str], body: bytes, format_name: str
) -> None:
    answer = http.post("/", content=body, params=params)
    assert answer.json() == {"x": 1}
    assert answer.headers["x-clickhouse-format"] == format_name
    assert answer.headers["x-clickhouse-query-id"]


@pytest.mark.parametrize("format_name", ["JSON", "Arrow", "Parquet", "CSVWithNames", "TSVWithNamesAndTypes", "Native"])
def test_a_result_of_several_blocks_is_one_document(http: httpx.Client, format_name: str) -> None:
    query = f"SELECT number, toString(number) AS s FROM numbers(200000) FORMAT {format_name}"
    streamed, whole = sql(http, query), sql(http, query, wait_end_of_query=1)
    assert whole.headers["content-length"]
    if format_name == "JSON":  # its statistics differ
        assert streamed.json()["data"] == whole.json()["data"]
    else:
        assert streamed.content == whole.content


def test_an_empty_result_has_its_header(http: httpx.Client) -> None:
    assert sql(http, "SELECT 1 AS x WHERE 0 FORMAT CSVWithNames").text == '"x"\n'
    assert sql(http, "SELECT 1 AS x WHERE 0 FORMAT JSONEachRow").text == ""


@pytest.mark.parametrize(("query", "status", "code"), [
    ("SELEC 1",                    400, 62),
    ("",                           400, 62),
    ("SELECT 1; SELECT 2",         400, 62),
    ("SELECT * FROM nosuch",       404, 60),
    ("SELECT nosuchfunction(1)",   404, 46),
    ("SELECT throwIf(1)",          500, 395),
    ("SELECT toDecimal64('x', 2)", 400, None),
])  # fmt: skip
def test_statuses_and_codes(http: httpx.Client, query: str, status: int, code: int | None) -> None:
    answer = sql(http, query)
    assert answer.status_code == status
    assert "DB::Exception" in answer.text
    if code is not None:
        assert answer.headers["x-clickhouse-exception-code"] == str(code)


def test_a_get_changes_nothing(http: httpx.Client, table: str) -> None:
    answer = http.get("/", params={"query": f"INSERT INTO {table} (a) VALUES (1)"})
    assert answer.headers["x-clickhouse-exception-code"] == "164"
    assert sql(http, "SELECT count() FROM t").text == "0\n"


def test_another_user_is_refused(http: httpx.Client) -> None:
    assert http.post("/", content="SELECT 1", headers={"X-ClickHouse-User": "analyst"}).status_code == 403
    assert http.post("/", content="SELECT 1", auth=("analyst", "")).status_code == 403
    assert http.post("/", content="SELECT 1", auth=("default", "")).text == "1\n"


def test_external_tables_are_refused(http: httpx.Client) -> None:
    answer = http.post("/", data={"query": "SELECT 1"}, files={"t": ("t.csv", b"1")})
    assert answer.status_code == 501
    assert http.post("/", content="SELECT 1").text == "1\n"


def test_null_and_escapes_in_parameters(http: httpx.Client) -> None:
    answer = sql(http, "SELECT {x:Nullable(String)}, {y:String}", param_x="\\N", param_y="a\\tb")
    assert answer.text == "\\N\ta\\tb\n"


# -- inserts -----------------------------------------------------------------------------------------------------------


def _avro(rows: list[dict[str, Any]]) -> bytes:
    fields = [{"name": "a", "type": "long"}, {"name": "s", "type": "string"}]
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema({"type": "record", "name": "R", "fields": fields}), rows)
    return out.getvalue()


INSERTED = [{"a": 1, "s": "x;\n"}, {"a": 2, "s": "y"}]


@pytest.mark.parametrize(("format_name", "data"), [
    ("Avro",             _avro(INSERTED)),
    ("JSONEachRow",      b"\n".join(json.dumps(row).encode() for row in INSERTED)),
    ("CSV",              b'1,"x;\n"\n2,y\n'),
    ("CSVWithNames",     b'a,s\n1,"x;\n"\n2,y\n'),
    ("TSV",              b"1\tx;\\n\n2\ty\n"),
    ("Values",           b"(1, 'x;\\n'), (2, 'y')"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["address", "body"])
def test_inserts_in_every_format(http: httpx.Client, table: str, format_name: str, data: bytes, where: str) -> None:
    query = f"INSERT INTO {table} (a, s) SETTINGS max_insert_threads = 1 FORMAT {format_name}"
    if where == "address":
        answer = http.post("/", content=data, params={"query": query})
    else:
        answer = http.post("/", content=query.encode() + b"\n" + data)
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.headers["x-clickhouse-summary"])["written_rows"] == "2"
    assert sql(http, "SELECT a, s FROM t ORDER BY a FORMAT JSONEachRow").text.splitlines() == [
        '{"a":1,"s":"x;\\n"}',
        '{"a":2,"s":"y"}',
    ]


@pytest.mark.parametrize("format_name", ["Native", "Arrow", "Parquet", "RowBinary"])
def test_binary_results_can_be_inserted_again(http: httpx.Client, table: str, format_name: str) -> None:
    data = sql(
        http, f"SELECT toInt64(number) AS a, char(10, number) AS s FROM numbers(1000) FORMAT {format_name}"
    ).content
    answer = http.post("/", content=data, params={"query": f"INSERT INTO {table} (a, s) FORMAT {format_name}"})
    assert answer.status_code == 200, answer.text
    assert sql(http, "SELECT count(), sum(a), countIf(s = char(10, a)) FROM t").text == "1000\t499500\t1000\n"


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("zstd", zstandard.compress), ("lz4", lz4.frame.compress), ("identity", bytes)],
)
def test_bodies_may_be_compressed_and_chunked(
    http: httpx.Client, table: str, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    data = compress(b"".join(b"%d,x\n" % number for number in range(100_000)))
    chunks = (data[at : at + 5000] for at in range(0, len(data), 5000))
    query = {"query": f"INSERT INTO {table} (a, s) FORMAT CSV"}
    answer = http.post("/", content=chunks, params=query, headers={"Content-Encoding": encoding})
    assert answer.status_code == 200, answer.text
    assert sql(http, "SELECT count(), sum(a) FROM t").text == f"100000\t{100_000 * 99_999 // 2}\n"


def test_a_damaged_body_leaves_no_row_and_a_usable_connection(http: httpx.Client, table: str) -> None:
    good = _avro([{"a": number, "s": "x" * 100} for number in range(5000)])
    bad = good[: len(good) // 2] + b"\xff" * 100 + good[len(good) // 2 + 100 :]
    query = {"query": f"INSERT INTO {table} (a, s) FORMAT Avro"}
    for data, headers in ((bad, {}), (good[:-20], {}), (b"\x1f\x8bnonsense", {"Content-Encoding": "gzip"})):
        answer = http.post("/", content=data, params=query, headers=headers)
        assert answer.status_code >= 400
        assert answer.headers["x-clickhouse-exception-code"]
    assert sql(http, "SELECT count() FROM t").text == "0\n"
    assert http.post("/", content=good, params=query).status_code == 200
    assert sql(http, "SELECT count() FROM t").text == "5000\n"


def test_reads_go_on_during_an_insert(clickhouse: ClickHouseLocal, http: httpx.Client, table: str) -> None:
    slow = f"INSERT INTO {table} (a) SELECT number + sleepEachRow(0.02) FROM numbers(100) SETTINGS max_block_size = 1"
    inserting = threading.Thread(target=sql, args=(http, slow))
    inserting.start()
    reads = 0
    while inserting.is_alive():
        assert sql(http, "SELECT 1").text == "1\n"
        reads += 1
    inserting.join()
    assert reads > 10
    assert sql(http, "SELECT count() FROM t").text == "100\n"


# -- the process -------------------------------------------------------------------------------------------------------


def _memory_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def test_data_survives_kill_and_memory_stays_while_streaming(
    clickhouse_factory: Callable[[], ClickHouseLocal],
) -> None:
    engine = clickhouse_factory()
    engine.start()
    with httpx.Client(base_url=engine.url, timeout=120, trust_env=False) as http:
        assert sql(http, "CREATE DATABASE u").status_code == 200
        assert sql(http, "CREATE TABLE u.t (a Int64) ENGINE = MergeTree ORDER BY a").status_code == 200
        assert sql(http, "INSERT INTO u.t SELECT number FROM numbers(1000)").status_code == 200
    engine.kill()
    engine.start()
    pid = engine.pid
    assert pid is not None
    with httpx.Client(base_url=engine.url, timeout=120, trust_env=False) as http:
        assert sql(http, "SELECT count() FROM u.t").text == "1000\n"
        size = 0
        before = _memory_mib(pid)
        most = 0
        query = "SELECT number, toString(number) AS s FROM numbers(20000000) FORMAT CSVWithNames"
        with http.stream("POST", "/", content=query) as answer:
            for block in answer.iter_bytes():
                if size // 50_000_000 != (size := size + len(block)) // 50_000_000:
                    most = max(most, _memory_mib(pid))
        assert size > 350_000_000
        assert most - before < 250, "a result of 360 MiB was held in memory"
    assert engine.stop() == 0


def test_clients_that_leave_and_nonsense_do_not_end_it(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    engine = clickhouse_factory()
    engine.start()
    big = "SELECT number FROM numbers(100000000) FORMAT CSV"
    with httpx.Client(base_url=engine.url, timeout=60, trust_env=False) as http:
        for _ in range(5):
            with http.stream("POST", "/", content=big) as answer:
                next(answer.iter_bytes())
        for content in (b"\x00\xff", os.urandom(5000), b"INSERT INTO", b"SELECT '", b"(" * 100_000):
            assert http.post("/", content=content).status_code in (400, 500)
        assert http.post("/", content=b"x", params={"nosuch": "1"}).status_code == 400
        assert http.get("/nosuch").status_code == 404
        assert sql(http, "SELECT 1").text == "1\n"
    assert engine.running
