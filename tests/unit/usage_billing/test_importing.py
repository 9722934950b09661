"""What users' systems write becomes usage events: no cell changed, every error by line and column, every row known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars
import pytest
import zstandard

from runtime.csv_text import csv_rows, safe_cell
from usage_billing.importing.check import LineError, checked_chunks
from usage_billing.importing.identity import Occurrences
from usage_billing.importing.mapping import WrongMapping, mapped, pairs
from usage_billing.importing.tables import Dialect, UnreadableTable, columns_of, format_of, rows

HEAD = "customer_id,event_name,timestamp,value\n"
ROW = "cus_1,api_request,2026-03-01T00:00:00Z,1\n"
JSON = '{"customer_id":"cus_1","event_name":"api_request","timestamp":"2026-03-01T00:00:00Z",'


PLAIN = Dialect()


def read(path: Path, dialect: Dialect = PLAIN, **options: Any) -> tuple[list[dict[str, Any]], list[LineError]]:
    """The file's events with their ids, and its errors."""
    kind = format_of(path)
    given: dict[str, Any] = {"renames": {}, "constants": {}, **options}
    mapping = mapped(columns_of(path, kind, dialect), guarded=kind == ".csv", **given)
    errors: list[LineError] = []
    chunks = checked_chunks(rows(path, kind, dialect), mapping, errors)
    return [event for chunk in chunks for event in chunk.events], errors


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def values(events: list[dict[str, Any]]) -> list[str]:
    return [event["value"] for event in events]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", HEAD + ROW),
        ("marked.csv", "\ufeff" + HEAD + ROW),
        (
            "quoted.csv",
            HEAD.replace("customer_id", '"customer_id"') + '"cus_1","api_request","2026-03-01T00:00:00Z","1"\r\n',
        ),
        ("separator.csv", "sep=;\n" + (HEAD + ROW).replace(",", ";")),
        ("blank.csv", HEAD + "\n" + ROW + "\n"),
        ("commas.csv", HEAD + ",,,\n" + ROW + ",,,\n"),
        ("packed.csv.gz", gzip.compress((HEAD + ROW).encode(), mtime=0)),
        ("packed.csv.zst", zstandard.compress(HEAD.encode()) + zstandard.compress(ROW.encode())),
        ("lines.jsonl", JSON + '"value":1}\n\n'),
        ("lines.ndjson.gz", gzip.compress((JSON + '"value":1}').encode(), mtime=0)),
        ("postgres.csv", HEAD + ROW.replace("2026-03-01T00:00:00Z", "2026-03-01 01:00:00+01")),
    ],
)
def test_one_row_in_each_of_the_ways_that_programs_write_it(tmp_path: Path, name: str, content: str | bytes):
    events, errors = read(written(tmp_path / name, content))

    assert errors == []
    assert [(event["customer_id"], event["event_name"], event["value"]) for event in events] == [
        ("cus_1", "api_request", "1")
    ]


@pytest.mark.parametrize(
    ("line", "properties"),
    [
        ('"value":1,"properties":{"model":null,"tokens":12}}', {"tokens": "12"}),
        ('"value":1,"model":null,"tokens":12}', {"tokens": "12"}),
        ('"value":1,"cached":true}', {"cached": "true"}),
        ('"value":1,"cost":0.10}', {"cost": "0.10"}),
        ('"value":1,"tags":["a","b"]}', {"tags": '["a","b"]'}),
        ('"value":1,"properties":"{\\"region\\": \\"eu\\"}"}', {"region": "eu"}),
    ],
)
def test_a_property_that_is_no_text_is_spelled_as_json_spells_it(tmp_path: Path, line: str, properties: dict[str, str]):
    events, errors = read(written(tmp_path / "a.jsonl", JSON + line))

    assert errors == []
    assert events[0]["properties"] == properties


def test_decimals_stay_as_they_are_spelled(tmp_path: Path):
    spelled = ["123456789.123456789", "9007199254740993.5", "12345678901234567.123"]
    events, _ = read(written(tmp_path / "a.jsonl", "\n".join(f'{JSON}"value":{value}}}' for value in spelled)))

    assert values(events) == spelled


def test_floats_of_parquet_have_their_shortest_spelling(tmp_path: Path):
    base = {"customer_id": ["c"] * 3, "event_name": ["e"] * 3, "timestamp": ["2026-03-01T00:00:00Z"] * 3}
    floats = [0.1, 16.7, 1e-7]
    polars.DataFrame({**base, "value": floats}, schema_overrides={"value": polars.Float32}).write_parquet(
        tmp_path / "s.parquet"
    )
    polars.DataFrame({**base, "value": floats}).write_parquet(tmp_path / "d.parquet")

    for name in ("s", "d"):
        assert values(read(tmp_path / f"{name}.parquet")[0]) == ["0.1", "16.7", "0.0000001"]


