"""A sum is shared out to the last unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.allocation import allocated

whole = st.integers(-(10**12), 10**12)


@pytest.mark.parametrize(("total", "weights", "parts"), [
    (0,    [1, 2],             [0, 0]),
    (10,   [1, 1],             [5, 5]),
    (10,   [1, 1, 1],          [4, 3, 3]),
    (100,  [1, 2, 4],          [14, 29, 57]),
    (7,    [0, 5],             [0, 7]),
    (19,   [200, -100],        [38, -19]),
    (-10,  [1, 2],             [-3, -7]),
    (5,    [1, -1],            [5, 0]),
    (5,    [],                 []),
])  # fmt: skip
def test_parts(total: int, weights: list[int], parts: list[int]) -> None:
    assert allocated(total, weights) == parts


@given(whole, st.lists(whole, min_size=1, max_size=20))
def test_parts_add_up_and_are_the_exact_shares_rounded(total: int, weights: list[int]) -> None:
    parts = allocated(total, weights)
    assert sum(parts) == total
    of = sum(weights)
    if of:
        assert all(abs(part * of - total * weight) < abs(of) for part, weight in zip(parts, weights, strict=True))
