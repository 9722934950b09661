"""Query parameters of the read API → periods. Raises Problem 422, naming the parameter."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, cast

from fastapi import Query

from dashboard.problems import field_problem
from runtime.problem import Problem
from schemas.period import Cycle, InvalidTimestamp, parse_rfc3339

From = Annotated[str | None, Query(alias="from", description="RFC 3339 with offset; inclusive", max_length=64)]
To = Annotated[str | None, Query(description="RFC 3339 with offset; exclusive", max_length=64)]


def instant(name: str, text: str) -> int:
    """µs since 1970."""
    try:
        return parse_rfc3339(text)
    except InvalidTimestamp as error:
        raise field_problem(name, error.code, str(error)) from None


def period(from_: str | None, to: str | None, default: Cycle) -> Cycle:
    """[from, to); what is not given is the default's."""
    start = default.start_us if from_ is None else instant("from", from_)
    end = default.end_us if to is None else instant("to", to)
    if end <= start:
        raise field_problem("to", "period_empty", "`to` must lie after `from`")
    return Cycle(start, end)


def encoded_place(*place: int | str) -> str:
    """A cursor: where a page of a list ended."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def decoded_place(cursor: str, *kinds: type[int] | type[str]) -> tuple[Any, ...]:
    """What was encoded, each of its kind. Raises Problem 422."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if not isinstance(values, list):
            raise wrong_cursor()
        return tuple(_of_kind(kind, value) for kind, value in zip(kinds, cast(list[Any], values), strict=True))
    except (ValueError, RecursionError):
        raise wrong_cursor() from None


def _of_kind(kind: type[int] | type[str], value: Any) -> int | str:
    """Raises ValueError for what no page can have encoded: ClickHouse's numbers and texts have their bounds."""
    if type(value) is not kind:
        raise ValueError("another kind")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("out of ClickHouse's bounds")
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair
    return value


def wrong_cursor() -> Problem:
    """422 for a cursor that is none of the list's."""
    return field_problem("cursor", "invalid_cursor", "this cursor was given by no page of this list")
