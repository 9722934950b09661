"""Form fields and cursors that no page made: refused or left out, never an error of ours."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.pages.forms import nested
from dashboard.pages.products import example
from dashboard.read.parameters import decoded_place
from dashboard.routing import _require_text  # pyright: ignore[reportPrivateUsage]
from runtime.problem import Problem
from tests.unit.stream_processors.facts import meter


@pytest.mark.parametrize(
    ("fields", "tree"),
    [
        ({"prices.0.model": "volume", "name": "p"}, {"prices": [{"model": "volume"}], "name": "p"}),
        ({"prices": "x", "prices.0.model": "volume"}, {"prices": "x"}),
        ({"prices.0": "x", "prices.0.tiers.1.up_to": "1"}, {"prices": ["x"]}),
        ({".".join("a" * 2000): "x", "name": "p"}, {"name": "p"}),
        ({"": "x", "..": "y"}, {"": "x"}),
    ],
)
def test_fields_inside_of_a_text_are_left_out(fields: dict[str, str], tree: dict[str, Any]) -> None:
    assert nested(fields) == tree


@given(st.dictionaries(st.text("ab.01", max_size=12), st.text(max_size=2), max_size=8))
def test_any_names_make_a_tree(fields: dict[str, str]) -> None:
    nested(fields)


@pytest.mark.parametrize(
    "quantity", ["nan", "sNaN", "-NaN1", "Infinity", "1e999999", "-1", "x", "1_0", "٣", "1e-999999"]
)
def test_a_quantity_that_is_none_has_no_example(quantity: str) -> None:
    price = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}
    example(price, "eur", quantity, {"mtr_calls": meter("calls")})


CURSORS = [
    "[1e999]",
    "[NaN]",
    "[1e30]",
    "[true]",
    "[1.5]",
    '["1"]',
    "{}",
    "1",
    "null",
    "[9223372036854775808]",
    "[" * 3000,
]


@pytest.mark.parametrize("text", CURSORS)
def test_a_cursor_that_no_page_gave_is_named(text: str) -> None:
    with pytest.raises(Problem) as refused:
        decoded_place(base64.urlsafe_b64encode(text.encode()).decode(), int)
    assert (refused.value.status, refused.value.errors[0]["code"]) == (422, "invalid_cursor")


def test_half_of_a_surrogate_pair_is_no_id() -> None:
    with pytest.raises(Problem):
        decoded_place(base64.urlsafe_b64encode(b'[1,"\\ud800"]').decode(), int, str)


def test_half_of_a_surrogate_pair_in_a_document_is_named() -> None:
    """pydantic raises UnicodeEncodeError when it reports a price model of that name."""
    with pytest.raises(Problem) as refused:
        _require_text(b'{"prices":[{"model":"\\ud800"}]}')
    assert (refused.value.status, refused.value.errors[0]["field"]) == (422, "prices.0.model")
    _require_text(b'{"name":"\\ud83d\\ude00"}')
