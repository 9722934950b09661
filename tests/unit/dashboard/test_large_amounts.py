"""Amounts with more digits than a decimal context has: shown whole, on pages and in the files of finance."""

from __future__ import annotations

from decimal import Decimal

import pytest

from dashboard.pages.formats import money
from schemas.currency import amount_text

LARGE = Decimal("123456789012345678901234567890123456789012345.67")
LESS = LARGE.copy_negate()  # a minus sign would round it


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (LARGE, "eur", str(LARGE)),
        (LESS, "eur", str(LESS)),
        (Decimal("135"), "eur", "135.00"),
        (Decimal("135.100000000000"), "eur", "135.10"),
        (Decimal("0.123"), "eur", "0.123"),
        (Decimal("500"), "jpy", "500"),
        (Decimal("500.5"), "jpy", "500.5"),
    ],
)
def test_an_amount_in_a_file_has_the_decimals_of_its_currency(amount: Decimal, currency: str, text: str) -> None:
    assert amount_text(amount, currency) == text


def test_an_amount_on_a_page_has_all_its_digits() -> None:
    assert money(LARGE, "eur").replace(",", "") == f"€{LARGE}"
    assert money(LESS, "eur").replace(",", "") == f"−€{LARGE}"
