"""A key, and its organization, may ask for so much of a process and no more; another one is not affected."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from runtime.limits import KeyLimits, RateLimit
from runtime.problem import Problem
from schemas.settings import Settings

_CODE = "too_many_requests"


def limits(**given: int) -> KeyLimits:
    """On a clock that stands, so that no allowance comes back while a slow machine counts."""
    values: dict[str, Any] = given
    return KeyLimits(Settings(**values), clock=lambda: 1_000.0)


def refused(made: KeyLimits, organization: str, key: str) -> bool:
    try:
        made.admit(organization, key)
    except Problem as problem:
        return (problem.status, problem.code, int(problem.headers["retry-after"]) >= 1) == (429, _CODE, True)
    return False


def test_by_default_a_busy_producer_with_some_failures_meets_no_limit() -> None:
    made = limits()
    for _ in range(5_000):
        made.admit("o", "k")
        made.answered("o", "k", 422)


def test_by_default_failures_are_limited_by_key_and_by_organization() -> None:
    made = limits()
    for _ in range(6_100):
        made.answered("o", "k", 422)
    assert refused(made, "o", "k")
    assert not refused(made, "o", "another")
    for number in range(62_000 - 6_100):
        made.answered("o", f"k{number % 20}", 400)
    assert refused(made, "o", "another")
    assert not refused(made, "another", "k")


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        # as many at once as there may be in the time, then one each fifth of it
        ((0, 0, 0, 0, 0, 0, 0),    (0, 0, 0, 0, 0, 2, 2)),
        ((0, 0, 0, 0, 0, 1, 2),    (0, 0, 0, 0, 0, 1, 0)),
        ((0, 0, 0, 0, 0, 2, 2, 4), (0, 0, 0, 0, 0, 0, 2, 0)),
        ((0, 2, 4, 6, 8, 10, 12),  (0, 0, 0, 0, 0, 0, 0)),
        ((0, 0, 0, 0, 0, 100, 100, 100, 100, 100, 100), (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)),
    ],
)  # fmt: skip
def test_five_in_ten_seconds(at: Sequence[float], seconds: Sequence[float]) -> None:
    """at: when each is asked for. seconds: to wait; 0: it may be."""
    now = iter([1000.0 + each for each in at])
    limit = RateLimit(5, 10.0, lambda: next(now))
    assert [pytest.approx(limit.take("k")) for _ in at] == list(seconds)


def test_names_that_were_quiet_longest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.limits._NAMES_MAX", 3)
    limit = RateLimit(1, 10.0, lambda: 1000.0)
    assert [limit.take(name) for name in "abcabd"] == [0, 0, 0, 10, 10, 0]
    assert [bool(limit.wait(name)) for name in "abcd"] == [True, True, False, True]


def test_requests_of_a_key_are_limited() -> None:
    made = limits(key_requests_per_second=5)
    assert [refused(made, "o", "k") for _ in range(6)] == [False] * 5 + [True]
    assert not refused(made, "o", "another")


def test_requests_of_an_organization_are_limited_over_all_its_keys() -> None:
    made = limits(organization_requests_per_second=5)
    assert [refused(made, "o", f"k{n}") for n in range(6)] == [False] * 5 + [True]
    assert not refused(made, "another", "k")


def test_failures_are_limited_and_successes_are_not() -> None:
    made = limits(key_failures_per_minute=3)
    for status in (200, 404, 409, 503) * 5:
        made.answered("o", "k", status)
    assert not refused(made, "o", "k")
    for status in (400, 413, 422):
        made.answered("o", "k", status)
    assert refused(made, "o", "k")
    assert not refused(made, "o", "another")


def test_open_streams_are_limited_and_free_again_when_they_end() -> None:
    made = limits(key_streams_max=2, organization_streams_max=3)
    with ExitStack() as opened:
        for key in ("a", "a", "b"):
            opened.enter_context(made.stream("o", key))
        for key in ("a", "c"):
            with pytest.raises(Problem) as problem, made.stream("o", key):
                pass
            assert problem.value.status == 429
        with made.stream("another", "a"):
            pass
    with made.stream("o", "a"):
        pass
