"""The fields of a usage event: its limits, its identity, and the model that names everything that is wrong with one.

The gateway's hot path (ingest_gateway/decode.py) decodes with msgspec; only a batch that fails is read again with this
model. Value and timestamp are read by the same functions in both, and a property test holds the two to one verdict.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from schemas.period import SECOND_US, InvalidTimestamp, parse_rfc3339

EVENTS_PER_BATCH_MAX = 1000
TEXT_LENGTH_MAX = 256
PROPERTIES_MAX = 20
PROPERTY_KEY_LENGTH_MAX = 64
PROPERTY_VALUE_LENGTH_MAX = 256
VALUE_SCALE = 9  # decimals of a value, at most
VALUE_DIGITS_MAX = 18  # |value| < 10^18
VALUE_TEXT_LENGTH_MAX = 64
TIMESTAMP_AHEAD_US_MAX = 10 * 60 * SECOND_US

UNSCALED_LIMIT = 10 ** (VALUE_DIGITS_MAX + VALUE_SCALE)
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,9}))?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


# -- identity ----------------------------------------------------------------------------------------------------------

NO_IDENTITY = ""  # the event's own coordinates are its identity


def client_identity(event_id: str) -> str:
    """Identity of an event that its producer named."""
    return f"c:{event_id}"


def request_identity(idempotency_key: str, index: int) -> str:
    """Identity of the event at `index` of a request with an Idempotency-Key.

    The tag keeps kinds apart; the index comes last, after the last colon, so that no two keys meet.
    """
    return f"k:{idempotency_key}:{index}"


# -- value and timestamp -----------------------------------------------------------------------------------------------


class InvalidField(ValueError):
    """A field's text that can't be taken. code: machine-readable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def unscaled_value(text: str) -> int:
    """value × 10⁹ of a decimal as JSON spells numbers, exact: `"0.25"` → 250_000_000. Raises InvalidField."""
    parts = _NUMBER.fullmatch(text) if len(text) <= VALUE_TEXT_LENGTH_MAX else None
    if parts is None:
        if _NOT_FINITE.fullmatch(text):
            raise InvalidField("value_not_finite", "value must be a finite number")
        if len(text) > VALUE_TEXT_LENGTH_MAX:
            raise InvalidField("value_too_long", f"value is spelled with more than {VALUE_TEXT_LENGTH_MAX} characters")
        raise InvalidField("value_invalid", f"value is no decimal number: {text!r}")
    sign, whole, fraction, exponent = parts[1], parts[2], (parts[3] or "").rstrip("0"), int(parts[4] or 0)
    digits = int(whole + fraction)
    if digits == 0:
        return 0
    shift = exponent - len(fraction) + VALUE_SCALE  # unscaled = digits × 10^shift
    if shift > VALUE_DIGITS_MAX + VALUE_SCALE:
        raise InvalidField("value_out_of_range", f"|value| must be below 10^{VALUE_DIGITS_MAX}")
    if shift >= 0:
        unscaled = digits * 10**shift
    else:
        unscaled, rest = divmod(digits, 10 ** min(-shift, VALUE_TEXT_LENGTH_MAX))
        if rest:
            raise InvalidField("value_too_many_decimals", f"value has more than {VALUE_SCALE} decimals")
    if unscaled >= UNSCALED_LIMIT:
        raise InvalidField("value_out_of_range", f"|value| must be below 10^{VALUE_DIGITS_MAX}")
    return -unscaled if sign else unscaled


_TIMESTAMP_MESSAGES = {
    "timestamp_invalid": "timestamp is no RFC 3339 date and time",
    "timestamp_missing_offset": "timestamp has no offset (Z or +hh:mm)",
}


def timestamp_us(text: str) -> int:
    """µs since 1970 of an RFC 3339 timestamp, as parse_rfc3339 reads it. Raises InvalidField."""
    try:
        return parse_rfc3339(text)
    except InvalidTimestamp as error:
        raise InvalidField(error.code, _TIMESTAMP_MESSAGES[error.code]) from None


# -- the model that names errors ---------------------------------------------------------------------------------------


class SpelledNumber(str):
    """A JSON number as it was spelled, so that it is never a float on the way."""

    __slots__ = ()


def _spelled_value(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str):
        raise PydanticCustomError("value_type", "value must be a number or a decimal string")
    return _named(unscaled_value, value)


def _spelled_timestamp(value: object) -> int:
    if not isinstance(value, str) or isinstance(value, SpelledNumber):
        raise PydanticCustomError("timestamp_type", "timestamp must be an RFC 3339 string")
    return _named(timestamp_us, value)


def _named(read: Any, text: str) -> Any:
    try:
        return read(text)
    except InvalidField as error:
        raise PydanticCustomError(error.code, "{reason}", {"reason": str(error)}) from None  # pyright: ignore[reportArgumentType]


def _text(length_min: int, length_max: int) -> BeforeValidator:
    def check(value: object) -> str:
        if not isinstance(value, str) or isinstance(value, SpelledNumber):
            raise PydanticCustomError("string_type", "must be a string")
        if not length_min <= len(value) <= length_max:
            kind = "string_too_long" if value else "string_empty"
            limits = {"least": length_min, "most": length_max}
            raise PydanticCustomError(kind, "must have {least} to {most} characters", limits)
        if "\0" in value:
            raise PydanticCustomError("nul_character", "must not contain the character U+0000")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PydanticCustomError("string_unicode", "must not contain half of a surrogate pair") from None
        return value

    return BeforeValidator(check)


def _few(properties: object) -> object:
    # Counted first: pydantic would name what is wrong with each of a hundred thousand.
    if isinstance(properties, dict) and len(properties) > PROPERTIES_MAX:  # pyright: ignore[reportUnknownArgumentType]
        raise PydanticCustomError("too_long", "too many")
    return properties  # pyright: ignore[reportUnknownVariableType]


Label = Annotated[str, _text(1, TEXT_LENGTH_MAX)]
PropertyKey = Annotated[str, _text(1, PROPERTY_KEY_LENGTH_MAX)]
PropertyValue = Annotated[str, _text(0, PROPERTY_VALUE_LENGTH_MAX)]
Properties = Annotated[dict[PropertyKey, PropertyValue], BeforeValidator(_few)]


class UsageEvent(BaseModel):
    """One event as a producer posts it. timestamp: µs since 1970. value: × 10⁹, None when absent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    customer_id: Label
    event_name: Label
    timestamp: Annotated[int, BeforeValidator(_spelled_timestamp)]
    value: Annotated[int | None, BeforeValidator(_spelled_value)] = None
    event_id: Label | None = None
    properties: Properties | None = None


def decimal_value(unscaled: int) -> Decimal:
    """The exact decimal of value × 10⁹."""
    sign, digits = unscaled < 0, tuple(map(int, str(abs(unscaled))))
    return Decimal((int(sign), digits, -VALUE_SCALE))
