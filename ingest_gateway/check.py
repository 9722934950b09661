"""decoded events + what is known now → errors, and how many of them nothing meters yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingest_gateway.decode import EventError, Events
from schemas.event import TIMESTAMP_AHEAD_US_MAX


def check_batch(events: Events, *, now_us: int, needs_value: Callable[[str], bool]) -> list[EventError]:
    """Errors that depend on the clock and on meters, in the order of the events.

    now_us: µs since 1970. needs_value: whether a meter reads a value of that event_name.
    """
    latest = now_us + TIMESTAMP_AHEAD_US_MAX
    if None not in events.value and 0 <= min(events.timestamp) <= max(events.timestamp) <= latest:
        return []
    errors: list[EventError] = []
    if not 0 <= min(events.timestamp) <= max(events.timestamp) <= latest:
        errors += _timestamp_errors(events.timestamp, latest)
    if None in events.value:
        needing = {name for name in set(events.event_name) if needs_value(name)}
        errors += [
            EventError(index, "value", "value_missing", f"a sum or max meter reads {name!r}: value is required")
            for index, (name, value) in enumerate(zip(events.event_name, events.value, strict=True))
            if value is None and name in needing
        ]
    return sorted(errors, key=lambda error: error.index or 0)


def _timestamp_errors(timestamps: Sequence[int], latest: int) -> list[EventError]:
    errors: list[EventError] = []
    for index, timestamp in enumerate(timestamps):
        if timestamp < 0:
            errors.append(EventError(index, "timestamp", "timestamp_too_early", "timestamp is before 1970"))
        elif timestamp > latest:
            message = "timestamp is more than 10 minutes in the future"
            errors.append(EventError(index, "timestamp", "timestamp_in_future", message))
    return errors


NAMES_LISTED_MAX = 20


@dataclass(slots=True)
class Unmatched:
    """Events that no meter reads or whose customer is unknown, as configured now. They are stored all the same.

    Not frozen: see Events. event_names, customer_ids: of these events, the first NAMES_LISTED_MAX of each.
    """

    events: int = 0
    event_names: Sequence[str] = ()
    customer_ids: Sequence[str] = ()


_ALL_MATCHED = Unmatched()


def find_unmatched(
    events: Events, *, is_metered: Callable[[str], bool], is_customer: Callable[[str], bool]
) -> Unmatched:
    """What of the batch would not be billed as things are."""
    if len(events) == 1:  # as below, without sets of one
        names = [] if is_metered(events.event_name[0]) else events.event_name
        strangers = [] if is_customer(events.customer_id[0]) else events.customer_id
        return Unmatched(1, names, strangers) if names or strangers else _ALL_MATCHED
    unmetered = {name for name in set(events.event_name) if not is_metered(name)}
    unknown = {customer for customer in set(events.customer_id) if not is_customer(customer)}
    if not unmetered and not unknown:
        return _ALL_MATCHED
    count = sum(
        name in unmetered or customer in unknown
        for name, customer in zip(events.event_name, events.customer_id, strict=True)
    )
    return Unmatched(count, sorted(unmetered)[:NAMES_LISTED_MAX], sorted(unknown)[:NAMES_LISTED_MAX])
