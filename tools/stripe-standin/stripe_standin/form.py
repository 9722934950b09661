"""application/x-www-form-urlencoded → nested parameters, as Stripe's brackets spell them.

`a=1`, `a[b]=1`, `a[]=1`, `a[0][b]=1`: what stands in brackets is a key of an object; a list is an object whose
keys are numbers until the endpoint's schema says that it is a list. Pure: text in, dictionaries and strings out.
"""

from __future__ import annotations

import re
from typing import TypeAlias
from urllib.parse import parse_qsl

Form: TypeAlias = "dict[str, FormValue]"
FormValue: TypeAlias = "str | Form"

_NAME = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
FIELDS_MAX = 10_000


class FormError(ValueError):
    """The text is not a form, or two of its fields contradict each other. `name` is the field."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


def decode(text: str) -> Form:
    """Decode a query string or a form body.

    text: percent-encoded UTF-8 pairs joined by `&`; empty is an empty form.
    Returns a dictionary of strings and dictionaries; empty brackets count from 0; a repeated name keeps the
    last value.
    Raises FormError on bad UTF-8, bad brackets, or a name used both as a value and as an object.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError as error:
        raise FormError(f"Invalid request body: {error}") from error
    root: Form = {}
    for name, value in pairs:
        match = _NAME.match(name)
        if match is None:
            raise FormError(f"Invalid parameter name: {name}", name)
        _put(root, [match.group(1), *_BRACKET.findall(match.group(2))], value, name)
    return root


def _put(node: Form, path: list[str], value: str, name: str) -> None:
    for part, following in zip(path, [*path[1:], None], strict=True):
        key = part if part else str(len(node))
        if following is None:
            if isinstance(node.get(key), dict):
                raise FormError(f"Invalid parameter: {name} is given both as a value and as an object", name)
            node[key] = value
            return
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise FormError(f"Invalid parameter: {name} is given both as a value and as an object", name)
        node = child


def canonical(form: Form) -> str:
    """One text for equal forms, whatever the order of their fields."""
    return "&".join(sorted(_flatten("", form)))


def _flatten(prefix: str, value: FormValue) -> list[str]:
    if isinstance(value, dict):
        return [t for key, child in value.items() for t in _flatten(f"{prefix}[{key}]", child)]
    return [f"{prefix}={value!r}"]
