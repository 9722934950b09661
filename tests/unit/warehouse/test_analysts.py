"""Who may read what, as SQL and as a users file."""

import xml.etree.ElementTree as ET

import pytest

from warehouse.analysts import (
    LIMITS,
    OPERATORS_TABLES,
    PUBLIC_VIEWS,
    Analyst,
    InvalidName,
    analyst_of,
    create_statements,
    readable,
    remove_statements,
    row_filters,
    users_xml,
)

IDS = ("acme", "o'brien", 'quote " and \\', "<b>&amp;</b>", "ü 漢", "a'; DROP USER usage; --", "\\'")


@pytest.mark.parametrize("name", ["", "Anna", "1st", "a b", "a-b", "a'b", "<x/>", "a" * 64, "ä"])
def test_a_name_that_no_analyst_can_have(name: str) -> None:
    with pytest.raises(InvalidName):
        Analyst(name)


@pytest.mark.parametrize("organization", [*IDS, None])
def test_a_file_tells_whom_it_is_about(organization: str | None) -> None:
    analyst = Analyst("anna", organization)
    assert analyst_of(users_xml(analyst, "usage", "ab" * 32, ["127.0.0.1"])) == analyst


@pytest.mark.parametrize("text", ["", "<clickhouse/>", "<clickhouse><users><a/><b/></users></clickhouse>", "no file"])
def test_another_file_is_no_analyst_s(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        analyst_of(text)


def test_every_table_that_one_organization_reads_has_its_filter() -> None:
    tables = {*readable(Analyst("anna", "acme"))} - {*PUBLIC_VIEWS}
    assert {*row_filters("acme")} == tables
    assert not tables & {*OPERATORS_TABLES}
    root = ET.fromstring(users_xml(Analyst("anna", "acme"), "usage", "ab" * 32, ["127.0.0.1"]))
    assert {filtered.tag for filtered in root.findall("users/anna/databases/usage/*")} == tables
    granted = {str(query.text).rpartition(".")[2] for query in root.findall("users/anna/grants/query")}
    assert granted == tables | {*PUBLIC_VIEWS}


def test_the_sql_has_limits_before_rights_and_both_kinds_of_policy() -> None:
    statements = list(create_statements(Analyst("anna", "o'brien"), "usage", "billing", "ab" * 32))
    first_grant = next(number for number, text in enumerate(statements) if text.startswith("GRANT"))
    assert all(text.startswith("GRANT SELECT ON usage.") for text in statements[first_grant:])
    assert all(f"{name} = {value}" in statements[0] for name, value in LIMITS.items())
    assert statements[0].count(" READONLY") == len(LIMITS) - 1
    policies = [text for text in statements if text.startswith("CREATE ROW POLICY")]
    assert sum("AS RESTRICTIVE TO anna" in text for text in policies) == 2  # organizations are told by their id
    assert all("o\\'brien" in text for text in policies if text.endswith("TO anna"))
    assert policies[0].endswith("USING 1 AS PERMISSIVE TO billing")


def test_an_analyst_of_all_has_no_policy() -> None:
    statements = list(create_statements(Analyst("anna"), "usage", "billing", "ab" * 32))
    assert not any("ROW POLICY" in text for text in statements)
    assert "GRANT SELECT ON usage.usage_accepted TO anna" in statements


def test_everything_that_is_made_is_removed() -> None:
    made = list(create_statements(Analyst("anna", "acme"), "usage", "billing", "ab" * 32))
    removed = " ".join(remove_statements("anna", "usage"))
    for kind in ("SETTINGS PROFILE", "USER", "QUOTA", "ROW POLICY"):
        assert any(f"CREATE {kind}" in text for text in made)
        assert f"DROP {kind} IF EXISTS" in removed
