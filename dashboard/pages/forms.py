"""form fields ⇄ the API's objects: what a page posts is what a client would, so both have the same errors."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from catalog.store import CatalogConflict, CatalogUnavailable
from dashboard.problems import as_problem
from runtime.problem import Problem

T = TypeVar("T")

Errors = Mapping[str, str]
"""field → what is wrong with it; "" for what no field is at fault of."""

NO_ERRORS: Errors = {}
_LIST_MAX = 200
_DEPTH_MAX = 8
REQUEST_FIELD = "request"
"""Field with the form's own Idempotency-Key, made with the form: what is sent twice makes one object."""
_WORDS = {
    "idempotency_key_reused": "This form was saved before, with other values. Go back to the list to see the result.",
}


def filled(fields: Mapping[str, str]) -> dict[str, str]:
    """What was filled in: an empty field is one that was not sent. Without the form's request key."""
    return {name: text.strip() for name, text in fields.items() if text.strip() and name != REQUEST_FIELD}


def request_key(form: Mapping[str, str]) -> str | None:
    """The form's Idempotency-Key."""
    return form.get(REQUEST_FIELD) or None


def new_request_key() -> str:
    """For a new form."""
    return secrets.token_hex(16)


def nested(fields: Mapping[str, str]) -> dict[str, Any]:
    """{"prices.0.model": "volume"} → {"prices": [{"model": "volume"}]}. Numbers in a name are places in a list.

    Fields that no page has are left out: those inside of a field that has a text, and deeper ones than any form's.
    """
    tree: dict[str, Any] = {}
    for name, text in fields.items():
        *parents, last = name.split(".")
        if len(parents) > _DEPTH_MAX:
            continue
        at: Any = tree
        for part in parents:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                break
        else:
            at[last] = text
    return {name: _listed(value) for name, value in tree.items()}


def _listed(value: Any) -> Any:
    """Mappings with numbers for keys as lists, in the numbers' order and without the gaps that removing left."""
    if not isinstance(value, dict):
        return value
    items: dict[str, Any] = {str(key): _listed(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownArgumentType]
    if items and all(key.isdecimal() and len(key) <= 4 for key in items):
        return [items[key] for key in sorted(items, key=int)][:_LIST_MAX]
    return items


def listed(text: str) -> list[str]:
    """What a person lists in one field: separated by commas, spaces or lines."""
    return [name for name in re.split(r"[,\s]+", text) if name]


def errors_of(problem: Problem) -> Errors:
    """The problem's errors by field, the first of each."""
    if problem.code in _WORDS:
        return {"": _WORDS[problem.code]}
    found: dict[str, str] = {}
    for error in problem.errors:
        found.setdefault(error["field"] or "", _in_words(error))
    return found or {"": _sentence(problem.detail)}


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PREFIX = re.compile(r"\^([a-z]+_)")
_PATTERNS = {"address.country": "Use a two-letter country code, e.g. AT."}
_OF_VALIDATOR: Mapping[str, str] = {
    "missing": "Enter a value.",
    "string_type": "Enter a value.",
    "string_too_short": "Enter a value.",
    "string_too_long": "Use {} characters or fewer.",
    "string_pattern_mismatch": "Check the format.",
    "greater_than": "Enter a number above {}.",
    "greater_than_equal": "Enter {} or more.",
    "less_than_equal": "Enter {} or less.",
    "decimal_parsing": "Enter a number, e.g. 1000 or 0.002.",
    "decimal_type": "Enter a number, e.g. 1000 or 0.002.",
    "int_parsing": "Enter a whole number.",
    "int_from_float": "Enter a whole number.",
    "too_short": "Add at least {}.",
    "too_long": "Use at most {}.",
}
"""The validator's codes, which a page's visitor would read as a program's messages; {}: the number that it names."""


def _in_words(error: Mapping[str, str]) -> str:
    pattern = _OF_VALIDATOR.get(error["code"])
    if pattern is None:
        return _sentence(error["message"])
    if error["code"] == "string_pattern_mismatch":
        prefix = _PREFIX.search(error["message"])
        return f"Enter an ID that starts with {prefix[1]}." if prefix else _PATTERNS.get(error["field"] or "", pattern)
    number = _NUMBER.search(error["message"])
    return pattern.format(number[0] if number else "")


def _sentence(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].upper() + text[1:]


async def attempted(making: Awaitable[T]) -> tuple[T | None, Errors, int]:
    """What was made, or the errors to show in the form, and the status to show them with.

    What is not there (404) is raised: there is no form to show then.
    """
    try:
        return await making, NO_ERRORS, 200
    except (Problem, CatalogConflict, CatalogUnavailable) as error:
        problem = as_problem(error)
        if problem.status == 404:
            raise problem from None
        return None, errors_of(problem), problem.status
