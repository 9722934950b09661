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
from typing import Annotated, Any, TypeVar, cast

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, UnsetType
from pydantic import TypeAdapter, ValidationError

from schemas.decimals import names_hook
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
_EVENT_BYTES_MAX = 128 * 1024
"""No lawful event is longer, unless by white space: all its texts of the greatest length, each letter escaped."""
_FAULTY_BYTES_MAX = 1024 * 1024
_UNKNOWN_FIELDS_NAMED_MAX = 20
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


_NO_EVENTS = EventError(None, "events", "events_missing", 'the body must be {"events": […]}')


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
_ESCAPED = re.compile(rb"\\u00(?:00|2[eE]|3[0-9])")
_SEVEN_DECIMALS = re.compile(rb"\.[0-9]{7}")
_BELOW_MICROSECONDS = re.compile(r"(\.[0-9]{6})[0-9]+")
_event_model = TypeAdapter(UsageEvent)


class _Envelope(msgspec.Struct):
    events: Raw | UnsetType = UNSET


class _StrictEnvelope(_Envelope, forbid_unknown_fields=True):
    """msgspec stops at the first field that is unknown."""


# What is behind the last field is skipped, and never becomes an object.
_Items = msgspec.defstruct(
    "_Items", [(f"item_{n}", Raw | UnsetType, UNSET) for n in range(EVENTS_PER_BATCH_MAX + 1)], array_like=True
)
_UNKNOWN_FIELD = re.compile(r"unknown field `(.*)`", re.DOTALL)
_raw_decoder = msgspec.json.Decoder(Raw)
_envelope_decoder = msgspec.json.Decoder(_Envelope)
_strict_envelope_decoder = msgspec.json.Decoder(_StrictEnvelope)
_items_decoder = msgspec.json.Decoder(_Items)
_values: dict[bytes, bytes | None] = {b"null": None}  # spelled value → Avro's bytes; usage repeats its values


class _Unfit(Exception):
    """The fast reader gives up; the other one has the word."""


def decode_void(body: bytes) -> VoidRequest:
    """The tombstone in a request's decoded body. Raises NotJson or InvalidBatch, whose errors have no index."""
    try:
        posted: Any = json.loads(body.decode("utf-8"), object_pairs_hook=names_hook(body))
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
    valid = decode_valid(body)
    return decode_naming_errors(body) if valid is None else valid


def decode_valid(body: bytes) -> Events | None:
    """The batch, when the fast reader can take it; else decode_naming_errors has the word, away from the event loop."""
    try:
        return _decode_fast(body)
    except (ValueError, RecursionError, _Unfit):  # msgspec's errors are ValueErrors
        return None


