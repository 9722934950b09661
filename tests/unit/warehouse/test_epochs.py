"""Two topics never have one number, and a topic's number is the same for everyone who asks."""

from __future__ import annotations

from itertools import permutations

import pytest

from warehouse.epochs import Claim, settle

# claims (claimed_at, topic, epoch) → what is settled
CASES: list[tuple[list[tuple[int, str, int]], dict[str, int]]] = [
    ([], {}),
    ([(1, "a", 1)], {"a": 1}),
    ([(1, "a", 1), (2, "b", 2)], {"a": 1, "b": 2}),
    ([(1, "a", 1), (2, "a", 1)], {"a": 1}),                              # two sinks started at once
    ([(1, "a", 1), (2, "b", 1)], {"a": 1}),                              # b lost, and has to claim again
    ([(2, "a", 1), (2, "b", 1)], {"a": 1}),                              # in the same moment
    ([(1, "a", 1), (2, "b", 1), (3, "b", 2)], {"a": 1, "b": 2}),         # which it did
    ([(1, "a", 1), (2, "b", 1), (3, "b", 2), (4, "c", 2)], {"a": 1, "b": 2}),
    ([(1, "a", 1), (2, "a", 2)], {"a": 1}),                              # a number once given stays,
    ([(1, "a", 2), (2, "a", 1)], {"a": 2}),                              # whatever is claimed later
    ([(1, "a", 1), (2, "b", 2), (3, "a", 2), (4, "b", 3)], {"a": 1, "b": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("claims", "settled"), CASES)
def test_settled(claims: list[tuple[int, str, int]], settled: dict[str, int]) -> None:
    for order in permutations(claims):
        assert settle(Claim(*claim) for claim in order) == settled
