"""For tests of code that tracks usage: a double that keeps events in a list, and sends nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from usage_billing_client.client import Stats
from usage_billing_client.errors import ClientClosed
from usage_billing_client.events import Event, Value


class RecordingClient:
    """Stands where a UsageClient would: the same methods, and `events` for assertions."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.position: str | None = None
        self._closed = False

    def track(
        self,
        customer_id: str,
        event_name: str,
        value: Value = None,
        *,
        timestamp: datetime | None = None,
        event_id: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the event; its time is now unless it is given."""
        self.track_all([Event(customer_id, event_name, value, timestamp, event_id, properties)])

    def track_all(self, events: Iterable[Event], *, position: str | None = None) -> None:
        """Keep the events and the position."""
        if self._closed:
            raise ClientClosed("the client is closed")
        now = datetime.now(UTC)
        self.events += [
            Event(e.customer_id, e.event_name, e.value, e.timestamp or now, e.event_id, e.properties) for e in events
        ]
        self.position = position if position is not None else self.position

    def of(self, customer_id: str, event_name: str | None = None) -> list[Event]:
        """The events of a customer, of one name or of all, in the order they were tracked."""
        return [e for e in self.events if e.customer_id == customer_id and event_name in (None, e.event_name)]

    @property
    def waiting(self) -> int:
        """Always 0."""
        return 0

    def persist(self, timeout: float = 30.0) -> None:
        """Nothing to wait for."""

    def flush(self, timeout: float = 30.0) -> None:
        """Nothing to wait for."""

    def close(self, timeout: float | None = None) -> None:
        """Refuse events from now on, as the real one does."""
        self._closed = True

    def stats(self) -> Stats:
        """All tracked events count as accepted."""
        return Stats(len(self.events), len(self.events), 0, 0, 0, 0, 0, None)

    def __enter__(self) -> RecordingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
