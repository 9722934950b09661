"""CloudEvents 1.0 → the body of a usage batch. Pure.

type → event_name, subject → customer_id, time → timestamp (absent: now), source and id → event_id, data.value → value,
the rest of data → properties. Numbers stay as they are spelled: raw JSON is moved, never parsed and written again.

Source: CloudEvents specification 1.0.2, its JSON format (structured and batched) and its HTTP binding (binary).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

import msgspec
from msgspec import Raw

from ingest_gateway.decode import EventError, Events, InvalidBatch, NotJson, decode_events

EVENT_TYPE = b"application/cloudevents+json"
BATCH_TYPE = b"application/cloudevents-batch+json"
Naming = Callable[[Sequence[EventError]], Sequence[EventError]]
"""Errors of a usage batch → the same in the terms of the request."""

_VERSION = b'"1.0"'
_BINARY_PREFIX = b"ce-"
_JSON_TYPES = ("application/json", "text/json")
_SAME = (("subject", b"customer_id"), ("type", b"event_name"))  # attribute, field: the same JSON
_FIELDS = {"customer_id": "subject", "event_name": "type", "timestamp": "time", "event_id": "id", "value": "data.value"}

_Attributes = Mapping[str, Raw]
_event_decoder = msgspec.json.Decoder(dict[str, Raw])
_batch_decoder = msgspec.json.Decoder(list[Raw])
_any_decoder = msgspec.json.Decoder(Raw)
_text_decoder = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Translation:
    """What a CloudEvents request says, for the usage batch's reader.

    body: `{"events": […]}`. errors: of what no usage event can have. indexes: of the body's events in the request.
    """

    body: bytes
    errors: tuple[EventError, ...]
    indexes: tuple[int, ...]

    def all_errors(self, of_batch: Sequence[EventError] = ()) -> tuple[EventError, ...]:
        """These and the usage batch's errors, in the order of the events, naming the CloudEvents' attributes."""
        renamed = [
            replace(
                error,
                index=None if error.index is None else self.indexes[error.index],
                field=_sent_as(error.field),
            )
            for error in of_batch
        ]
        return tuple(sorted([*self.errors, *renamed], key=lambda error: -1 if error.index is None else error.index))


def declared_by(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the headers say that the request is one of CloudEvents, in any of the three modes."""
    content_type = headers.get(b"content-type", b"")
    if content_type == b"application/json":  # as most spell it
        return is_binary(headers)
    kind = content_type.split(b";", 1)[0].strip().lower()
    return kind in (EVENT_TYPE, BATCH_TYPE) or is_binary(headers)


def read(headers: Mapping[bytes, bytes], body: bytes, now: str) -> tuple[Events, Naming]:
    """The request's events. now: RFC 3339. Raises NotJson, or InvalidBatch in the terms of CloudEvents."""
    translation = translate_binary(headers, body, now) if is_binary(headers) else translate(body, now)
    try:
        events = decode_events(translation.body)
    except InvalidBatch as invalid:
        # A request without one object that could be an event has only that to be told.
        of_batch = invalid.errors if translation.indexes or not translation.errors else ()
        raise InvalidBatch(translation.all_errors(of_batch)) from None
    if translation.errors:
        raise InvalidBatch(translation.all_errors())
    return events, translation.all_errors