def _decode_fast(body: bytes) -> Events:
    if (b"\\" in body and _escapes_matter(body)) or _has_seven_decimals(body):
        posted, timestamps = _decode_finely_timed(body)
    else:
        posted = _decoder.decode(body).events
        timestamps = [(event.timestamp - EPOCH) // MICROSECOND for event in posted]
    if len(posted) == 1:  # as below, in half the time
        only = posted[0]
        spelled = bytes(only.value)
        value = _values[spelled] if spelled in _values else _read_value(spelled)
        return Events([only.customer_id], [only.event_name], timestamps, [value], [only.event_id], [only.properties])
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


def _escapes_matter(body: bytes) -> bool:
    """Whether a digit or a point may be spelled as an escape. Raises _Unfit for a NUL, which no text may have."""
    if _ESCAPED.search(body) is None:
        return False
    if b"\\u0000" in body:
        raise _Unfit
    return True


def _has_seven_decimals(body: bytes) -> bool:
    """Whether seven digits follow a point anywhere in the body."""
    if len(body) > _SCANNED_BYTES_MAX:
        # numpy looks at the seventh place after each point in a quarter of the time that the expression takes.
        letters = np.frombuffer(body, np.uint8)
        found = letters[:-7] == ord(".")
        found &= letters[7:] - ord("0") < 10
        if not found.any():
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


def decode_naming_errors(body: bytes) -> Events:
    """decode_events by the model, which names errors. It takes a while, and stops naming at the limits below.

    Whatever the body is: a call into C, which no other thread can interrupt, parses at most an event's worth of JSON.
    """
    posted = _raw_events(body)
    errors: list[EventError] = []
    events: list[UsageEvent] = []
    faulty_bytes = 0
    for index, raw in enumerate(posted):
        if len(errors) >= ERRORS_MAX or faulty_bytes > _FAULTY_BYTES_MAX:
            break
        if len(raw) > _EVENT_BYTES_MAX:
            message = f"an event has at most {_EVENT_BYTES_MAX} bytes of JSON"
            errors.append(EventError(index, None, "event_too_long", message))
            continue
        try:
            events.append(_event_model.validate_python(_few_fields(_loads(raw))))
        except ValidationError as error:
            errors += _errors_of(index, error)
            faulty_bytes += len(raw)
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


def _raw_events(body: bytes) -> Sequence[bytes]:
    """The JSON of each event, as it is spelled. Raises NotJson or InvalidBatch."""
    readable, names = body, None
    try:
        body.decode("utf-8")  # msgspec passes over the texts that it skips
        try:
            _raw_decoder.decode(body)
        except ValueError:
            # Words that only Python's JSON has, and halves of surrogate pairs: their errors are named in their event.
            # What stands for them is as long, so that every event is found where it lies.
            readable = _UNREADABLE.sub(lambda found: _STAND_INS[len(found[0])], body)
            _raw_decoder.decode(readable)
            names = list(_loads(body)) if len(body) <= _EVENT_BYTES_MAX else None
    except NotJson:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise NotJson(f"the body is not JSON: {reason}") from None
    _require_only_events(readable, names)
    events = _items(_envelope_decoder.decode(readable).events)
    if not 1 <= len(events) <= EVENTS_PER_BATCH_MAX:
        found = str(len(events)) if len(events) <= EVENTS_PER_BATCH_MAX else "more"
        message = f"a batch has 1 to {EVENTS_PER_BATCH_MAX} events, this one {found}"
        raise InvalidBatch([EventError(None, "events", "events_count", message)])
    spelled: list[bytes] = []
    at = readable.index(b"[")
    for event in events:
        at = readable.index(event, at)
        spelled.append(body[at : at + len(event)])
        at += len(event)
    return spelled


_UNREADABLE = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_STAND_INS = {3: b"0.5", 6: rb"\ufffd", 8: b"1.000000"}


def _require_only_events(body: bytes, names: Sequence[str] | None) -> None:
    """names: of the body's fields, where they are known. Raises InvalidBatch."""
    try:
        if _envelope_decoder.decode(body).events is UNSET:
            raise InvalidBatch([_NO_EVENTS])
        _strict_envelope_decoder.decode(body)
    except msgspec.ValidationError as error:
        named = _UNKNOWN_FIELD.search(str(error))
        if named is None:
            raise InvalidBatch([_NO_EVENTS]) from None
        unknown = next((name for name in names or () if name != "events"), named[1])
        raise InvalidBatch([EventError(None, unknown, "unknown_field", "the body has no such field")]) from None


def _items(raw: Raw | UnsetType) -> list[bytes]:
    """The JSON of a list's first items, one more than a batch may have. Raises InvalidBatch."""
    try:
        items = msgspec.structs.astuple(_items_decoder.decode(cast(Raw, raw)))
    except msgspec.ValidationError:
        raise InvalidBatch([EventError(None, "events", "events_type", "events must be an array")]) from None
    return [bytes(item) for item in items if item is not UNSET]


def _loads(raw: bytes) -> Any:
    """Raises NotJson."""
    try:
        return json.loads(
            raw.decode("utf-8"),
            parse_float=SpelledNumber,
            parse_int=SpelledNumber,
            parse_constant=SpelledNumber,
            object_pairs_hook=names_hook(raw),
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise NotJson(f"the body is not JSON: {reason}") from error


def _few_fields(event: Any) -> Any:
    """The event without most of its unknown fields, each of which would be an error of its own."""
    if not isinstance(event, dict):
        return event
    unknown = [name for name in event if name not in UsageEvent.model_fields]  # pyright: ignore[reportUnknownVariableType]
    if len(unknown) <= _UNKNOWN_FIELDS_NAMED_MAX:  # pyright: ignore[reportUnknownArgumentType]
        return event  # pyright: ignore[reportUnknownVariableType]
    dropped = set(unknown[_UNKNOWN_FIELDS_NAMED_MAX:])  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return {name: event[name] for name in event if name not in dropped}  # pyright: ignore[reportUnknownVariableType]


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
