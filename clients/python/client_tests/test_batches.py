"""Batches keep both limits, and every event is in exactly one."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from usage_billing_client.batches import Batch, cut, packed, unpack
from usage_billing_client.errors import RefusedEvent
from usage_billing_client.events import encode_event, join_body

AT = datetime(2026, 3, 30, 12, 0, 0, 5, UTC)


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 5), st.integers(20, 100))
def test_runs_keep_both_limits_and_every_event(events: list[bytes], events_max: int, bytes_max: int):
    runs = list(cut(events, events_max, bytes_max))

    assert [event for run in runs for event in run] == events
    assert all(1 <= len(run) <= events_max for run in runs)
    assert all(len(run) == 1 or len(join_body(run)) <= bytes_max for run in runs)


def test_a_packed_run_unpacks_to_the_same_bytes():
    events = [b'{"a":1}', b'{"b":[2,3]}']

    assert [bytes(event) for event in unpack(Batch(1, *packed([*events])))] == events


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (1, 1),
        (0.1, 0.1),
        (Decimal("123456789012345678.123456789"), "123456789012345678.123456789"),
        ("0.30", "0.30"),
    ],
)
def test_a_value_is_spelled_exactly(value: object, spelled: object):
    encoded = encode_event(("cus_1", "call", value, AT, None, {"region": "eu"}), "id-1")

    assert isinstance(encoded, bytes)
    assert msgspec.json.decode(encoded) == {
        "customer_id": "cus_1",
        "event_name": "call",
        "timestamp": "2026-03-30T12:00:00.000005Z",
        "event_id": "id-1",
        "value": spelled,
        "properties": {"region": "eu"},
    }


def test_an_id_of_its_own_is_kept():
    encoded = encode_event(("cus_1", "call", None, AT, "mine", None), "id-1")

    assert isinstance(encoded, bytes)
    assert msgspec.json.decode(encoded)["event_id"] == "mine"


@pytest.mark.parametrize(
    "event",
    [
        ("cus_1", "call", float("nan"), AT, None, None),
        ("cus_1", "call", float("inf"), AT, None, None),
        ("cus_1", "call", object(), AT, None, None),
        ("cus_\ud800", "call", 1, AT, None, None),
        ("cus_1", "call", 1, datetime(2026, 3, 30), None, None),  # noqa: DTZ001 — the case
        ("cus_1", "call", 1, "2026-03-30", None, None),
    ],
    ids=["nan", "infinite", "object", "half surrogate", "no time zone", "text as time"],
)
def test_what_json_can_not_spell_is_refused_before_it_is_sent(event: tuple[object, ...]):
    refused = encode_event(event, "id-1")

    assert isinstance(refused, RefusedEvent)
    assert refused.errors[0].code == "event_not_encodable"
