"""Requests of the command's client keep both limits, and every event is in exactly one."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from usage_billing.client import batches

EVENTS = st.lists(st.fixed_dictionaries({"customer_id": st.text(max_size=40)}), max_size=60)


@given(EVENTS, st.integers(40, 2000))
def test_batches_keep_both_limits_and_every_event(events: list[dict[str, str]], bytes_max: int) -> None:
    made = list(batches(events, bytes_max))
    assert [event for batch in made for event in batch] == events
    assert all(len(batch) == 1 or len(msgspec.json.encode({"events": batch})) <= bytes_max for batch in made)


def test_a_batch_has_at_most_1000_events() -> None:
    assert [len(batch) for batch in batches([{}] * 2001)] == [1000, 1000, 1]
