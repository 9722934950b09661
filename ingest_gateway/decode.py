"""request body → events, or every error of every event.

Two readers with one verdict: msgspec, typed and fast, for batches that are right; the pydantic model of
schemas/event.py for the others, which names all that is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Raw
from pydantic import TypeAdapter, ValidationError

from schemas.event import (
    EVENTS_PER_BATCH_MAX,
    PROPERTIES_MAX,
    PROPERTY_KEY_LENGTH_MAX,
    PROPERTY_VALUE_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    InvalidField,
    SpelledNumber,
    UsageEvent,
    unscaled_value,
)
from schemas.period import EPOCH, MICROSECOND
from schemas.usage_batch import unscaled_bytes
from schemas.usage_void import VoidRequest

T = TypeVar("T")

ERRORS_MAX = 1000
_VALUES_CACHED_MAX = 100_000

Label = Annotated[str, Meta(min_length=1, max_length=TEXT_LENGTH_MAX)]
PropertyKey = Annotated[str, Meta(min_length=1, max_length=PROPERTY_KEY_LENGTH_MAX)]
PropertyValue = Annotated[str, Meta(max_length=PROPERTY_VALUE_LENGTH_MAX)]
Properties = Annotated[dict[PropertyKey, PropertyValue], Meta(max_length=PROPERTIES_MAX)]
_ABSENT = Raw(b"null")


_Moment = Annotated[datetime, Meta(tz=True)]


class PostedEvent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event as the fast reader has it; value is still the JSON that spells it."""

    customer_id: Label
    event_name: Label
    timestamp: _Moment
    value: Raw = _ABSENT
    event_id: Label | None = None
    properties: Properties | None = None


class _FinelyTimedEvent(PostedEvent, forbid_unknown_fields=True, gc=False):
    """An event whose timestamp may have digits below the microsecond, which msgspec would round."""

    timestamp: str  # pyright: ignore[reportIncompatibleVariableOverride]


_Posted = Annotated[list[T], Meta(min_length=1, max_length=EVENTS_PER_BATCH_MAX)]


class _PostedBatch(msgspec.Struct, forbid_unknown_fields=True):
    events: _Posted[PostedEvent]


class _FinelyTimedBatch(msgspec.Struct, forbid_unknown_fields=True):
    events: _Posted[_FinelyTimedEvent]


@dataclass(slots=True)
class Events:
    """Columns of a posted batch, all n long, 1 ≤ n ≤ 1,000.

    Not frozen: a frozen one takes three times as long to set up.

    timestamp: µs since 1970. value: Avro's decimal bytes, None when absent. event_id, properties: None where absent.
    """

    customer_id: list[str]
    event_name: list[str]
    timestamp: list[int]
    value: list[bytes | None]
    event_id: list[str | None]
    properties: list[dict[str, str] | None]

    def __len__(self) -> int:
        return len(self.customer_id)


@dataclass(frozen=True, slots=True)
class EventError:
    """What is wrong. index: of the event in the batch, None for the batch itself. field: None for the event itself."""

    index: int | None
    field: str | None
    code: str
    message: str


class NotJson(ValueError):
    """The body is no JSON text."""


