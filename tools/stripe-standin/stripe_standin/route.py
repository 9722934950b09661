"""A method and a path → the function that answers, with the parameters it takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from stripe_standin import params
from stripe_standin.form import Form
from stripe_standin.state import Json, Scope

Handler: TypeAlias = Callable[[Scope, "tuple[str, ...]", Json], Json]
"""scope, what the path's {} stand for, checked parameters → the object to answer with."""


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    """`{}` stands for an id."""
    takes: str
    """The SDK's TypedDict of this endpoint's parameters."""
    supports: str
    """Names of the parameters implemented, blank-separated, dotted below the first level."""
    answer: Handler

    def check(self, form: Form) -> Json:
        schema = params.schema(self.takes)
        return params.check(schema, form, frozenset(self.supports.split()) | {"expand"})


class Router:
    """Finds the route; a wrong method or an unknown path is Stripe's 404."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._exact = {(r.method, r.path): r for r in routes if "{}" not in r.path}
        self._patterns = [
            (r.method, re.compile(re.escape(r.path).replace(r"\{\}", "([^/]+)")), r) for r in routes if "{}" in r.path
        ]

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact, ()
        for wanted, pattern, route in self._patterns:
            if wanted == method and (match := pattern.fullmatch(path)):
                return route, match.groups()
        return None
