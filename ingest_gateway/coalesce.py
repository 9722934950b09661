"""posted batches → messages: one per partition and flush, however many requests are in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Generic, TypeVar, cast

from ingest_gateway.decode import Events
from schemas.event import NO_IDENTITY, client_identity, request_identity
from schemas.usage_batch import EVENTS_PER_MESSAGE_MAX, UsageBatch

T = TypeVar("T")


@dataclass(slots=True)
class Columns:
    """Events of one partition under way, as the columns of a UsageBatch. Identities and properties stay empty lists
    until an event has one; then they are as long as the others."""

    organization_id: list[str] = field(default_factory=list[str])
    customer_id: list[str] = field(default_factory=list[str])
    event_name: list[str] = field(default_factory=list[str])
    timestamp: list[int] = field(default_factory=list[int])
    value: list[bytes | None] = field(default_factory=list["bytes | None"])
    identity: list[str] = field(default_factory=list[str])
    properties: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def __len__(self) -> int:
        return len(self.customer_id)

    def extend(self, other: Columns) -> None:
        before = len(self.customer_id)
        self.organization_id += other.organization_id
        self.customer_id += other.customer_id
        self.event_name += other.event_name
        self.timestamp += other.timestamp
        self.value += other.value
        if self.identity or other.identity:
            self.identity += [NO_IDENTITY] * (before - len(self.identity))
            self.identity += other.identity or [NO_IDENTITY] * len(other.customer_id)
        if self.properties or other.properties:
            self.properties += [{}] * (before - len(self.properties))
            self.properties += other.properties or [{}] * len(other)


def identities(events: Events, idempotency_key: str | None) -> list[str]:
    """One identity an event: client event_id, else the request's key and the index; empty when no event has one."""
    if idempotency_key is not None:
        return [
            request_identity(idempotency_key, index) if event_id is None else client_identity(event_id)
            for index, event_id in enumerate(events.event_id)
        ]
    if events.event_id.count(None) == len(events.event_id):
        return []
    return [NO_IDENTITY if event_id is None else client_identity(event_id) for event_id in events.event_id]


def split(
    events: Events, organization_id: str, idempotency_key: str | None, partition: Callable[[str], int]
) -> dict[int, Columns]:
    """The batch's events by partition, in their order. partition: customer_id → partition."""
    named = identities(events, idempotency_key)
    if len(events.customer_id) == 1:  # as below, in a fifth of the time
        described = [events.properties[0]] if events.properties[0] else []
        names, customers = events.event_name, events.customer_id
        columns = Columns([organization_id], customers, names, events.timestamp, events.value, named, described)
        return {partition(customers[0]): columns}
    described = [properties or {} for properties in events.properties] if any(events.properties) else []
    whole: tuple[Sequence[Any], ...] = (
        events.customer_id,
        events.event_name,
        events.timestamp,
        events.value,
        named,
        described,
    )
    numbers = list(map(partition, events.customer_id))
    wanted = set(numbers)
    if len(wanted) == 1:
        picked: dict[int, list[list[Any]]] = {numbers[0]: [cast(list[Any], column) for column in whole]}
    else:
        # Which rows go where is worked out once; then each column is picked apart without a loop in Python.
        rows: dict[int, list[int]] = {number: [] for number in wanted}
        for row, number in enumerate(numbers):
            rows[number].append(row)
        picked = {number: [_pick(column, mine) for column in whole] for number, mine in rows.items()}
    return {number: Columns([organization_id] * len(parts[0]), *parts) for number, parts in picked.items()}


def _pick(column: Sequence[Any], rows: list[int]) -> list[Any]:
    """The column's items of those rows; an absent column stays absent."""
    if not column:
        return []
    return [column[rows[0]]] if len(rows) == 1 else list(itemgetter(*rows)(column))


@dataclass(slots=True)
class Claim(Generic[T]):
    """`events` consecutive events of a message that belong to `owner`. Not frozen: see Events."""

    owner: T
    events: int


class Coalescer(Generic[T]):
    """Collects columns until the next flush. Not thread-safe: the event loop's own."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[tuple[T, Columns]]] = {}
        self.events = 0

    def add(self, owner: T, partition: int, columns: Columns) -> None:
        self._waiting.setdefault(partition, []).append((owner, columns))
        self.events += len(columns)

    def drain(
        self, batch_id: Callable[[], bytes], received_at: int
    ) -> Iterator[tuple[int, UsageBatch, list[Claim[T]]]]:
        """Everything collected as (partition, message, claims), each at most 1,024 events; nothing is left.

        A request's events of one partition are never divided between messages, so a receipt names one offset.
        """
        waiting, self._waiting, self.events = self._waiting, {}, 0
        for partition, parts in waiting.items():
            merged, claims, count = Columns(), list[Claim[T]](), 0
            for owner, columns in parts:
                events = len(columns)
                if count + events > EVENTS_PER_MESSAGE_MAX:
                    yield partition, _message(merged, batch_id(), received_at), claims
                    merged, claims, count = Columns(), list[Claim[T]](), 0
                merged.extend(columns)
                claims.append(Claim(owner, events))
                count += events
            yield partition, _message(merged, batch_id(), received_at), claims


def _message(columns: Columns, batch_id: bytes, received_at: int) -> UsageBatch:
    return UsageBatch(
        batch_id,
        received_at,
        columns.organization_id,
        columns.customer_id,
        columns.event_name,
        columns.timestamp,
        columns.value,
        columns.identity,
        columns.properties,
    )
