"""Statements are told apart by their words, not by what stands in strings, comments or brackets."""

import pytest

from deploy.local.clickhouse_sql import parse, quote, quote_identifier


@pytest.mark.parametrize(("text", "verb", "format_name"), [
    (b"SELECT 1",                                        "SELECT", None),
    (b"select 1 format JSON",                            "SELECT", "JSON"),
    (b"  -- a comment\n/* another */ SELECT 1 FORMAT CSV;", "SELECT", "CSV"),
    (b"SELECT 1 FORMAT CSV SETTINGS max_threads = 1",    "SELECT", "CSV"),
    (b"SELECT 'x FORMAT CSV'",                           "SELECT", None),
    (b"SELECT ' it''s FORMAT CSV' -- FORMAT TSV",        "SELECT", None),
    (b"SELECT 'a\\' FORMAT CSV'",                        "SELECT", None),
    (b"SELECT format FROM t",                            "SELECT", None),
    (b"SELECT (SELECT 1 AS format) AS x",                "SELECT", None),
    (b"WITH 1 AS a SELECT a FORMAT Native",              "WITH",   "Native"),
    (b"SHOW TABLES",                                     "SHOW",   None),
    (b"INSERT INTO t SELECT * FROM s",                   "INSERT", None),
    (b"",                                                "",       None),
    (b" -- nothing\n",                                   "",       None),
])  # fmt: skip
def test_verb_and_format(text: bytes, verb: str, format_name: str | None) -> None:
    statement = parse(text)
    assert (statement.verb, statement.format) == (verb, format_name)
    assert statement.data_start is None
    assert statement.head == text


@pytest.mark.parametrize(("text", "head", "format_name", "data"), [
    (b"INSERT INTO t FORMAT Avro",                       b"INSERT INTO t ",          "Avro",   b""),
    (b"INSERT INTO t (a, b) FORMAT Native\n\x00\n\xff;", b"INSERT INTO t (a, b) ",   "Native", b"\x00\n\xff;"),
    (b"INSERT INTO t (format) FORMAT CSV \r\n\n1",       b"INSERT INTO t (format) ", "CSV",    b"\n1"),
    (b"INSERT INTO `my format` FORMAT CSV\n1",           b"INSERT INTO `my format` ", "CSV",   b"1"),
    (b"insert into t values (1, 'FORMAT CSV')",          b"insert into t ",          "Values", b" (1, 'FORMAT CSV')"),
    (b"INSERT INTO t SETTINGS a = 1 FORMAT JSONEachRow\n{}", b"INSERT INTO t SETTINGS a = 1 ", "JSONEachRow", b"{}"),
])  # fmt: skip
def test_inserts_are_cut_where_their_data_begins(text: bytes, head: bytes, format_name: str, data: bytes) -> None:
    statement = parse(text)
    assert statement.data_start is not None
    assert (statement.head, statement.format, text[statement.data_start :]) == (head, format_name, data)


@pytest.mark.parametrize(("text", "several"), [
    (b"SELECT 1",                False),
    (b"SELECT 1;",               False),
    (b"SELECT 1; -- the end\n",  False),
    (b"SELECT 1; SELECT 2",      True),
    (b"SELECT ';'; ;",           True),
    (b"SELECT ';' FORMAT CSV",   False),
])  # fmt: skip
def test_a_second_statement_is_noticed(text: bytes, several: bool) -> None:
    assert parse(text).several is several


def test_quotes_are_escaped() -> None:
    assert quote("it's a \\") == "'it\\'s a \\\\'"
    assert quote_identifier("a`b") == "`a\\`b`"