def test_a_struct_of_parquet_is_the_properties(tmp_path: Path):
    frame = polars.DataFrame(
        {
            "customer_id": ["c", "c"],
            "event_name": ["e", "e"],
            "timestamp": ["2026-03-01T00:00:00Z", "2026-03-01T00:00:01Z"],
            "properties": [{"region": "eu", "tier": "gold"}, {"region": "us", "tier": None}],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")

    assert [event["properties"] for event in read(tmp_path / "a.parquet")[0]] == [
        {"region": "eu", "tier": "gold"},
        {"region": "us"},
    ]


def test_our_own_export_goes_in_as_it_came_out(tmp_path: Path):
    export = (
        "customer_id,event_name,event_id,timestamp,value,received_at,epoch,partition,offset,index,properties\n"
        "'+491701,api_request,'=exp,2026-03-01T00:00:00Z,'-1.5,2026-03-10T08:00:00.5Z,1,8,0,0,"
        '"{""region"": ""eu"", ""note"": ""a \\""quoted\\"", text""}"\n'
    )
    (event,), errors = read(written(tmp_path / "usage.csv", export))

    assert errors == []
    assert event == {
        "customer_id": "+491701",
        "event_name": "api_request",
        "event_id": "=exp",
        "timestamp": "2026-03-01T00:00:00Z",
        "value": "-1.5",
        "properties": {"region": "eu", "note": 'a "quoted", text'},
    }


def test_our_own_json_lines_go_in_as_they_came_out(tmp_path: Path):
    """Text is as it is: nothing is taken off, and no place in the log becomes a property."""
    export = {
        "customer_id": "'=cus", "event_name": "api_request", "event_id": None, "timestamp": "2026-03-01T00:00:00Z",
        "value": "-1.5", "received_at": "2026-03-10T08:00:00.5Z", "epoch": 1, "partition": 8, "offset": 0, "index": 0,
        "properties": {"region": "eu"},
    }  # fmt: skip
    (event,), errors = read(written(tmp_path / "usage.jsonl", json.dumps(export)))
    assert errors == []
    assert event.pop("event_id").startswith("row-")
    assert event == {
        "customer_id": "'=cus",
        "event_name": "api_request",
        "timestamp": "2026-03-01T00:00:00Z",
        "value": "-1.5",
        "properties": {"region": "eu"},
    }


@pytest.mark.parametrize("text", ["=1", "'=1", "''", "'t Hooft", "-", "a'", "", "+4917"])
def test_taking_the_guard_off_gives_every_text_back(tmp_path: Path, text: str):
    head = "customer_id,event_name,event_id,timestamp,value,received_at,epoch,partition,offset,index,properties"
    row = [safe_cell("a"), "n", "1", "2026-03-01T00:00:00Z", "1", "2026-03-01T00:00:00Z", 1, 0, 0, 0, ""]
    row[0] = safe_cell(f"{text}x") if not text else safe_cell(text)
    (event,), errors = read(written(tmp_path / "usage.csv", csv_rows([head.split(","), row])))
    assert errors == []
    assert event["customer_id"] == (text or "x")


@pytest.mark.parametrize(
    ("content", "line", "word"),
    [
        ("", None, "empty"),
        (HEAD + ROW + "cus_1,api_request,2026-03-01T00:00:00Z,1,extra\n", 3, "5 cells"),
        (HEAD + "cus_1,api_request\n", 2, "2 cells"),
        ((HEAD + ROW).replace(",", ";"), 1, "--separator"),
        (HEAD.encode() + "Müller,api_request,2026-03-01T00:00:00Z,1\n".encode("windows-1252"), 2, "--encoding"),
        (HEAD + ROW + 'cus_1,"never closed\n', 3, "unexpected end of data"),
        (HEAD + "cus\0_1,api_request,2026-03-01T00:00:00Z,1\n", 2, "NUL"),
        ("a,a,customer_id\n", 1, "named twice"),
        (HEAD.encode("utf-16"), 1, "--encoding"),
    ],
    ids=[
        "empty",
        "cell too many",
        "cells too few",
        "semicolons",
        "windows-1252",
        "open quote",
        "nul",
        "same name",
        "utf-16",
    ],
)
def test_a_file_that_can_not_be_read_says_where(tmp_path: Path, content: str | bytes, line: int | None, word: str):
    with pytest.raises(UnreadableTable, match=word) as raised:
        read(written(tmp_path / "a.csv", content))

    assert raised.value.line == line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"[1]"),
        ("a.jsonl", b'{"value":'),
        ("a.jsonl", b'{"a":"\xff"}'),
        ("a.parquet", b"PAR1 nothing"),
        ("a.csv.gz", b"not gzip"),
        ("a.csv.gz", gzip.compress((HEAD + ROW * 5000).encode(), mtime=0)[:-20]),
        ("a.csv.zst", b"not zstd"),
        ("a.parquet.gz", b""),
        ("a.xlsx", b""),
        ("usage", b""),
    ],
)
def test_a_file_of_another_kind_is_one_clear_error(tmp_path: Path, name: str, content: bytes):
    with pytest.raises(UnreadableTable):
        read(written(tmp_path / name, content))


