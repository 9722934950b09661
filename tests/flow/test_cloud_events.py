"""CloudEvents, as OpenMeter's client sends them and as the specification allows, on the real gateway and log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.conversion import to_binary
from cloudevents.http import CloudEvent
from openmeter import Client

from deploy.local.kafka import KafkaBroker
from tests.flow.test_gateway import ADMIN, EVENTS, Stack

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "type": "api_request",
    "id": "evt-1",
    "time": "2026-03-01T00:00:00.001Z",
    "source": "checkout",
    "subject": "cus_1",
    "data": {"value": 10, "method": "POST"},
}
OPENMETER = "/api/v1/events"


@pytest.fixture
def stack(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(kafka, topic_prefix, tmp_path)
    yield stack
    stack.close()


def post(stack: Stack, body: object, content_type: str, path: str = EVENTS) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return stack.client.post(path, content=content, headers={"Content-Type": content_type})


def stored(stack: Stack) -> list[tuple[str, str, str, dict[str, str]]]:
    """(customer, event_name, identity, properties) of every event in the log, sorted."""
    return sorted(
        (batch.customer_id[i], batch.event_name[i], batch.identity[i], batch.properties[i] if batch.properties else {})
        for batch in stack.log().values()
        for i in range(len(batch))
    )


def test_one_event_and_a_batch_by_type_or_by_form(stack: Stack):
    batch = [{**EVENT, "id": f"evt-{number}"} for number in (2, 3, 3)]
    one = post(stack, EVENT, "application/cloudevents+json; charset=utf-8")
    assert (one.status_code, one.json()["accepted"]) == (202, 1)
    assert post(stack, batch, "application/cloudevents-batch+json").json()["accepted"] == 3
    assert post(stack, {**EVENT, "id": "evt-4"}, "application/json").status_code == 202
    assert post(stack, [{**EVENT, "id": "evt-5"}], "application/json", OPENMETER).status_code == 204

    assert stored(stack) == [
        ("cus_1", "api_request", f"c:checkout evt-{number}", {"method": "POST"}) for number in (1, 2, 3, 3, 4, 5)
    ]


def test_the_binary_mode_of_the_reference_library(stack: Stack):
    attributes = {name: EVENT[name] for name in ("type", "id", "source", "subject", "time")}
    headers, body = to_binary(CloudEvent({**attributes, "datacontenttype": "application/json"}, EVENT["data"]))
    answer = stack.client.post(EVENTS, content=body, headers=dict(headers))

    assert answer.status_code == 202, answer.text
    assert stored(stack) == [("cus_1", "api_request", "c:checkout evt-1", {"method": "POST"})]


def test_openmeters_own_client_works_with_another_address(stack: Stack):
    with Client(endpoint=stack.gateway.address, token=ADMIN) as client:
        event = CloudEvent(
            attributes={
                "id": "om-1",
                "type": "api_request",
                "source": "openmeter-python",
                "subject": "cus_1",
                "time": datetime(2026, 3, 1, tzinfo=UTC).isoformat(),
            },
            data={"value": 3, "region": "eu"},
        )
        client.events.ingest_event(_fields(event))
        batch: Any = [_fields(event), {**_fields(event), "id": "om-2"}]
        client.events.ingest_events(batch)

    assert stored(stack) == [
        ("cus_1", "api_request", f"c:openmeter-python om-{number}", {"region": "eu"}) for number in (1, 1, 2)
    ]


def _fields(event: CloudEvent) -> Any:
    return {**{name: str(text) for name, text in event.get_attributes().items()}, "data": event.get_data()}


def test_errors_are_in_the_terms_of_the_sender_and_nothing_is_enqueued(stack: Stack):
    wrong = [EVENT, {**EVENT, "subject": "", "data": {"value": "many"}}, 5]
    answer = post(stack, wrong, "application/cloudevents-batch+json")

    assert answer.status_code == 422
    assert [(error["index"], error["field"]) for error in answer.json()["errors"]] == [
        (1, "subject"),
        (1, "data.value"),
        (2, None),
    ]
    future = post(stack, {**EVENT, "time": "2999-01-01T00:00:00Z"}, "application/cloudevents+json", OPENMETER)
    assert [(error["field"], error["code"]) for error in future.json()["errors"]] == [("time", "timestamp_in_future")]
    assert post(stack, b"{", "application/cloudevents+json").status_code == 400
    assert post(stack, EVENT, "text/plain").status_code == 415
    assert stored(stack) == []