def is_binary(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the request has its event's attributes in headers."""
    return b"ce-specversion" in headers


def may_be_cloud_events(body: bytes) -> bool:
    """Whether JSON of no declared kind is a CloudEvent or a list of them: no usage batch begins or reads so."""
    text = body.lstrip()
    return text[:1] == b"[" or (text[:1] == b"{" and b'"specversion"' in text and b'"events"' not in text)


def translate(body: bytes, now: str) -> Translation:
    """One event or a list of them, in JSON. now: RFC 3339, the time of events that have none. Raises NotJson."""
    try:
        # A list of what are no events is for the batch's own errors to name.
        events = _batch_decoder.decode(body) if body.lstrip()[:1] == b"[" else [_any_decoder.decode(body)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(f"the body is not JSON: {error}") from error
    return _translation([_attributes(event) for event in events], now)


def translate_binary(headers: Mapping[bytes, bytes], body: bytes, now: str) -> Translation:
    """One event in binary mode: attributes in headers `ce-…`, data in the body. Raises NotJson."""
    attributes = {
        name.removeprefix(_BINARY_PREFIX).decode("latin-1"): Raw(_encode(unquote(text.decode("latin-1"))))
        for name, text in headers.items()
        if name.startswith(_BINARY_PREFIX)
    }
    if body:
        try:
            msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise NotJson(f"the body is not JSON: {error}") from error
        attributes["data"] = Raw(body)
    return _translation([attributes], now)


def _sent_as(field: str | None) -> str | None:
    if field is None:
        return None
    if field.startswith("properties"):
        return "data" + field.removeprefix("properties")
    return _FIELDS.get(field, field)


def _attributes(event: Raw) -> _Attributes | None:
    try:
        return _event_decoder.decode(event)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _translation(events: Sequence[_Attributes | None], now: str) -> Translation:
    errors: list[EventError] = []
    translated: dict[int, bytes] = {}
    for index, attributes in enumerate(events):
        if attributes is None:
            # Its one error is enough: the reader would name each field that it lacks.
            errors.append(EventError(index, None, "event_type", "a CloudEvent is a JSON object"))
            continue
        errors += _errors_of(index, attributes)
        translated[index] = _usage_event(attributes, now)
    return Translation(b'{"events":[' + b",".join(translated.values()) + b"]}", tuple(errors), tuple(translated))


def _errors_of(index: int, attributes: _Attributes) -> Iterator[EventError]:
    version = attributes.get("specversion")
    if version is None or bytes(version) != _VERSION:
        yield EventError(index, "specversion", "specversion_unsupported", 'specversion must be "1.0"')
    for name in ("id", "source"):
        if not _text(attributes.get(name)):
            yield EventError(index, name, f"{name}_missing", f"{name} must be a text of at least 1 character")
    if "data_base64" in attributes:
        yield EventError(index, "data_base64", "data_not_json", "data must be JSON")
    kind = _text(attributes.get("datacontenttype"))
    if kind is not None and kind.split(";")[0].strip().lower() not in _JSON_TYPES:
        yield EventError(index, "datacontenttype", "data_not_json", "data must be JSON")
    data = attributes.get("data")
    if data is not None and bytes(data)[:1] not in (b"{", b"n"):
        yield EventError(index, "data", "data_type", "data must be an object")


def _usage_event(attributes: _Attributes, now: str) -> bytes:
    """The usage event's JSON. A field whose attribute is missing is left out, for the batch's errors to name."""
    fields = [b'"%s":%s' % (field, bytes(attributes[name])) for name, field in _SAME if name in attributes]
    time = bytes(attributes.get("time", b"null"))
    fields.append(b'"timestamp":%s' % (_encode(now) if time == b"null" else time))
    source, own_id = _text(attributes.get("source")), _text(attributes.get("id"))
    if source and own_id:
        # A URI has no blank, so that no two pairs of source and id meet.
        fields.append(b'"event_id":%s' % _encode(f"{source.replace(' ', '%20')} {own_id}"))
    data = _attributes(attributes["data"]) if "data" in attributes else None
    if data:
        if "value" in data:
            fields.append(b'"value":%s' % bytes(data["value"]))
        properties = [
            b"%s:%s" % (_encode(name), text)
            for name, raw in data.items()
            if name != "value" and (text := _property(bytes(raw))) is not None
        ]
        if properties:
            fields.append(b'"properties":{%s}' % b",".join(properties))
    return b"{" + b",".join(fields) + b"}"


def _property(spelled: bytes) -> bytes | None:
    """A property's JSON text: a text as it is, anything else as it is spelled; None for null."""
    if spelled[:1] == b'"':
        return spelled
    return None if spelled == b"null" else _encode(spelled.decode())


def _text(raw: Raw | None) -> str | None:
    try:
        return None if raw is None else _text_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
