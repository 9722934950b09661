"""Views of others on our tables: those that count an insert's repeat twice are named, ours and careful ones are not."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from schemas.settings import Settings
from usage_billing.commands.doctor import CHECKS, findings
from warehouse.client import Client, connect
from warehouse.foreign_views import ForeignView, foreign_views
from warehouse.migrate import migrate


@pytest.fixture
def settings(clickhouse: ClickHouseLocal) -> Settings:
    return Settings(clickhouse_dsn=clickhouse.dsn(f"v{secrets.token_hex(6)}"))  # pyright: ignore[reportCallIssue]


@pytest.fixture
def client(settings: Settings, clickhouse: ClickHouseLocal) -> Iterator[Client]:
    migrate(settings)
    with connect(settings) as made:
        yield made
        for database in (f"{made.database}_theirs", str(made.database)):  # its own last: it is asked for in each
            made.command(f"DROP DATABASE IF EXISTS {database} SYNC")


def test_ours_are_nobody_else_s(client: Client) -> None:
    assert foreign_views(client) == []


def test_views_whose_tables_forget_are_named(client: Client, settings: Settings) -> None:
    own, theirs = str(client.database), f"{client.database}_theirs"
    client.command(f"CREATE DATABASE {theirs}")
    window = "SETTINGS non_replicated_deduplication_window = 100"
    for name, engine, settings_of in (
        ("forgets", "MergeTree", ""), ("remembers", "MergeTree", window), ("replaces", "ReplacingMergeTree", ""),
    ):  # fmt: skip
        client.command(
            f"CREATE TABLE {theirs}.{name} (customer_id String) ENGINE = {engine} ORDER BY customer_id {settings_of}"
        )
        client.command(
            f"CREATE MATERIALIZED VIEW {theirs}.to_{name} TO {theirs}.{name} AS SELECT customer_id FROM {own}.usage_events"
        )
    client.command(
        f"CREATE MATERIALIZED VIEW {own}.`their view` ENGINE = MergeTree ORDER BY n AS "
        f"SELECT length(customer_id) AS n FROM {own}.usage_batches_in"
    )
    found = {view.name: view for view in foreign_views(client)}
    assert {name: view.remembers for name, view in found.items()} == {
        f"{own}.their view": False,
        f"{theirs}.to_forgets": False,
        f"{theirs}.to_remembers": True,
        f"{theirs}.to_replaces": True,
    }
    assert found[f"{theirs}.to_forgets"] == ForeignView(f"{theirs}.to_forgets", f"{theirs}.forgets", False)
    said = findings(settings, {"foreign_views": CHECKS["foreign_views"]})
    assert [each.verdict for each in said] == ["warning", "warning"]
    client.command(f"ALTER TABLE {theirs}.forgets MODIFY SETTING non_replicated_deduplication_window = 1000")
    assert {view.name: view.remembers for view in foreign_views(client)}[f"{theirs}.to_forgets"]
