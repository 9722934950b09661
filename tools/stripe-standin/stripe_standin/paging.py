"""records → one page of Stripe's list object, newest first.

Source: Stripe, "Pagination": limit 1 to 100 (10), starting_after and ending_before name an object of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from stripe_standin.errors import InvalidParameter, missing
from stripe_standin.records import Record
from stripe_standin.state import Json, R


def limit(params: Json) -> int:
    wanted: int = params.get("limit", 10)
    if not 1 <= wanted <= 100:
        problem = "greater than or equal to 1" if wanted < 1 else "less than or equal to 100"
        raise InvalidParameter(f"This value must be {problem}.", "limit", "parameter_invalid_integer")
    return wanted


def listed(url: str, data: list[Any], has_more: bool) -> Json:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def page(
    newest_first: Iterable[R],
    params: Json,
    url: str,
    render: Callable[[R], Json],
    noun: str,
    matches: Callable[[R], bool] = lambda _: True,
) -> Json:
    """One page of the records that match. Raises InvalidParameter, or ApiError for an unknown cursor."""
    size = limit(params)
    records = [r for r in newest_first if matches(r)]
    after, before = params.get("starting_after"), params.get("ending_before")
    if after is not None and before is not None:
        raise InvalidParameter("You may only specify one of these parameters: ending_before, starting_after.")
    if after is not None:
        start = _position(records, after, "starting_after", noun) + 1
        rest = records[start:]
        return listed(url, [render(r) for r in rest[:size]], len(rest) > size)
    if before is not None:
        rest = records[: _position(records, before, "ending_before", noun)]
        return listed(url, [render(r) for r in rest[-size:]], len(rest) > size)
    return listed(url, [render(r) for r in records[:size]], len(records) > size)


def _position(records: list[R], id_: str, param: str, noun: str) -> int:
    for position, record in enumerate(records):
        if record.id == id_:
            return position
    raise missing(noun, id_, param, status=400)


def newest(records: Iterable[R]) -> list[R]:
    return list(records)[::-1]


def in_range(value: int | None, wanted: Any) -> bool:
    """Whether a time meets a filter: an exact time, or an object of gt, gte, lt, lte; no filter lets all pass."""
    if wanted is None:
        return True
    if value is None:
        return False
    if isinstance(wanted, int):
        return value == wanted
    tests: dict[str, Callable[[int, int], bool]] = {
        "gt": lambda a, b: a > b,
        "gte": lambda a, b: a >= b,
        "lt": lambda a, b: a < b,
        "lte": lambda a, b: a <= b,
    }
    return all(tests[name](value, bound) for name, bound in wanted.items())


def matching(params: Json, **fields: str) -> Callable[[Record], bool]:
    """A test of equality for every filter given; fields: name of the parameter → attribute of the record."""
    wanted = [(attribute, params[name]) for name, attribute in fields.items() if params.get(name) is not None]
    return lambda record: all(getattr(record, attribute) == value for attribute, value in wanted)
