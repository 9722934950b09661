"""A key, and its organization, may ask for so much of a process and no more; another one is not affected."""

from contextlib import ExitStack
from typing import Any

import pytest

from runtime.limits import KeyLimits
from runtime.problem import Problem
from schemas.settings import Settings

_CODE = "too_many_requests"


def limits(**given: int) -> KeyLimits:
    values: dict[str, Any] = given
    return KeyLimits(Settings(**values))


def refused(made: KeyLimits, organization: str, key: str) -> bool:
    try:
        made.admit(organization, key)
    except Problem as problem:
        return (problem.status, problem.code, int(problem.headers["retry-after"]) >= 1) == (429, _CODE, True)
    return False


def test_without_settings_requests_and_failures_have_no_limit() -> None:
    made = limits()
    for _ in range(2000):
        made.admit("o", "k")
        made.answered("o", "k", 422)


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
