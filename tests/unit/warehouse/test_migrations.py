"""Migrations can run again, or twice at once, only if each statement can."""

from __future__ import annotations

import re

import pytest

from warehouse.migrate import Migration, UnsupportedServer, check_version, migrations

REPEATABLE = re.compile(
    r"CREATE (TABLE|VIEW|MATERIALIZED VIEW) IF NOT EXISTS |CREATE OR REPLACE VIEW |ALTER TABLE \w+ (ADD \w+ IF NOT EXISTS|MODIFY|MATERIALIZE INDEX) "
)
COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)


@pytest.mark.parametrize("migration", migrations(), ids=lambda migration: migration.name)
def test_every_statement_may_run_again(migration: Migration) -> None:
    assert migration.statements
    for statement in migration.statements:
        assert REPEATABLE.match(COMMENT.sub("", statement).strip()), statement[:120]


def test_events_are_partitioned_by_nothing_but_their_partition() -> None:
    """By a time, a duplicate in another month would count again."""
    text = "\n".join(migration.text for migration in migrations())
    assert re.findall(r"PARTITION BY (.*)", text) == ["kafka_partition % 8"]


def test_statements_end_at_semicolons_at_the_end_of_a_line() -> None:
    made = Migration(1, "0001_x", "-- a; b\nSELECT ';', 1;\n\nSELECT 2 ; \n")
    assert made.statements == ("-- a; b\nSELECT ';', 1", "SELECT 2")


@pytest.mark.parametrize("version", ["24.8", "24.8.1.1", "25.1.2", "26.9.2.1"])
def test_servers_that_will_do(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["24.7.9", "23.12.1", "9.9", "0", ""])
def test_servers_that_are_too_old(version: str) -> None:
    with pytest.raises(UnsupportedServer):
        check_version(version)
