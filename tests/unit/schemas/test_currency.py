"""Rounding to what Stripe can charge, and its minor units: a row a case."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import currency
from schemas.currency import (
    CURRENCIES,
    NotMinorUnits,
    UnknownCurrency,
    amount_text,
    currency_units,
    from_minor,
    maximum_minor,
    round_to_minor,
    round_to_step,
    to_minor,
)

# fmt: off
ROUNDED = [
    # amount           currency  step     minor
    ("135",             "eur",  "135.00", 13500),
    ("1.004999999999",  "eur",  "1.00",   100),
    ("1.005",           "eur",  "1.01",   101),
    ("0.30",            "usd",  "0.30",   30),
    ("10",              "usd",  "10.00",  1000),   # Stripe: 10 USD is 1000
    ("500",             "jpy",  "500",    500),    # Stripe: 500 JPY is 500
    ("499.5",           "jpy",  "500",    500),
    ("499.49",          "jpy",  "499",    499),
    ("5.124",           "kwd",  "5.120",  5120),   # Stripe: 5.124 KWD must be 5120 or 5130
    ("5.125",           "kwd",  "5.130",  5130),
    ("5.1249",          "bhd",  "5.120",  5120),
    ("5",               "isk",  "5.00",   500),    # Stripe: 5 ISK is 500
    ("5.49",            "isk",  "5.00",   500),
    ("5.5",             "isk",  "6.00",   600),
    ("5",               "ugx",  "5.00",   500),    # Stripe: 5 UGX is 500
    ("10.45",           "huf",  "10.45",  1045),   # special for payouts only
    ("800.45",          "twd",  "800.45", 80045),
    ("1234",            "mga",  "1234",   1234),
    ("0",               "eur",  "0.00",   0),
    ("-1.005",          "eur",  "-1.01",  -101),   # half away from zero: a credit mirrors its charge
]
# fmt: on


@pytest.mark.parametrize(("amount", "code", "step", "minor"), ROUNDED)
def test_rounding(amount, code, step, minor):
    assert str(round_to_step(Decimal(amount), code)) == step
    assert round_to_minor(Decimal(amount), code) == minor
    assert to_minor(Decimal(step), code) == minor
    assert str(from_minor(minor, code)) == step


def test_rounding_of_a_fraction_without_end():
    assert round_to_minor(Fraction(100, 3), "eur") == 3333
    assert round_to_minor(Fraction(200, 3), "eur") == 6667


def test_what_is_no_minor_unit_is_not_rounded_in_silence():
    with pytest.raises(NotMinorUnits, match=r"0\.001 eur"):
        to_minor(Decimal("0.001"), "eur")
    with pytest.raises(NotMinorUnits):
        to_minor(Decimal("0.5"), "jpy")


@pytest.mark.parametrize(
    ("amount", "code", "text"),
    [
        ("21.000000000000", "eur", "21.00"), ("21", "eur", "21.00"), ("0.5", "eur", "0.50"), ("0.005", "eur", "0.005"),
        ("21.000", "jpy", "21"), ("1.5", "kwd", "1.500"), ("0E-12", "eur", "0.00"), ("-3.1", "eur", "-3.10"),
    ],
)  # fmt: skip
def test_an_amount_has_the_decimals_of_its_currency(amount, code, text):
    assert amount_text(Decimal(amount), code) == text


def test_unknown_currency():
    with pytest.raises(UnknownCurrency, match="'EUR'"):
        currency_units("EUR")


def test_the_table_names_each_currency_once():
    groups = [
        currency._TWO_DECIMAL,
        currency._ZERO_DECIMAL,
        currency._THREE_DECIMAL,
        currency._WHOLE_UNITS_OF_TWO_DECIMAL,
    ]
    codes = [code for group in groups for code in group.split()]
    assert sorted(codes) == sorted(CURRENCIES)
    assert all(code.islower() and len(code) == 3 for code in codes)


@given(st.decimals(-(10**40), 10**40, places=21), st.sampled_from(sorted(CURRENCIES)))
def test_rounding_goes_to_the_nearest_step(amount, code):
    units = currency_units(code)
    minor = round_to_minor(amount, code)
    assert minor % units.step_minor == 0
    assert abs(Fraction(amount) * 10**units.exponent - minor) * 2 <= units.step_minor
    with localcontext(Context(prec=3)):
        assert to_minor(from_minor(minor, code), code) == minor


# fmt: off
MAXIMA = [
    # currency  digits  minor
    ("eur",     8,      99_999_999),
    ("jpy",     8,      99_999_999),
    ("inr",     8,      999_999_999),
    ("cop",     8,      9_999_999_999),
    ("idr",     8,      999_999_999_999),
    ("eur",     10,     9_999_999_999),      # Stripe allows this merchant more
    ("inr",     10,     9_999_999_999),
    ("idr",     10,     999_999_999_999),    # more already
]
# fmt: on


@pytest.mark.parametrize(("code", "digits", "minor"), MAXIMA)
def test_the_most_that_is_charged_at_once(code: str, digits: int, minor: int) -> None:
    assert maximum_minor(code, digits) == minor
