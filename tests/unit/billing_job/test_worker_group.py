"""Parts of Stripe's rate: however many processes there are, together they keep the limit."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_job.stripe.rate import Pace
from billing_job.worker_group import rate_share


@pytest.mark.parametrize(
    ("is_worker", "own", "workers", "closers", "share"),
    [
        (True,  12, 1, 0, Fraction(1)),      # alone
        (True,   6, 2, 0, Fraction(1, 2)),
        (True,  12, 1, 1, Fraction(1, 2)),   # beside a close by hand
        (True,   0, 3, 0, Fraction(0)),      # more workers than partitions
        (False,  0, 0, 1, Fraction(1)),      # a close without workers
        (False,  0, 0, 0, Fraction(1)),      # which its group does not show yet
        (False,  0, 2, 1, Fraction(1, 2)),
        (False,  0, 2, 2, Fraction(1, 3)),
    ],
)  # fmt: skip
def test_share(is_worker: bool, own: int, workers: int, closers: int, share: Fraction) -> None:
    assert rate_share(is_worker=is_worker, own=own, partitions=12, workers=workers, closers=closers) == share


@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 5))
def test_all_together_keep_the_limit(partitions: int, workers: int, closers: int) -> None:
    owned = [len(range(number, partitions, workers)) for number in range(workers)]
    of_workers = [
        rate_share(is_worker=True, own=own, partitions=partitions, workers=workers, closers=closers) for own in owned
    ]
    of_closers = [rate_share(is_worker=False, own=0, partitions=partitions, workers=workers, closers=closers)] * closers
    assert sum(of_workers) + sum(of_closers) == (1 if workers or closers else 0)


def test_calls_are_spaced_by_the_part_that_is_held_then() -> None:
    parts = iter([Fraction(0), *[Fraction(1, 2)] * 10, *[Fraction(1)] * 20])
    pace = Pace(100, lambda: next(parts))
    with ThreadPoolExecutor(5) as pool:
        started = time.monotonic()
        list(pool.map(lambda _: pace.wait(), range(30)))
    # The first one at once (after it had no part for a moment), ten at 50 a second, the others at 100.
    assert time.monotonic() - started >= 10 / 50 + 19 / 100 - 0.01
