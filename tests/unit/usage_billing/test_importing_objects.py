"""Rows become customers and subscriptions as the API would make them: every error by line and column, each row once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.record import CatalogRecord
from catalog.view import CatalogView
from schemas.customer import Customer
from schemas.organization import Organization
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.subscription import Subscription
from usage_billing.importing.check import LineError
from usage_billing.importing.mapping import WrongMapping, zone_of
from usage_billing.importing.objects import Checked, Columns, CustomerImporter, Importer, SubscriptionImporter
from usage_billing.importing.tables import Dialect, columns_of, format_of, rows

NOW = parse_rfc3339("2026-04-10T00:00:00Z")
PLAIN = Columns()


def view_with(*states: Any) -> CatalogView:
    view = CatalogView()
    flat = {"model": "flat_fee", "amount": "5"}
    product = {"id": "prod_1", "organization_id": "acme", "created_at": 0, "name": "p", "currency": "eur"}
    first = (
        Organization(id="acme", organization_id="acme", created_at=0, time_zone="Europe/Vienna"),
        Product.model_validate({**product, "prices": [flat]}),
        Product.model_validate({**product, "id": "prod_2", "prices": [flat]}),
    )
    for state in (*first, *states):
        assert view.apply(CatalogRecord(state, 0, 0)) is None
    return view


def customer(id_: str, **fields: Any) -> Customer:
    return Customer.model_validate({"id": id_, "organization_id": "acme", "created_at": 0, "name": id_, **fields})


def read(
    kind: type[Importer],
    path: Path,
    content: str,
    view: CatalogView | None = None,
    columns: Columns = PLAIN,
    **options: Any,
) -> tuple[Checked, list[LineError]]:
    path.write_text(content)
    suffix, dialect = format_of(path), Dialect()
    columns.check(columns_of(path, suffix, dialect), kind.fields)
    errors: list[LineError] = []
    zone = options.pop("zone", None)
    importer = kind(view_with() if view is None else view, "acme", NOW, zone)
    return importer.check(rows(path, suffix, dialect), columns, errors, **options), errors


def states(checked: Checked) -> list[Any]:
    return [state for _, state in checked.new]


def places(errors: list[LineError]) -> list[tuple[int | None, str | None, str]]:
    return [(error.line, error.column, error.code) for error in errors]


CSV = """id,name,email,address.country,address.city,tax_id.type,tax_id.value,payment_method
cus_1,Ann,ann@example.com,AT,Wien,eu_vat,ATU12345678,pm_card_visa
,Bob,,,,,,
"""
JSONL = "\n".join(
    json.dumps(each)
    for each in (
        {"id": "cus_1", "name": "Ann", "email": "ann@example.com", "address": {"country": "AT", "city": "Wien"},
         "tax_ids": [{"type": "eu_vat", "value": "ATU12345678"}], "payment_method": "pm_card_visa"},
        {"name": "Bob", "email": None},
    )
)  # fmt: skip


def test_a_customer_is_the_same_in_each_format(tmp_path: Path) -> None:
    checked, errors = read(CustomerImporter, tmp_path / "a.csv", CSV)
    assert errors == []
    assert states(checked) == states(read(CustomerImporter, tmp_path / "a.jsonl", JSONL)[0])
    ann, bob = states(checked)
    assert (ann.id, ann.address.country, ann.tax_ids[0].value, ann.created_at) == ("cus_1", "AT", "ATU12345678", NOW)
    assert bob.id.startswith("cus_")
    assert bob.email is None


def test_importing_again_changes_nothing_and_appended_rows_are_new(tmp_path: Path) -> None:
    view = view_with()
    assert len(read(CustomerImporter, tmp_path / "a.csv", CSV, view)[0].new) == 2
    again, errors = read(CustomerImporter, tmp_path / "a.csv", CSV + "cus_3,Cid,,,,,,\n,Bob,,,,,,\n", view)
    assert errors == []
    assert again.present == 2
    assert [state.name for state in states(again)] == ["Cid", "Bob"]  # a second Bob, and another one


def test_what_exists_differently_is_an_error_or_left_as_it_is(tmp_path: Path) -> None:
    view = view_with(customer("cus_1", email="old@example.com"))
    changed = "id,name,email\ncus_1,cus_1,new@example.com\n"
    _, errors = read(CustomerImporter, tmp_path / "a.csv", changed, view)
    assert places(errors) == [(2, "email", "exists_differently")]
    checked, errors = read(CustomerImporter, tmp_path / "a.csv", changed, view, skip_existing=True)
    assert (errors, checked.present, checked.new) == ([], 1, [])
    twice = "id,name\ncus_2,Ann\ncus_2,Bob\n"
    assert places(read(CustomerImporter, tmp_path / "a.csv", twice, view)[1]) == [(3, "name", "exists_differently")]


@pytest.mark.parametrize(
    ("head", "row", "expected"),
    [
        ("id,name",           "cus_1,",                    ["name"]),
        ("name,email",        "Ann,nobody",                ["email"]),
        ("name,email,address.country", "Ann,@,Austria",    ["email", "address.country"]),
        ("name,tax_id.type,tax_id.value", "Ann,eu_vat,1",  ["tax_id.value"]),
        ("name,tax_ids",      "Ann,{",                     ["tax_ids"]),
        ("name,address",      "Ann,Wien",                  ["address"]),
        ("name,payment_method", "Ann,4242424242424242",    ["payment_method"]),
    ],
)  # fmt: skip
def test_errors_name_line_and_column(tmp_path: Path, head: str, row: str, expected: list[str]) -> None:
    empty = "," * head.count(",")
    found = places(read(CustomerImporter, tmp_path / "a.csv", f"{head}\n{empty}\n{row}\n")[1])
    assert [(line, column) for line, column, _ in found] == [(3, column) for column in expected]


def test_columns_are_named_or_left_out(tmp_path: Path) -> None:
    content = "Firma,Mail,Notiz\nAnn,ann@example.com,x\n"
    with pytest.raises(WrongMapping, match="no fields: Firma, Mail, Notiz"):
        read(CustomerImporter, tmp_path / "a.csv", content)
    named = Columns({"name": "Firma", "email": "Mail"}, {"payment_method": "pm_card_visa"}, frozenset({"Notiz"}))
    (ann,) = states(read(CustomerImporter, tmp_path / "a.csv", content, columns=named)[0])
    assert (ann.name, ann.email, ann.payment_method) == ("Ann", "ann@example.com", "pm_card_visa")
    wrong = read(CustomerImporter, tmp_path / "a.csv", "Firma,Mail,Notiz\nAnn,-,x\n", columns=named)[1]
    assert places(wrong)[0][:2] == (2, "Mail")
    with pytest.raises(WrongMapping, match="there is no column Brand"):
        read(CustomerImporter, tmp_path / "a.csv", content, columns=Columns({"name": "Brand"}))
    assert places(read(CustomerImporter, tmp_path / "a.jsonl", '{"name":"Ann","nmae":"x"}')[1]) == [
        (1, "nmae", "extra_forbidden")
    ]


HEAD = "customer_id,product_id,started_at,backdate\n"


def test_a_subscription_starts_where_the_row_says(tmp_path: Path) -> None:
    view = view_with(customer("ann"), customer("bob"))
    content = HEAD + "ann,prod_1,2026-04-01T00:00:00+02:00,\nbob,prod_1,2026-03-01 00:00:00,TRUE\nbob,prod_2,,\n"
    checked, errors = read(SubscriptionImporter, tmp_path / "a.csv", content, view, zone=zone_of("Europe/Vienna"))
    assert errors == []
    ann, bob, now = states(checked)
    assert (ann.started_at, ann.time_zone) == (parse_rfc3339("2026-03-31T22:00:00Z"), "Europe/Vienna")
    assert bob.started_at == parse_rfc3339("2026-02-28T23:00:00Z")
    assert now.started_at == NOW
    # A day later the same file says the same: the one without a start too.
    later: list[LineError] = []
    again = SubscriptionImporter(view, "acme", NOW + 86_400_000_000, zone_of("Europe/Vienna"))
    found = again.check(rows(tmp_path / "a.csv", ".csv", Dialect()), PLAIN, later)
    assert (found.new, found.present, later) == ([], 3, [])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("cid,prod_1,,",                          (2, "customer_id", "unknown_reference")),
        ("old,prod_1,,",                          (2, "customer_id", "unknown_reference")),
        ("ann,prod_9,,",                          (2, "product_id", "unknown_reference")),
        ("ann,prod_1,2026-01-01T00:00:00Z,",      (2, "backdate", "backdate_required")),
        ("ann,prod_1,2026-01-01T00:00:00Z,maybe", (2, "backdate", "bool_parsing")),
        ("ann,prod_1,2026-01-01 00:00:00,true",   (2, "started_at", "timestamp_missing_offset")),
        ("ann,prod_1,2050-01-01T00:00:00Z,",      (2, "started_at", "started_at_range")),
    ],
)  # fmt: skip
def test_what_the_api_refuses_is_refused_by_line(tmp_path: Path, row: str, expected: tuple[object, ...]) -> None:
    view = view_with(customer("ann"), customer("old", archived=True))
    checked, errors = read(SubscriptionImporter, tmp_path / "a.csv", HEAD + row + "\n", view)
    assert places(errors) == [expected]
    assert checked.new == []


def test_rows_of_one_file_are_held_to_one_another(tmp_path: Path) -> None:
    view = view_with(customer("ann"))
    content = (
        HEAD + "ann,prod_1,2026-04-02T00:00:00Z,\nann,prod_1,2026-04-03T00:00:00Z,\nann,prod_1,2026-04-02T00:00:00Z,\n"
    )
    checked, errors = read(SubscriptionImporter, tmp_path / "a.csv", content, view)
    assert [error.line for error in errors] == [3]  # charged twice
    assert (len(checked.new), checked.present) == (1, 1)


def test_one_that_was_cancelled_since_is_the_same(tmp_path: Path) -> None:
    view = view_with(customer("ann"))
    content = HEAD + "ann,prod_1,2026-04-02T00:00:00Z,\n"
    (made,) = states(read(SubscriptionImporter, tmp_path / "a.csv", content, view)[0])
    assert isinstance(made, Subscription)
    assert view.apply(CatalogRecord(made.model_copy(update={"ends_at": NOW}), 1, NOW)) is None
    again, errors = read(SubscriptionImporter, tmp_path / "a.csv", content, view)
    assert (again.new, again.present, errors) == ([], 1, [])
