"""Half of a surrogate pair in a body is named and refused, in whichever way it is written."""

from __future__ import annotations

import pytest

from dashboard.routing import _require_text  # pyright: ignore[reportPrivateUsage]
from runtime.problem import Problem


@pytest.mark.parametrize("body", [rb'{"a": ["\ud800"]}', b'{"a": ["\xed\xa0\x80"]}'])
def test_half_of_a_pair_is_refused(body: bytes) -> None:
    with pytest.raises(Problem):
        _require_text(body)


@pytest.mark.parametrize("body", [rb'{"a": "\ud83d\ude00"}', '{"a": "\ud55c\ud574"}'.encode(), b"{"])
def test_text_is_not(body: bytes) -> None:
    _require_text(body)