def test_another_separator_and_encoding_can_be_given(tmp_path: Path):
    text = (HEAD + ROW.replace("cus_1", "Müller")).replace(",", ";")

    for encoding in ("windows-1252", "utf-16"):
        events, errors = read(written(tmp_path / "a.csv", text.encode(encoding)), Dialect(";", encoding))
        assert (errors, [event["customer_id"] for event in events]) == ([], ["Müller"])


def test_every_error_names_its_line_and_the_users_column(tmp_path: Path):
    text = "who,api_request,when,units,region\n" + "".join(
        f"cus_{number},x,2026-03-01T00:00:00Z,{'abc' if number == 1500 else number},{'r' * 300 if number == 7 else 'eu'}\n"
        for number in range(2000)
    )
    events, errors = read(
        written(tmp_path / "a.csv", text),
        renames={"customer_id": "who", "timestamp": "when", "units": "value"},
        constants={"event_name": "api_request"},
        properties=["region"],
    )

    assert [(error.line, error.column, error.code) for error in errors] == [
        (9, "region", "properties_too_long"),
        (1502, "units", "value_invalid"),
    ]
    assert len(events) == 1998


def test_local_times_want_a_zone_and_are_read_in_it(tmp_path: Path):
    file = written(
        tmp_path / "trace.csv",
        "TIMESTAMP,Tokens\n2026-03-16 09:05:01.2500400,1250\n2026-03-29 02:30:00,1\n2026-10-25 02:30:00,2\n2026-03-16,3\n",
    )
    options: dict[str, Any] = {
        "renames": {"timestamp": "TIMESTAMP", "value": "Tokens"},
        "constants": {"customer_id": "c", "event_name": "e"},
    }

    assert {error.code for error in read(file, **options)[1]} == {"timestamp_missing_offset", "timestamp_invalid"}
    events, errors = read(file, time_zone="Europe/Vienna", **options)
    assert errors == []
    assert [event["timestamp"] for event in events] == [
        "2026-03-16T08:05:01.2500400Z",
        "2026-03-29T01:30:00Z",  # skipped by the clock: moved forward
        "2026-10-25T00:30:00Z",  # twice on the clock: the first
        "2026-03-15T23:00:00Z",
    ]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"renames": {"customer_id": "nobody"}}, "no column nobody"),
        ({"renames": {"colour": "customer_id"}}, "no column colour"),
        ({"constants": {"colour": "red"}}, "--set colour"),
        ({"id_from": "nobody"}, "--id-from"),
        ({"properties": ["nobody"]}, "--properties"),
        ({"time_zone": "Vienna"}, "--time-zone"),
    ],
)
def test_a_mapping_that_does_not_fit_says_what_there_is(options: dict[str, Any], word: str):
    given: dict[str, Any] = {"renames": {}, "constants": {}, **options}
    with pytest.raises(WrongMapping, match=word):
        mapped(["customer_id", "event_name", "timestamp"], **given)


def test_missing_columns_are_named_together():
    with pytest.raises(WrongMapping, match="event_name, timestamp"):
        mapped(["customer_id", "other"], renames={}, constants={})
    with pytest.raises(WrongMapping, match="NAME=VALUE"):
        pairs(["customer_id"], "--map")


def ids(path: Path, text: str) -> list[str]:
    events, errors = read(written(path, text))
    assert errors == []
    return [event["event_id"] for event in events]


def test_a_row_keeps_its_id_when_the_file_is_corrected_continued_or_saved_by_another_program(tmp_path: Path):
    path = tmp_path / "a.csv"
    rows_of = [ROW, ROW.replace("cus_1", "cus_2"), ROW, ROW.replace(",1\n", ",2.5\n")]
    before = ids(path, HEAD + "".join(rows_of))

    assert len(set(before)) == 4  # equal rows are rows of their own
    assert ids(path, HEAD + "".join(rows_of) + ROW.replace("cus_1", "cus_3"))[:4] == before
    assert ids(path, HEAD + "".join(rows_of[1:])) == [before[1], before[0], before[3]]
    saved = (
        (HEAD + "".join(rows_of))
        .replace("2026-03-01T00:00:00Z", '"2026-03-01 01:00:00+01:00"')
        .replace(",2.5\n", ",2.50\n")
    )
    assert ids(path, "\ufeff" + saved.replace("\n", "\r\n")) == before


def test_an_own_id_is_kept_and_repeats_of_it_are_counted(tmp_path: Path):
    file = written(
        tmp_path / "a.csv", "customer_id,event_name,timestamp,order\n" + "c,e,2026-03-01T00:00:00Z,o-1\n" * 3
    )
    mapping = mapped(columns_of(file, ".csv", Dialect()), renames={}, constants={}, id_from="order")
    (chunk,) = checked_chunks(rows(file, ".csv", Dialect()), mapping, [])

    assert [event["event_id"] for event in chunk.events] == ["o-1"] * 3
    assert chunk.repeated == 2


def test_contents_beyond_the_memory_are_counted_all_the_same():
    seen = Occurrences(in_memory_max=3)
    contents = [bytes([number % 7]) for number in range(70)]

    assert [seen.next_number(content) for content in contents] == [number // 7 for number in range(70)]
    seen.close()
