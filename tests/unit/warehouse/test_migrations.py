"""Migrations can run again, or twice at once, only if each statement can."""

from __future__ import annotations

import re

import pytest

from warehouse.migrate import Migration, migrations

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


@pytest.mark.parametrize("migration", migrations(), ids=lambda migration: migration.name)
def test_every_statement_is_read_by_versions_before_26_8(migration: Migration) -> None:
    """They take a column's comment before its codec only, and constants only in a constraint's IN."""
    for line in migration.text.splitlines():
        assert not re.search(r"CODEC\(.*COMMENT '", line), line
        assert not re.search(r"\bIN \((?!SELECT)[^)]*\w\(", line), line
