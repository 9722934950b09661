"""Pages never show a validator's sentence, a state's code or a field's path."""

from __future__ import annotations

import pytest

from dashboard.pages.formats import status
from dashboard.pages.forms import errors_of, listed
from runtime.problem import Problem

STATES = [
    ("paid",           "Paid"),
    ("payment_failed", "Payment failed"),
    ("computed",       "Calculated"),
    ("waiting",        "Processing"),
    ("mismatch",       "On hold: counts differ"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "shown"), STATES)
def test_the_status_of_an_invoice(state: str, shown: str) -> None:
    assert status(state) == shown


@pytest.mark.parametrize(
    ("typed", "names"), [("", []), (" ", []), ("a", ["a"]), ("a, b", ["a", "b"]), ("a b\n,c,", ["a", "b", "c"])]
)
def test_a_list_is_separated_by_commas_or_spaces(typed: str, names: list[str]) -> None:
    assert listed(typed) == names


MESSAGES = [
    ("name",            "missing",                 "Field required",                                             "Enter a value."),
    ("name",            "string_too_short",        "String should have at least 1 character",                    "Enter a value."),
    ("name",            "string_too_long",         "String should have at most 256 characters",                  "Use 256 characters or fewer."),
    ("address.country", "string_pattern_mismatch", "String should match pattern '^[A-Z]{2}$'",                   "Use a two-letter country code, e.g. AT."),
    ("tax_rates.0",     "string_pattern_mismatch", "String should match pattern '^txr_[A-Za-z0-9]+$'",           "Enter an ID that starts with txr_."),
    ("unit",            "string_pattern_mismatch", "String should match pattern '^[a-z]+$'",                     "Check the format."),
    ("threshold",       "greater_than",            "Input should be greater than 0",                             "Enter a number above 0."),
    ("grace_seconds",   "int_parsing",             "Input should be a valid integer, unable to parse string …",  "Enter a whole number."),
    ("threshold",       "decimal_parsing",         'a decimal number is expected, written like "0.002"',         "Enter a number, e.g. 1000 or 0.002."),
    ("url",             "refused_target",          "10.0.0.1 is a private address: use a public https URL",      "10.0.0.1 is a private address: use a public https URL"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "code", "message", "shown"), MESSAGES)
def test_what_a_form_says_of_a_field(field: str, code: str, message: str, shown: str) -> None:
    problem = Problem(422, "invalid_request", "", [{"field": field, "code": code, "message": message}])
    assert errors_of(problem) == {field: shown}
