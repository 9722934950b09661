"""JSON → Decimal → JSON, never through a float; and the context in which nothing is rounded in silence.

Money and quantities are written as strings; a JSON integer is taken too, and a JSON number with decimals where the body
was read by `loads_exact`. A float has already lost what the client wrote, so it is refused rather than guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import (
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Overflow,
    getcontext,
    localcontext,
)
from functools import lru_cache, wraps
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

DECIMAL_PLACES_MAX = 12
QUANTITY_PLACES_MAX = 9
INTEGER_DIGITS_MAX = 18
TEXT_LENGTH_MAX = 64  # longer than any decimal within the bounds, written with an exponent or not

_DECIMAL_TEXT = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")

# A total has up to 38 digits, a unit amount 30; their product needs 68. Inexact is a trap: a result that would have to
# be rounded raises instead. FloatOperation is one as well, so that a float can't slip in by a comparison.
EXACT = Context(prec=120, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow, FloatOperation])

P = ParamSpec("P")
R = TypeVar("R")


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` in EXACT, whatever context its caller has set."""

    @wraps(function)
    def in_exact_context(*args: P.args, **kwargs: P.kwargs) -> R:
        context = getcontext()
        if context.prec == EXACT.prec and context.traps[Inexact]:  # as in EXACT: to enter it again costs a microsecond
            return function(*args, **kwargs)
        with localcontext(EXACT):
            return function(*args, **kwargs)

    return in_exact_context


def plain(number: Decimal) -> str:
    """A decimal as it is written by hand: digits and a point, no exponent. `Decimal("1E+3")` → `"1000"`."""
    text = str(number)  # a fifth of the time of format
    return format(number, "f") if "E" in text else text


@lru_cache(maxsize=65_536)  # equal numbers have one text, and most are on many lines
def decimal_text(number: Decimal) -> str:
    """Digits and a point, without trailing zeros: the same text however many decimals a store keeps."""
    text = plain(number)
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def loads_exact(body: bytes | str) -> Any:
    """Parse JSON with numbers with decimals as Decimal. Raises ValueError for NaN, Infinity and what is not JSON."""
    return json.loads(body, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=names_hook(body))


def names_hook(body: bytes | str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]] | None:
    """For json.loads: spells out halves of surrogate pairs in names of fields, so that errors can name the field."""
    escape = b"\\u" if isinstance(body, bytes) else "\\u"
    return _spelled_names if escape in body else None  # pyright: ignore[reportOperatorIssue]


def _spelled_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.encode(errors="backslashreplace").decode(): value for name, value in pairs}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _to_decimal(value: object) -> Decimal:
    """A decimal from a string, an integer or a Decimal; bool and float are refused."""
    if isinstance(value, Decimal):
        number = value
    elif isinstance(value, int) and not isinstance(value, bool):
        # An int's bit length is compared first: to spell a huge one out takes time quadratic in its length.
        if value.bit_length() > 4 * TEXT_LENGTH_MAX:
            raise PydanticCustomError("decimal_range", "the number has too many digits")
        number = Decimal(value)
    elif isinstance(value, str):
        if len(value) > TEXT_LENGTH_MAX or not _DECIMAL_TEXT.fullmatch(value):
            raise PydanticCustomError("decimal_parsing", 'a decimal number is expected, written like "0.002"')
        number = Decimal(value)
    elif isinstance(value, float):
        raise PydanticCustomError("decimal_float", 'write the decimal as a string, like "0.002"')
    else:
        raise PydanticCustomError("decimal_type", 'a decimal string is expected, like "0.002"')
    if not number.is_finite():
        raise PydanticCustomError("decimal_finite", "the number must be finite")
    if not number:
        # "-0" is 0; and "0e99" spelled out would be a hundred zeros.
        return Decimal((0, (0,), min(0, _exponent(number))))
    return number


def _exponent(number: Decimal) -> int:
    """Power of ten of a finite number's last digit."""
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


def _bounded(places_max: int) -> Callable[[Decimal], Decimal]:
    limit = Decimal(f"1e{INTEGER_DIGITS_MAX}")

    def check(number: Decimal) -> Decimal:
        if number.copy_abs() >= limit:
            raise PydanticCustomError(
                "decimal_range", "the number must be below 10^{digits}", {"digits": INTEGER_DIGITS_MAX}
            )
        if -_exponent(number) > places_max:
            raise PydanticCustomError("decimal_places", "at most {places} decimals are allowed", {"places": places_max})
        return number

    return check


def _not_negative(number: Decimal) -> Decimal:
    if number < 0:
        raise PydanticCustomError("decimal_negative", "the number must not be negative")
    return number


_JSON_SCHEMA = WithJsonSchema({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "examples": ["0.002"]})
_PLAIN = PlainSerializer(plain, return_type=str, when_used="json")
_PARSE = BeforeValidator(_to_decimal)

DecimalString = Annotated[Decimal, _PARSE, AfterValidator(_bounded(DECIMAL_PLACES_MAX)), _PLAIN, _JSON_SCHEMA]
"""Any decimal: |x| < 10^18, at most 12 decimals; a plain string in JSON."""
Amount = Annotated[DecimalString, AfterValidator(_not_negative)]
"""Money in major units, >= 0, at most 12 decimals."""
Quantity = Annotated[
    Decimal, _PARSE, AfterValidator(_bounded(QUANTITY_PLACES_MAX)), AfterValidator(_not_negative), _PLAIN, _JSON_SCHEMA
]
"""Units of usage, >= 0, at most 9 decimals: as fine as an event's value."""
