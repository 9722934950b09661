"""a sum, weights → whole parts that add up to it. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def allocated(total: int, weights: Sequence[int]) -> list[int]:
    """Parts of total in proportion to weights, each the exact share rounded down or up; they add up to total.

    weights: may be negative. What rounding leaves goes to the greatest remainders, the first among equals. Where the
    weights add up to 0 there is no proportion, and the first takes all. Source: the largest remainder method.
    """
    if not weights:
        return []
    of = sum(weights)
    if of == 0:
        return [total, *(0 for _ in weights[1:])]
    shares = [divmod(total * weight, of) for weight in weights]
    left = total - sum(whole for whole, _ in shares)
    # The remainders have the sign of their divisor: by size, the greatest first.
    nearest = sorted(range(len(shares)), key=lambda index: -abs(shares[index][1]))
    up = set(nearest[:left])
    return [whole + (index in up) for index, (whole, _) in enumerate(shares)]
