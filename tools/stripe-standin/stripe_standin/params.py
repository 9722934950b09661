"""a form → checked parameters, by the official SDK's own types.

The SDK publishes a TypedDict for every endpoint of the API version that it pins (`stripe.params`): every
parameter with its type, which are required, the values of every enumeration. They are turned into schemas
once, so what the stand-in accepts is what that version of Stripe accepts: an unknown, missing or wrongly
typed parameter is refused as Stripe refuses it. A parameter that Stripe knows and the stand-in does not
implement is refused too, by a message that says so: nothing is taken and ignored.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Literal, get_args, get_origin

import stripe.params
from stripe._request_options import RequestOptions
from stripe._stripe_object import UntypedStripeObject
from typing_extensions import is_typeddict

from stripe_standin.errors import InvalidParameter
from stripe_standin.form import Form, FormValue

_OPTIONS = frozenset(RequestOptions.__annotations__)
_NAMES = {"Mapping": Mapping, "StripeContext": object}  # imported by the SDK for type checkers only


@dataclass(frozen=True, slots=True)
class Text:
    """A string; `choices` is empty when any will do."""

    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Number:
    """`whole`: an integer; otherwise a decimal."""

    whole: bool


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    of: Schema


@dataclass(frozen=True, slots=True)
class Words:
    """An object of any names with strings for values, such as metadata."""


@dataclass(frozen=True, slots=True)
class Fields:
    """An object of known names."""

    fields: Mapping[str, Schema]
    required: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several forms; `unset`: an empty string is allowed and clears the value."""

    options: tuple[Schema, ...]
    unset: bool


Schema = Text | Number | Flag | Items | Words | Fields | Either


@cache
def schema(name: str) -> Fields:
    """The schema of an endpoint's parameters; name is that of the SDK's TypedDict, as `InvoiceCreateParams`."""
    return _fields(getattr(stripe.params, name))


def _fields(kind: Any) -> Fields:
    hints = typing.get_type_hints(kind, None, _NAMES)
    names = [n for n in hints if n not in _OPTIONS]
    required = tuple(n for n in names if n in kind.__required_keys__)
    return Fields({n: _schema(hints[n]) for n in names}, required)


def _schema(hint: Any) -> Schema:
    origin, args = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        return _fields(hint)
    if origin is Literal:
        return Text(tuple(a for a in args if a)) if any(args) else Either((), unset=True)
    if origin in (typing.Union, types.UnionType):
        return _union(args)
    if origin in (list, typing.List):  # noqa: UP006 - the SDK spells it so
        return Items(_schema(args[0]))
    if origin in (dict, UntypedStripeObject):
        return Words()
    scalar: dict[Any, Schema] = {
        str: Text(),
        int: Number(True),
        float: Number(False),
        Decimal: Number(False),
        bool: Flag(),
    }
    if hint in scalar:
        return scalar[hint]
    raise TypeError(f"a parameter type that the stand-in does not know: {hint!r}")


def _union(args: tuple[Any, ...]) -> Schema:
    """`Literal['']|T` is a T that can be cleared; `Literal[…]|str` is an enumeration that may grow."""
    unset = any(get_origin(a) is Literal and get_args(a) == ("",) for a in args)
    rest = [_schema(a) for a in args if not (get_origin(a) is Literal and get_args(a) == ("",))]
    if any(isinstance(o, Text) and o.choices for o in rest):
        rest = [o for o in rest if o != Text()]
    if len(rest) == 1 and not unset:
        return rest[0]
    return Either(tuple(rest), unset)


def check(kind: Fields, form: Form, supported: frozenset[str]) -> dict[str, Any]:
    """Check a form against a schema.

    supported: names that the stand-in implements, dotted below the first level; a name covers all beneath it.
    Returns the parameters given, typed (int, Decimal, bool, str, list, dict); one that is cleared by an empty
    string is None, one not given is absent. Raises InvalidParameter.
    """
    values = _check_fields(kind, form, "")
    for path, param in _leaves(kind, form, "", ""):
        if not any(path == s or path.startswith(s + ".") or s.startswith(path + ".") for s in supported):
            raise InvalidParameter(f"The stand-in does not implement this parameter of Stripe's: {param}", param)
    return values


def _leaves(kind: Schema, value: FormValue, path: str, param: str) -> list[tuple[str, str]]:
    """(dotted path without list positions, name in brackets) of every value given."""
    if isinstance(value, str) or isinstance(kind, Words):
        return [(path, param)]
    if isinstance(kind, Either):
        kind = next((o for o in kind.options if isinstance(o, (Fields, Items, Words))), Words())
        return _leaves(kind, value, path, param)
    if isinstance(kind, Items):
        return [leaf for i, child in value.items() for leaf in _leaves(kind.of, child, path, f"{param}[{i}]")]
    assert isinstance(kind, Fields)  # the check of types came first
    return [
        leaf
        for key, child in value.items()
        for leaf in _leaves(
            kind.fields[key], child, f"{path}.{key}" if path else key, f"{param}[{key}]" if param else key
        )
    ]


