"""A CloudEvent becomes a usage event with the same decimals, and its errors name its own attributes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ingest_gateway import cloud_events
from ingest_gateway.cloud_events import may_be_cloud_events, translate, translate_binary
from ingest_gateway.decode import EventError, InvalidBatch, NotJson, decode_events

NOW = "2026-03-30T12:00:00Z"
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "type": "api_request",
    "id": "evt-1",
    "time": "2026-03-01T00:00:00.001Z",
    "source": "checkout",
    "subject": "cus_1",
    "data": {"value": 10, "method": "POST", "route": "/v1/answers"},
}


def usage(body: bytes | str) -> Any:
    return json.loads(translate(body.encode() if isinstance(body, str) else body, NOW).body, parse_float=str)["events"]


def errors(event: object) -> list[tuple[int | None, str | None, str]]:
    """All errors of one event, of the translation and of the batch, as the gateway names them."""
    translation = translate(json.dumps([event]).encode(), NOW)
    of_batch: tuple[EventError, ...] = ()
    try:
        decode_events(translation.body)
    except InvalidBatch as invalid:
        of_batch = invalid.errors
    return [(error.index, error.field, error.code) for error in translation.all_errors(of_batch)]


def test_an_event_in_structured_mode():
    assert usage(json.dumps(EVENT)) == [
        {
            "customer_id": "cus_1",
            "event_name": "api_request",
            "timestamp": "2026-03-01T00:00:00.001Z",
            "event_id": "checkout evt-1",
            "value": 10,
            "properties": {"method": "POST", "route": "/v1/answers"},
        }
    ]


def test_a_batch_keeps_its_order():
    assert [event["event_id"] for event in usage(json.dumps([EVENT, {**EVENT, "id": "evt-2"}]))] == [
        "checkout evt-1",
        "checkout evt-2",
    ]


def test_numbers_stay_as_they_are_spelled():
    body = json.dumps(EVENT).replace(
        '"value": 10', '"value": 123456789.123456789, "cost": 0.10, "cached": true, "tier": null'
    )

    (event,) = usage(body)
    assert event["value"] == "123456789.123456789"
    assert event["properties"] == {"cost": "0.10", "cached": "true", "method": "POST", "route": "/v1/answers"}


def test_what_is_nested_in_data_is_a_property_in_its_json():
    (event,) = usage(json.dumps({**EVENT, "data": {"value": "1", "tags": ["a", "b"]}}))

    assert event["properties"] == {"tags": '["a", "b"]'}


@pytest.mark.parametrize("event", [{k: v for k, v in EVENT.items() if k != "time"}, {**EVENT, "time": None}])
def test_an_event_without_a_time_happened_when_it_came(event: dict[str, Any]):
    assert usage(json.dumps(event))[0]["timestamp"] == NOW


@pytest.mark.parametrize("data", [None, {}])
def test_an_event_without_data_has_no_value(data: object):
    (event,) = usage(json.dumps({**EVENT, "data": data}))

    assert "value" not in event
    assert "properties" not in event


def test_no_two_pairs_of_source_and_id_become_one_event():
    pairs = [("a b", "c"), ("a", "b c"), ("a%20b", "c d"), ("a", "b"), ("a b c", "d")]
    ids = {usage(json.dumps({**EVENT, "source": source, "id": own}))[0]["event_id"] for source, own in pairs}

    assert len(ids) == len(pairs)


def test_an_event_in_binary_mode():
    headers = {
        b"ce-specversion": b"1.0",
        b"ce-type": b"api_request",
        b"ce-id": b"evt-1",
        b"ce-source": b"checkout",
        b"ce-subject": b"M%C3%BCller",
        b"ce-time": b"2026-03-01T00:00:00.001Z",
        b"content-type": b"application/json",
    }
    assert cloud_events.is_binary(headers)

    translation = translate_binary(headers, b'{"value": 1.5}', NOW)
    assert translation.errors == ()
    (event,) = json.loads(translation.body)["events"]
    assert (event["customer_id"], event["event_id"], event["value"]) == ("Müller", "checkout evt-1", 1.5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"specversion": "0.3"}, [(0, "specversion", "specversion_unsupported")]),
        ({"id": ""}, [(0, "id", "id_missing")]),
        ({"source": 5}, [(0, "source", "source_missing")]),
        ({"subject": None}, [(0, "subject", "customer_id_type")]),
        ({"type": ""}, [(0, "type", "event_name_empty")]),
        ({"time": "yesterday"}, [(0, "time", "timestamp_invalid")]),
        ({"data": "text"}, [(0, "data", "data_type")]),
        ({"data": {"value": "many"}}, [(0, "data.value", "value_invalid")]),
        ({"data": {"region": "x" * 300}}, [(0, "data.region", "properties_too_long")]),
        ({"data_base64": "AAAA"}, [(0, "data_base64", "data_not_json")]),
        ({"datacontenttype": "text/xml"}, [(0, "datacontenttype", "data_not_json")]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_errors_name_the_attribute_that_was_sent(change: dict[str, Any], expected: list[tuple[int, str, str]]):
    assert errors({**EVENT, **change}) == expected


def test_every_error_of_an_event_is_named():
    assert {field for _, field, _ in errors({**EVENT, "specversion": "2", "subject": 1, "data": {"value": "x"}})} == {
        "specversion",
        "subject",
        "data.value",
    }


def test_an_element_that_is_no_object_is_named_by_its_index():
    translation = translate(json.dumps([EVENT, 5, EVENT]).encode(), NOW)
    of_batch = EventError(1, "timestamp", "timestamp_too_early", "")

    named = translation.all_errors([of_batch])
    assert [(error.index, error.field, error.code) for error in named] == [
        (1, None, "event_type"),
        (2, "time", "timestamp_too_early"),
    ]


@pytest.mark.parametrize("body", [b"[", b"", b'{"specversion":', b"[\xff]"])
def test_what_is_no_json_is_said_to_be_none(body: bytes):
    with pytest.raises(NotJson):
        translate(body, NOW)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (json.dumps(EVENT), True),
        (json.dumps([EVENT]), True),
        (" \n[]", True),
        ('{"events": []}', False),
        ('{"events": [{"properties": {"specversion": "1.0"}}]}', False),
        ("5", False),
    ],
)
def test_json_of_no_declared_kind_is_told_by_its_form(body: str, expected: bool):
    assert may_be_cloud_events(body.encode()) is expected