class InvalidBatch(ValueError):
    """The batch is refused whole. errors: at least one, in the order of the events."""

    def __init__(self, errors: Sequence[EventError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = tuple(errors[:ERRORS_MAX])


_decoder = msgspec.json.Decoder(_PostedBatch)
_finely_timed_decoder = msgspec.json.Decoder(_FinelyTimedBatch)
_SCANNED_BYTES_MAX = 4096
_SEVEN_DECIMALS = re.compile(rb"\.[0-9]{7}")
_BELOW_MICROSECONDS = re.compile(r"(\.[0-9]{6})[0-9]+")
_event_model = TypeAdapter(UsageEvent)
_values: dict[bytes, bytes | None] = {b"null": None}  # spelled value → Avro's bytes; usage repeats its values


class _Unfit(Exception):
    """The fast reader gives up; the other one has the word."""


def decode_void(body: bytes) -> VoidRequest:
    """The tombstone in a request's decoded body. Raises NotJson or InvalidBatch, whose errors have no index."""
    try:
        posted: Any = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotJson(f"the body is not JSON: {error}") from error
    try:
        return VoidRequest.model_validate(posted)
    except ValidationError as error:
        raise InvalidBatch(_errors_of(None, error)) from None


def decode_events(body: bytes) -> Events:
    """The batch in a request's decoded body. Raises NotJson or InvalidBatch.

    Checks what an event must be by itself. Limits of time and what meters need are the caller's (check_batch).
    """
    try:
        return _decode_fast(body)
    except (ValueError, RecursionError, _Unfit):  # msgspec's errors are ValueErrors
        return _decode_naming_errors(body)


def _decode_fast(body: bytes) -> Events:
    if b"\\u0000" in body:  # refused in every text, and rare enough to be no matter of speed
        raise _Unfit
    if _may_be_finely_timed(body):
        posted, timestamps = _decode_finely_timed(body)
    else:
        posted = _decoder.decode(body).events
        timestamps = [(event.timestamp - EPOCH) // MICROSECOND for event in posted]
    values: list[bytes | None] = []
    for event in posted:
        spelled = bytes(event.value)
        try:
            values.append(_values[spelled])
        except KeyError:
            values.append(_read_value(spelled))
    return Events(
        [event.customer_id for event in posted],
        [event.event_name for event in posted],
        timestamps,
        values,
        [event.event_id for event in posted],
        [event.properties for event in posted],
    )


def _may_be_finely_timed(body: bytes) -> bool:
    """Whether seven decimals stand anywhere, or a digit or a point that is spelled as an escape."""
    if b"\\" in body and (b"\\u002" in body or b"\\u003" in body):
        return True
    if len(body) > _SCANNED_BYTES_MAX:
        # numpy looks at the seventh place after each point in half the time that the expression takes.
        letters = np.frombuffer(body, np.uint8)
        seventh = np.flatnonzero(letters == ord(".")) + 7
        if not (letters[seventh[seventh < len(letters)]] - ord("0") < 10).any():
            return False
    return _SEVEN_DECIMALS.search(body) is not None


def _decode_finely_timed(body: bytes) -> tuple[Sequence[PostedEvent], list[int]]:
    posted = _finely_timed_decoder.decode(body).events
    spelled = "\n".join([event.timestamp for event in posted])
    cut = _BELOW_MICROSECONDS.sub(r"\1", spelled).split("\n")
    if len(cut) != len(posted):
        raise _Unfit
    return posted, [(moment - EPOCH) // MICROSECOND for moment in msgspec.convert(cut, list[_Moment])]


def _read_value(spelled: bytes) -> bytes:
    text = spelled[1:-1] if spelled[:1] == b'"' else spelled
    try:
        value = unscaled_bytes(unscaled_value(text.decode("ascii")))
    except (InvalidField, UnicodeDecodeError) as error:
        raise _Unfit from error
    if len(_values) >= _VALUES_CACHED_MAX:
        _values.clear()
        _values[b"null"] = None
    _values[spelled] = value
    return value


def _decode_naming_errors(body: bytes) -> Events:
    try:
        batch: Any = json.loads(
            body.decode("utf-8"), parse_float=SpelledNumber, parse_int=SpelledNumber, parse_constant=SpelledNumber
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise NotJson(f"the body is not JSON: {reason}") from error
    if not isinstance(batch, dict) or "events" not in batch:
        raise InvalidBatch([EventError(None, "events", "events_missing", 'the body must be {"events": […]}')])
    unknown = [str(name) for name in batch if name != "events"]  # pyright: ignore[reportUnknownVariableType]
    if unknown:
        raise InvalidBatch([EventError(None, unknown[0], "unknown_field", "the body has no such field")])
    posted: Any = batch["events"]
    if not isinstance(posted, list):
        raise InvalidBatch([EventError(None, "events", "events_type", "events must be an array")])
    count = len(posted)  # pyright: ignore[reportUnknownArgumentType]
    if not 1 <= count <= EVENTS_PER_BATCH_MAX:
        message = f"a batch has 1 to {EVENTS_PER_BATCH_MAX} events, this one {count}"
        raise InvalidBatch([EventError(None, "events", "events_count", message)])
    errors: list[EventError] = []
    events: list[UsageEvent] = []
    for index, event in enumerate(posted):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        try:
            events.append(_event_model.validate_python(event))
        except ValidationError as error:
            errors += _errors_of(index, error)
    if errors:
        raise InvalidBatch(errors)
    return Events(
        [event.customer_id for event in events],
        [event.event_name for event in events],
        [event.timestamp for event in events],
        [None if event.value is None else unscaled_bytes(event.value) for event in events],
        [event.event_id for event in events],
        [None if event.properties is None else dict(event.properties) for event in events],
    )


# pydantic's own error types → code and message in our words; the model's custom errors have theirs already
_WORDS = {
    "missing": ("missing", "is required"),
    "extra_forbidden": (None, "there is no such field"),
    "model_type": ("type", "must be an object"),
    "dict_type": ("type", "must be an object of strings"),
    "too_long": ("too_many", f"at most {PROPERTIES_MAX} properties are allowed"),
}


def _errors_of(index: int | None, error: ValidationError) -> list[EventError]:
    named: list[EventError] = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        path = [str(part) for part in detail["loc"] if part != "[key]"]
        top = path[0] if path else "event" if index is not None else "body"
        kind, message = _WORDS.get(detail["type"], (detail["type"].removeprefix("string_"), detail["msg"]))
        code = "unknown_field" if kind is None else kind if kind.startswith(top) else f"{top}_{kind}"
        named.append(EventError(index, ".".join(path) or None, code, message))
    return named
