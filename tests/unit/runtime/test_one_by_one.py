"""A loop over many: what fails for one is that one's, and the others go on; what concerns everybody ends it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import structlog.testing

from runtime.one_by_one import FAILURES, OneByOne, reason_of


class Away(Exception):
    """A part that everybody needs does not answer."""


def loop(failed: dict[str, str]) -> OneByOne:
    return OneByOne("test", lambda error: isinstance(error, Away), failed.__setitem__)


def counted() -> float:
    return FAILURES.labels("test")._value.get()  # pyright: ignore[reportPrivateUsage]


def test_what_fails_for_one_is_told_and_the_others_go_on() -> None:
    failed, done, before = dict[str, str](), list[int](), counted()
    for number in (1, 0, 2):
        with loop(failed).one(str(number)):
            done.append(10 // number)
    assert done == [10, 5]
    assert failed == {"0": "ZeroDivisionError: integer division or modulo by zero"}
    assert counted() == before + 1


def test_a_loop_that_runs_for_ever_logs_the_same_failure_once() -> None:
    forever, before = loop({}), counted()
    with structlog.testing.capture_logs() as logged:
        for reason in ("a", "a", "b"):
            with forever.one("1"):
                raise ValueError(reason)
    assert [each["reason"] for each in logged] == ["ValueError: a", "ValueError: b"]
    assert counted() == before + 3


@pytest.mark.parametrize("error", [Away("broker"), MemoryError(), KeyboardInterrupt()])
def test_what_concerns_everybody_ends_the_loop(error: BaseException) -> None:
    failed = dict[str, str]()
    with pytest.raises(type(error)), loop(failed).one("1"):
        raise error
    assert failed == {}


def test_work_on_many_at_once_is_halved_until_what_fails_is_alone() -> None:
    failed, asked = dict[str, str](), list[Sequence[int]]()

    def inverses(numbers: Sequence[int]) -> list[float]:
        asked.append(numbers)
        return [1 / number for number in numbers]

    found = [each for part in loop(failed).by_halves([1, 2, 0, 4], inverses, str) for each in part]
    assert found == [1, 0.5, 0.25]
    assert list(failed) == ["0"]
    assert asked == [[1, 2, 0, 4], [1, 2], [0, 4], [0], [4]]


def test_nothing_is_asked_of_nothing() -> None:
    def never(_: Sequence[int]) -> None:
        raise AssertionError

    assert list(loop({}).by_halves([], never, str)) == []


def test_a_part_that_is_away_is_not_asked_of_halves() -> None:
    asked: list[Sequence[int]] = []

    def away(numbers: Sequence[int]) -> None:
        asked.append(numbers)
        raise Away

    with pytest.raises(Away):
        list(loop({}).by_halves([1, 2], away, str))
    assert len(asked) == 1


def test_a_reason_is_one_short_line() -> None:
    assert reason_of(ValueError("a\n  b")) == "ValueError: a b"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 5000))) < 600
