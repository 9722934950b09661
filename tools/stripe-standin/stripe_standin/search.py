"""/v1/…/search: Stripe's query language, over an index that lags behind by a minute.

Source: Stripe, "Search": clauses `field:"value"`, `-field:…`, `field~"part"`, numbers with < <= > >=, joined by
AND or by OR, never both; metadata["key"]; "under normal operating conditions, data is searchable in less than a
minute". The stand-in shows an object once `search_lag_seconds` have passed since it was created.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stripe_standin.errors import InvalidParameter
from stripe_standin.paging import limit
from stripe_standin.state import Json, R, Scope

_CLAUSE = re.compile(
    r"""\s*(?P<not>-)?(?P<field>\w+)(?:\[["'](?P<key>[^"']*)["']\])?\s*(?P<op><=|>=|[:<>~])\s*"""
    r"""(?:["'](?P<text>[^"']*)["']|(?P<word>[\w.-]+))\s*"""
)
_JOIN = re.compile(r"(AND|OR)\b")
_NUMERIC: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Clause:
    field: str
    key: str | None
    op: str
    value: str
    negated: bool

    def holds(self, obj: Json) -> bool:
        value: Any = obj.get(self.field)
        if self.key is not None:
            value = (value or {}).get(self.key)
        return self._compare(value) is not self.negated

    def _compare(self, value: Any) -> bool:
        if self.value == "null":
            return value is None
        if value is None:
            return False
        if self.op in _NUMERIC:
            return isinstance(value, int) and _NUMERIC[self.op](value, int(self.value))
        if self.op == "~":
            return self.value.lower() in str(value).lower()
        return str(value).lower() == self.value.lower()


def parse(query: str) -> tuple[list[Clause], bool]:
    """Clauses, and whether all of them must hold (AND) or any (OR). Raises InvalidParameter."""
    clauses: list[Clause] = []
    joins: set[str] = set()
    position = 0
    while True:
        match = _CLAUSE.match(query, position)
        if match is None:
            raise InvalidParameter(f"We were unable to parse your search query: {query}", "query")
        value = match["text"] if match["text"] is not None else match["word"]
        if match["op"] in _NUMERIC and not value.isdigit():
            raise InvalidParameter(f"We were unable to parse your search query: {query}", "query")
        clauses.append(Clause(match["field"], match["key"], match["op"], value, match["not"] is not None))
        position = match.end()
        if position == len(query):
            break
        join = _JOIN.match(query, position)
        if join is None:
            raise InvalidParameter(f"We were unable to parse your search query: {query}", "query")
        joins.add(join[1])
        position = join.end()
    if len(joins) > 1:
        raise InvalidParameter("You cannot combine AND and OR in one search query", "query")
    return clauses, joins != {"OR"}


def result(scope: Scope, newest_first: Iterable[R], params: Json, url: str, render: Callable[[R], Json]) -> Json:
    """One page of what the index has by now."""
    clauses, conjunction = parse(params["query"])
    size, start = limit(params), int(params.get("page") or 0)
    indexed = scope.now - scope.settings.search_lag_seconds
    found: list[Json] = []
    for record in newest_first:
        if record.created <= indexed:
            obj = render(record)
            if (all if conjunction else any)(clause.holds(obj) for clause in clauses):
                found.append(obj)
    more = len(found) > start + size
    return {
        "object": "search_result",
        "data": found[start : start + size],
        "has_more": more,
        "next_page": str(start + size) if more else None,
        "url": url,
    }
