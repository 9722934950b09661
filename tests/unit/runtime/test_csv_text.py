"""One rule for text cells of every CSV file; numbers are no text."""

import pytest

from dashboard.finance import csv_chunks
from runtime.csv_text import safe_cell


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1",          "'=1+1"),
        ("+491701234567", "'+491701234567"),
        ("-5",            "'-5"),
        ("@x",            "'@x"),
        ("'t Hooft",      "''t Hooft"),
        ("\tx",           "'\tx"),
        ("Ann",           "Ann"),
        ("",              ""),
    ],
)  # fmt: skip
def test_text_that_a_spreadsheet_would_run(text: str, cell: str) -> None:
    assert safe_cell(text) == cell


def test_a_report_has_the_customer_id_as_the_usage_export_has_it() -> None:
    """A text of digits was taken for a number, so that the files did not join."""
    columns = ("number", "customer_id", "net", "quantity", "currency")
    row = ["+1", "+491701234567", "-12.50", "-3", "eur"]
    assert "".join(csv_chunks((columns, iter([[row]])))).splitlines()[1] == "'+1,'+491701234567,-12.50,-3,eur"
