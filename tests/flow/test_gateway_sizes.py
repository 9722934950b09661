"""Every body within the documented limits is answered 202 on a real broker: alone, beside others, whatever its bytes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.local.kafka import KafkaBroker
from schemas.event import PROPERTIES_MAX, PROPERTY_KEY_LENGTH_MAX, PROPERTY_VALUE_LENGTH_MAX, TEXT_LENGTH_MAX
from schemas.topics import MESSAGE_BYTES_MAX
from tests.flow.test_gateway import ADMIN, EVENT, EVENTS, Stack

BODY_BYTES_MAX = 4 * 1024 * 1024
LETTERS = ("v", "ü", "\U0001f9ee")  # 1, 2 and 4 bytes of UTF-8
# The batch of the report: 1,000 events of one customer with 18 properties of 60 letters, 1.5 MB.
MANY_BYTES = {f"k{n:02}": f"v{n:02}" * 20 for n in range(18)}


@pytest.fixture(scope="module")
def shared(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(kafka, f"sizes{time.time_ns()}.", tmp_path_factory.mktemp("gateway"))
    yield stack
    stack.close()


def large_batch(name: str, events: int = 1000) -> list[dict[str, Any]]:
    return [{**EVENT, "event_id": f"{name}-{index}", "properties": MANY_BYTES} for index in range(events)]


def identities_at(stack: Stack, receipt: list[dict[str, int]]) -> list[str]:
    log = stack.log()
    return [
        identity
        for part in receipt
        for offset in range(part["first_offset"], part["last_offset"] + 1)
        for identity in log[part["partition"], offset].identity
    ]


def test_a_batch_of_more_bytes_than_a_message_is_several_messages(shared: Stack) -> None:
    answer = shared.post(*large_batch("large"))
    assert answer.status_code == 202, answer.text
    (part,) = answer.json()["receipt"]
    assert part["events"] == 1000
    assert part["last_offset"] > part["first_offset"]
    assert identities_at(shared, [part]) == [f"c:large-{index}" for index in range(1000)]
    messages = shared.raw_log()
    written = [messages[part["partition"], offset] for offset in range(part["first_offset"], part["last_offset"] + 1)]
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in written)


def test_an_idempotency_key_numbers_events_over_the_whole_request(shared: Stack) -> None:
    events = [{name: value for name, value in each.items() if name != "event_id"} for each in large_batch("")]
    answer = shared.post(*events, **{"Idempotency-Key": "large"})
    assert answer.status_code == 202, answer.text
    assert identities_at(shared, answer.json()["receipt"]) == [f"k:large:{index}" for index in range(1000)]


def test_no_request_fails_for_its_neighbours(shared: Stack) -> None:
    def post(number: int) -> httpx.Response:
        return shared.post(*(large_batch(f"big{number}") if number % 8 == 0 else [{**EVENT, "event_id": f"s{number}"}]))

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(post, range(48)))
    assert {answer.status_code for answer in answers} == {202}
    for number, answer in enumerate(answers):
        if number % 8:
            (part,) = answer.json()["receipt"]
            assert part["first_offset"] == part["last_offset"], "a small request is not cut"


@st.composite
def lawful_bodies(draw: st.DrawFn) -> tuple[int, bytes]:
    """(events, body) of every size that validates, most of them large."""
    letter = draw(st.sampled_from(LETTERS))
    full = draw(st.booleans())
    key_length, value_length, label_length = (
        (PROPERTY_KEY_LENGTH_MAX, PROPERTY_VALUE_LENGTH_MAX, TEXT_LENGTH_MAX)
        if full
        else (draw(st.integers(2, 64)), draw(st.integers(0, 256)), draw(st.integers(1, 256)))
    )
    properties = {
        f"{n:02}" + letter * (key_length - 2): letter * value_length
        for n in range(draw(st.integers(0, PROPERTIES_MAX)))
    }
    customers = draw(st.sampled_from([1, 2, 50]))
    ids = draw(st.booleans())
    events = [
        {
            "customer_id": f"{number % customers:02}{letter * (label_length - 2)}",
            "event_name": letter * label_length,
            "timestamp": "2026-03-30T12:00:00Z",
            "value": "999999999999999999.999999999",
            **({"event_id": f"{number:03}" + letter * (label_length - 3)} if ids else {}),
            "properties": properties,
        }
        for number in range(1000)
    ]
    size = len(json.dumps(events[0], ensure_ascii=False).encode()) + 2
    count = min(draw(st.sampled_from([1, 100, 1000])), (BODY_BYTES_MAX - 100) // size)
    return count, json.dumps({"events": events[:count]}, ensure_ascii=False).encode()


@settings(max_examples=8)
@given(bodies=st.lists(lawful_bodies(), min_size=1, max_size=5), key=st.sampled_from([None, "k" * TEXT_LENGTH_MAX]))
def test_every_body_within_the_limits_is_202(shared: Stack, bodies: list[tuple[int, bytes]], key: str | None) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    headers |= {} if key is None else {"Idempotency-Key": key}

    def post(number: int) -> httpx.Response:
        _, body = bodies[number]
        assert len(body) <= BODY_BYTES_MAX
        return shared.client.post(EVENTS, content=gzip.compress(body, 1), headers=headers, timeout=60)

    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(post, range(len(bodies))))
    for (events, _), answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 202, answer.text
        assert sum(part["events"] for part in answer.json()["receipt"]) == events


def test_a_file_of_many_bytes_is_imported(shared: Stack, tmp_path: Path) -> None:
    rows = tmp_path / "large-rows.jsonl"
    rows.write_text("".join(json.dumps(event) + "\n" for event in large_batch("imported")))
    command = [str(Path(sys.executable).with_name("usage-billing")), "events", "import", str(rows)]
    done = subprocess.run(
        [*command, "--address", shared.gateway.address, "--key", ADMIN], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = {identity for batch in shared.log().values() for identity in batch.identity}
    assert {f"c:imported-{index}" for index in range(1000)} <= found
