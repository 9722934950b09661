"""rows → checked chunks of events, with every error by line and column. Checks what the gateway checks, by its code."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ingest_gateway.decode import EventError, Events, InvalidBatch, NotJson, decode_events
from schemas.event import EVENTS_PER_BATCH_MAX
from usage_billing.importing.identity import Identities, Occurrences
from usage_billing.importing.mapping import Mapped, event_of
from usage_billing.importing.tables import Row


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a row. line: None for the file as a whole. column: None for the row as a whole."""

    line: int | None
    column: str | None
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Up to 1,000 rows.

    lines: of each event. events: in the API's fields, with ids. checked: the same, decoded.
    repeated: how many of them have the id of an event before them in the file, and count once with it.
    """

    lines: list[int]
    events: list[dict[str, Any]]
    checked: Events
    repeated: int


def checked_chunks(
    rows: Iterable[Row], mapping: Mapped, errors: list[LineError], *, id_prefix: str = ""
) -> Iterator[Chunk]:
    """The rows' events in chunks, without those at fault, which are appended to `errors`."""
    seen = Occurrences()
    source = iter(rows)
    try:
        while chunk := list(itertools.islice(source, EVENTS_PER_BATCH_MAX)):
            lines = [row.line for row in chunk]
            events = [event_of(row, mapping) for row in chunk]
            lines, events, checked = _valid(lines, events, mapping, errors)
            if checked is None:
                continue
            identities = Identities(seen, id_prefix)
            for event, event_id in zip(events, identities.of(checked), strict=True):
                event["event_id"] = event_id
            yield Chunk(lines, events, checked, identities.repeated)
    finally:
        seen.close()


def line_errors(lines: list[int], mapping: Mapped, errors: Iterable[EventError]) -> list[LineError]:
    """Errors of a batch as errors of the file."""
    return [
        LineError(
            None if error.index is None else lines[error.index],
            None if error.field is None else mapping.column_of(error.field),
            error.code,
            error.message,
        )
        for error in errors
    ]


def _valid(
    lines: list[int], events: list[dict[str, Any]], mapping: Mapped, errors: list[LineError]
) -> tuple[list[int], list[dict[str, Any]], Events | None]:
    """The events that can be accepted; the rest is appended to `errors`. A check may stop early, so it is repeated."""
    while events:
        try:
            return lines, events, decode_events(msgspec.json.encode({"events": events}))
        except NotJson as reason:
            errors += [LineError(lines[0], None, "not_text", str(reason))]
            return [], [], None
        except InvalidBatch as invalid:
            errors += line_errors(lines, mapping, invalid.errors)
            wrong = {error.index for error in invalid.errors}
            if None in wrong:
                return [], [], None
            lines = [line for index, line in enumerate(lines) if index not in wrong]
            events = [event for index, event in enumerate(events) if index not in wrong]
    return [], [], None
