"""The log of usage.events, read and counted by means of its own → what totals, ClickHouse, invoices and alerts must be.

Nothing of the product's decoding or folding is used: fastavro reads the messages, and a plain loop over events in log
order keeps the first of each identity.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

import schemas
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from tests.chaos.lost_end import Cut, starts_by_partition, times_lost
from tests.chaos.stack import UNIT_AMOUNTS


def _schema(name: str) -> Any:
    return fastavro.parse_schema(json.loads((Path(schemas.__file__).parent / name).read_text()))


_BATCH, _VOID = _schema("usage_batch.avsc"), _schema("usage_void.avsc")
_HEADER = 5
_VOID_HEADER = b"\0\0\0\0\2"
_CENT = Decimal("0.01")

Message = tuple[int, int, int]
"""partition, how often its log had lost its end before it, offset: in the order of each partition."""
Place = tuple[int, int, int, int]
"""A Message, and the index in it."""
Identity = tuple[str, str, str]
"""customer_id, event_name, identity."""
Cycle = tuple[int, int]
"""start and end, µs."""
Key = tuple[str, str, Cycle]
"""customer_id, event_name, cycle."""


@dataclass(frozen=True, slots=True)
class Logged:
    """An event as it is in the log. at: µs. gone: the log lost it, and nobody had stored it."""

    place: Place
    customer: str
    name: str
    at: int
    value: Decimal | None
    identity: str
    gone: bool = False

    @property
    def identified(self) -> Identity:
        return (self.customer, self.name, self.identity)


@dataclass(slots=True)
class Sum:
    count: int = 0
    total: Decimal = Decimal(0)
    most: Decimal | None = None

    def add(self, value: Decimal | None) -> None:
        self.count += 1
        if value is not None:
            self.total += value
            self.most = value if self.most is None else max(self.most, value)


@dataclass
class Log:
    """Every event and every tombstone in the order of each partition, and which messages were neither.

    With what the log has lost since. again: messages whose batch_id came before in their partition: one batch, written
    twice. unreadable_gone: those of the unreadable that the log has lost.
    """

    events: list[Logged] = field(default_factory=list[Logged])
    voids: list[Logged] = field(default_factory=list[Logged])
    unreadable: set[Message] = field(default_factory=set[Message])
    unreadable_gone: set[Message] = field(default_factory=set[Message])
    again: set[Message] = field(default_factory=set[Message])

    @property
    def kept(self) -> list[Logged]:
        return [event for event in self.events if not event.gone]

    @property
    def gone(self) -> list[Logged]:
        return [event for event in self.events if event.gone]

    def firsts(
        self, below: Mapping[int, tuple[int, int]] | None = None, *, voided: bool = False, gone: bool = False
    ) -> Iterator[Logged]:
        """What counts: of events with one identity the first, of a batch the first, and none that a tombstone names.

        below: partition → how often it had lost its end, and next offset, of a watermark. voided, gone: count what is
        voided too, and what the log has lost.
        """

        def known(event: Logged) -> bool:
            if event.gone and not gone:
                return False
            return below is None or event.place[1:3] < below.get(event.place[0], (0, 0))

        seen: set[Identity] = set()
        void = set() if voided else {each.identified for each in self.voids if known(each)}
        for event in filter(known, self.events):
            if event.place[:3] in self.again:
                continue
            if event.identity:
                if event.identified in seen:
                    continue
                seen.add(event.identified)
                if event.identified in void:
                    continue
            yield event


def read_messages(settings: Settings, topic: str) -> Iterator[tuple[int, int, bytes | None, bytes | None]]:
    """(partition, offset, key, value) of a whole topic, each partition in its order."""
    consumer = Consumer({**settings.kafka_properties, "group.id": "chaos-count", "enable.partition.eof": True})
    unread = set(range(settings.event_partitions))
    consumer.assign([TopicPartition(topic_name(settings, topic), p, OFFSET_BEGINNING) for p in unread])
    silent = 0
    try:
        while unread:
            messages = consumer.consume(10_000, 1.0)
            silent = 0 if messages else silent + 1
            assert silent < 30, f"{topic} could not be read"
            for message in messages:
                partition, offset = message.partition() or 0, message.offset() or 0
                if (error := message.error()) is None:
                    key, value = message.key(), message.value()
                    yield partition, offset, key.encode() if isinstance(key, str) else key, value
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error  # pyright: ignore[reportPrivateUsage]
                    unread.discard(partition)
    finally:
        consumer.close()


def read_log(
    settings: Settings, poison: Iterable[bytes], cuts: Sequence[Cut] = (), stored: Callable[[Cut, int], bool] = Cut.had
) -> Log:
    """poison: messages that are known to be no batches; whatever else can't be read is an error.

    cuts: in the order in which they happened. stored: whether ClickHouse has the message that a cut took from an offset.
    """
    starts = starts_by_partition(cuts)
    messages: dict[Message, tuple[bytes, bool]] = {}
    for partition, offset, _, value in read_messages(settings, USAGE_EVENTS):
        messages[partition, times_lost(starts.get(partition, ()), offset), offset] = value or b"", False
    for number, cut in enumerate(cuts):
        before = starts_by_partition(cuts[:number]).get(cut.partition, ())
        for offset, value in cut.gone.items():
            messages[cut.partition, times_lost(before, offset), offset] = value, not stored(cut, offset)
    return decoded(messages, set(poison))


def decoded(messages: Mapping[Message, tuple[bytes, bool]], bad: set[bytes]) -> Log:
    """messages: bytes, and whether they are gone."""
    log, batches = Log(), set[tuple[int, bytes]]()
    for message, (value, gone) in sorted(messages.items()):
        if value in bad:
            (log.unreadable_gone if gone else log.unreadable).add(message)
            continue
        is_void = value.startswith(_VOID_HEADER)
        batch: Any = fastavro.schemaless_reader(io.BytesIO(value[_HEADER:]), _VOID if is_void else _BATCH, None)
        if is_void:
            names = zip(batch["customer_id"], batch["event_name"], batch["identity"], strict=True)
            log.voids += [
                Logged((*message, index), customer, name, 0, None, identity, gone)
                for index, (customer, name, identity) in enumerate(names)
            ]
            continue
        if not gone:
            if (message[0], batch["batch_id"]) in batches:
                log.again.add(message)
            batches.add((message[0], batch["batch_id"]))
        identities = batch["identity"] or [""] * len(batch["customer_id"])
        columns = zip(
            batch["customer_id"], batch["event_name"], batch["timestamp"], batch["value"], identities, strict=True
        )
        for index, (customer, name, at, number, identity) in enumerate(columns):
            micros = int(at.timestamp()) * 1_000_000 + at.microsecond
            log.events.append(Logged((*message, index), customer, name, micros, number, identity, gone))
    return log


def by_cycle(events: Iterable[Logged], cycles: Mapping[str, list[Cycle]]) -> dict[Key, Sum]:
    """Sums by customer, event_name and cycle, of the customers that have cycles here."""
    found: dict[Key, Sum] = defaultdict(Sum)
    for event in events:
        for cycle in cycles.get(event.customer, ()):
            if cycle[0] <= event.at < cycle[1]:
                found[event.customer, event.name, cycle].add(event.value)
    return dict(found)


def invoice_total(calls: Sum, peak: Sum) -> Decimal:
    """By the prices that stack.py sets: each line rounded once, half up; what is negative costs nothing."""
    quantities = {"count": Decimal(calls.count), "sum": calls.total, "max": peak.most or Decimal(0)}
    return sum(
        (
            (Decimal(UNIT_AMOUNTS[aggregation]) * max(Decimal(0), quantity)).quantize(_CENT, ROUND_HALF_UP)
            for aggregation, quantity in quantities.items()
        ),
        Decimal(0),
    )
