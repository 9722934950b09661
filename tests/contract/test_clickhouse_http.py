"""The local engine's HTTP interface answers clients as a ClickHouse server does."""

from clickhouse_connect.driver.client import Client


def test_rows_come_back(clickhouse_client: Client) -> None:
    clickhouse_client.command("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    clickhouse_client.insert("t", [[1], [2]], column_names=["a"])
    assert clickhouse_client.query("SELECT sum(a) FROM t").result_rows == [(3,)]