def _check_fields(kind: Fields, form: Form, param: str) -> dict[str, Any]:
    name = (lambda key: f"{param}[{key}]") if param else (lambda key: key)
    unknown = [name(key) for key in form if key not in kind.fields]
    if unknown:
        some = "parameter" if len(unknown) == 1 else "parameters"
        raise InvalidParameter(f"Received unknown {some}: {', '.join(unknown)}", unknown[0], "parameter_unknown")
    for key in kind.required:
        if key not in form:
            raise InvalidParameter(f"Missing required param: {name(key)}.", name(key), "parameter_missing")
    return {key: _check(kind.fields[key], value, name(key), key in kind.required) for key, value in form.items()}


def _check(kind: Schema, value: FormValue, param: str, required: bool = False) -> Any:
    if isinstance(kind, Either):
        return _check_either(kind, value, param)
    if isinstance(kind, Fields):
        if not isinstance(value, dict):
            raise InvalidParameter("Invalid object", param)
        return _check_fields(kind, value, param)
    if isinstance(kind, Words):
        return _check_words(value, param)
    if isinstance(kind, Items):
        if not (isinstance(value, dict) and all(key.isdigit() for key in value)):
            raise InvalidParameter("Invalid array", param)
        return [_check(kind.of, value[i], f"{param}[{i}]", True) for i in sorted(value, key=int)]
    return _check_scalar(kind, value, param, required)


def _check_either(kind: Either, value: FormValue, param: str) -> Any:
    if value == "" and kind.unset:
        return None
    errors: list[InvalidParameter] = []
    for option in kind.options:
        try:
            return _check(option, value, param)
        except InvalidParameter as error:
            errors.append(error)
    # The most telling error is that of the option whose form (object, list or plain) the value has.
    plain = not isinstance(value, dict)
    matching = [e for o, e in zip(kind.options, errors, strict=True) if isinstance(o, (Text, Number, Flag)) is plain]
    raise (matching or errors or [InvalidParameter(f"Invalid {param}", param)])[-1]


def _check_words(value: FormValue, param: str) -> dict[str, str]:
    """Source: Stripe, "Metadata": 50 keys of up to 40 characters, values of up to 500."""
    if not isinstance(value, dict):
        raise InvalidParameter("Invalid object", param)
    words: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            raise InvalidParameter(f"Invalid string: {param}[{key}] must be a string", f"{param}[{key}]")
        if len(key) > 40:
            raise InvalidParameter("Metadata keys can have a maximum of 40 characters", param)
        if len(text) > 500:
            raise InvalidParameter(
                "Metadata values can have up to 500 characters, but you passed in a value that is "
                f"{len(text)} characters.",
                f"{param}[{key}]",
            )
        words[key] = text
    return words


def _check_scalar(kind: Text | Number | Flag, value: FormValue, param: str, required: bool) -> Any:
    if not isinstance(value, str):
        raise InvalidParameter(f"Invalid {_word(kind)}: {param} must be a single value", param)
    if value == "":
        if isinstance(kind, Text) and not kind.choices and not required:
            return None  # Stripe takes an empty string for an optional text as "clear it"
        raise InvalidParameter(
            f"You passed an empty string for '{param}'. We assume empty values are an attempt to unset a parameter; "
            f"however '{param}' cannot be unset. You should remove '{param}' from your request or supply a "
            "non-empty value.",
            param,
            "parameter_invalid_empty",
        )
    if isinstance(kind, Text):
        return _check_text(kind, value, param)
    if isinstance(kind, Flag):
        if value not in ("true", "false"):
            raise InvalidParameter(f"Invalid boolean: {value}", param)
        return value == "true"
    return _check_number(kind, value, param)


def _check_text(kind: Text, value: str, param: str) -> str:
    if kind.choices and value not in kind.choices:
        head, last = ", ".join(kind.choices[:-1]), kind.choices[-1]
        raise InvalidParameter(f"Invalid {param}: must be one of {head + ', or ' if head else ''}{last}", param)
    if len(value) > 5000:
        raise InvalidParameter(
            f"Invalid string: {value[:5]}...{value[-5:]}; must be at most 5000 characters",
            param,
            "parameter_invalid_string_too_long",
        )
    return value


def _check_number(kind: Number, value: str, param: str) -> int | Decimal:
    digits = value.removeprefix("-")
    if kind.whole:
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise InvalidParameter(f"Invalid integer: {value}", param, "parameter_invalid_integer")
        return int(value)
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise InvalidParameter(f"Invalid decimal: {value}", param)
    return number


def _word(kind: Text | Number | Flag) -> str:
    if isinstance(kind, Text):
        return "string"
    return "boolean" if isinstance(kind, Flag) else "integer" if kind.whole else "decimal"


def merged(old: Mapping[str, str], given: Mapping[str, str] | None) -> dict[str, str]:
    """Metadata after an update: given keys replace, an empty value removes its key, None removes all.

    Raises InvalidParameter when more than 50 keys remain.
    """
    if given is None:
        return {}
    result = {key: text for key, text in {**old, **given}.items() if text != ""}
    if len(result) > 50:
        raise InvalidParameter(f"You can have up to 50 metadata keys, but you passed in {len(result)}", "metadata")
    return result
