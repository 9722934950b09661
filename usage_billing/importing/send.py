"""checked chunks → the gateway, several at once; what it refuses is named by its line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ingest_gateway.decode import EventError
from usage_billing.client import EventsRefused, Receipt, UsageClient, batches
from usage_billing.importing.check import Chunk, LineError, line_errors
from usage_billing.importing.mapping import Mapped

CONNECTIONS = 4


@dataclass(slots=True)
class Sent:
    """What became of the file's events. unmatched: of those accepted. names, customers: some of the unmatched."""

    accepted: int = 0
    unmatched: int = 0
    names: dict[str, None] = field(default_factory=dict[str, None])
    customers: dict[str, None] = field(default_factory=dict[str, None])
    errors: list[LineError] = field(default_factory=list[LineError])

    def add(self, receipt: Receipt) -> None:
        self.accepted += receipt.accepted
        self.unmatched += receipt.unmatched
        self.names |= dict.fromkeys(receipt.unmatched_event_names)
        self.customers |= dict.fromkeys(receipt.unmatched_customers)


def send_chunks(
    client: UsageClient, chunks: Iterable[Chunk], mapping: Mapped, sent: Sent, progress: Callable[[int], None]
) -> None:
    """Send every chunk; `sent` grows while it goes. progress: called with events that were dealt with.

    A chunk with a refused event is sent again without it: what only the gateway knows, such as a meter that needs a
    value, holds up no other row. Raises NoAnswer, and EventsRefused for what is no fault of an event (401, 403, 413).
    """
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        under_way: deque[tuple[Chunk, Future[tuple[list[Receipt], list[LineError]]]]] = deque()

        def settle() -> None:
            chunk, future = under_way.popleft()
            receipts, errors = future.result()
            for receipt in receipts:
                sent.add(receipt)
            sent.errors += errors
            progress(len(chunk.events))

        for chunk in chunks:
            under_way.append((chunk, pool.submit(_send, client, chunk, mapping)))
            if len(under_way) >= 2 * CONNECTIONS:
                settle()
        while under_way:
            settle()


def _send(client: UsageClient, chunk: Chunk, mapping: Mapped) -> tuple[list[Receipt], list[LineError]]:
    """In as many requests as its bytes need."""
    receipts: list[Receipt] = []
    errors: list[LineError] = []
    first = 0
    for events in batches(chunk.events):
        lines = chunk.lines[first : first + len(events)]
        first += len(events)
        receipt = _send_batch(client, lines, events, mapping, errors)
        receipts += [] if receipt is None else [receipt]
    return receipts, errors


def _send_batch(
    client: UsageClient, lines: list[int], events: list[dict[str, Any]], mapping: Mapped, errors: list[LineError]
) -> Receipt | None:
    """Refused events are appended to `errors`, and the others are sent; None: all were refused."""
    while events:
        try:
            return client.send(events)
        except EventsRefused as refused:
            named = [
                EventError(error.get("index"), error.get("field"), error.get("code", ""), error.get("message", ""))
                for error in refused.problem.get("errors", [])
            ]
            wrong = {error.index for error in named}
            if refused.status != 422 or not wrong or None in wrong:
                raise
            errors += line_errors(lines, mapping, named)
            lines = [line for index, line in enumerate(lines) if index not in wrong]
            events = [event for index, event in enumerate(events) if index not in wrong]
    return None
