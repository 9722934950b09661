"""usage.totals record ⇄ bytes: what a customer used of one event_name in one cycle, as the aggregator counts it.

The topic is also the aggregator's own changelog. Records of its book-keeping have keys that begin with NUL, which no
organization's id does; readers get None for them. A newer record of a key need not come later (a worker that was
frozen may still write): readers keep the one that `supersedes` the other.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from schemas.event import VALUE_SCALE
from schemas.meter import Aggregation
from schemas.partition import customer_key

INTERNAL = b"\0"  # first byte of keys that are not a total's
_UNIT = 10**VALUE_SCALE
_DIGITS_MIN = VALUE_SCALE + 1  # one before the point


class UnreadableTotal(ValueError):
    """Bytes in usage.totals that are not a record of it."""


class UsageTotal(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that counts once of one customer, event_name and cycle, up to and with last_offset.

    sum, max: plain decimal strings; max None: no event had a value. cycle_start, cycle_end: µs since 1970, half-open.
    topic_id: Kafka's id of the usage.events that the offsets are of; the numbers include what earlier ones held.
    partition: of both topics. first_offset, last_offset: of messages with an event in this total, −1 before the first.
    updated_at: µs, the aggregator's clock. repairs: how many were applied (schemas/repair.py); repaired_sum,
    repaired_count: what they added, contained in sum and count.
    """

    organization_id: str
    customer_id: str
    event_name: str
    cycle_start: int
    cycle_end: int
    sum: str
    count: int
    max: str | None
    topic_id: str
    partition: int
    first_offset: int
    last_offset: int
    updated_at: int
    repairs: int = 0
    repaired_sum: str = "0"
    repaired_count: int = 0

    def quantity(self, aggregation: Aggregation) -> Decimal:
        """The part of a total that a meter with that aggregation reads; max without any value is 0. May be negative."""
        greatest = None if self.max is None else Decimal(self.max)
        return aggregation.quantity(Decimal(self.sum), Decimal(self.count), greatest, Decimal(0))

    @property
    def cycle_key(self) -> tuple[str, str, str, int, int]:
        """What it is the total of: organization, customer, event_name, cycle's start and end."""
        return (self.organization_id, self.customer_id, self.event_name, self.cycle_start, self.cycle_end)

    def supersedes(self, other: UsageTotal | None) -> bool:
        """Whether a reader that holds `other` of the same key should hold this instead."""
        if other is None:
            return True
        if self.topic_id == other.topic_id:
            return (self.last_offset, self.repairs) >= (other.last_offset, other.repairs)
        return self.updated_at >= other.updated_at


class Progress(msgspec.Struct, frozen=True):
    """How far the aggregator is in one partition: everything below next_offset is in the totals.

    log_time: greatest received_at up to there; updated_at: the aggregator's clock; both µs. repairs_next: the same of
    usage.repairs; None: not begun.
    """

    topic_id: str
    partition: int
    next_offset: int
    log_time: int
    updated_at: int
    repairs_next: int | None = None


class Closed(msgspec.Struct, frozen=True):
    """Of cycles of this partition that end at or before `before` (µs) there are no totals any more: ClickHouse has
    their usage. It only grows."""

    partition: int
    before: int


class Partial(msgspec.Struct, frozen=True):
    """There are more series of the organization in this partition than are kept: some of them may have no total, or
    one that lacks its beginning. through: the last offset at which one was left out."""

    organization_id: str
    partition: int
    through: int


PROGRESS_KEY = INTERNAL + b"progress"
BEGUN_KEY = INTERNAL + b"begun"
"""Of a record that is written before all others: what lies in a partition without it lacks its beginning."""
CLOSED_KEY = INTERNAL + b"closed"
_PARTIAL = INTERNAL + b"partial\0"

_encoder = msgspec.json.Encoder()
_total_decoder = msgspec.json.Decoder(UsageTotal)
_progress_decoder = msgspec.json.Decoder(Progress)
_closed_decoder = msgspec.json.Decoder(Closed)
_partial_decoder = msgspec.json.Decoder(Partial)


def total_key(organization_id: str, customer_id: str, event_name: str, cycle_start: int, cycle_end: int) -> bytes:
    """Key of a total. The end is part of it: two subscriptions may start a cycle at once and end it apart."""
    return f"{customer_key(organization_id, customer_id)}\0{event_name}\0{cycle_start}\0{cycle_end}".encode()


def partial_key(organization_id: str) -> bytes:
    return _PARTIAL + organization_id.encode()


def partial_organization(key: bytes) -> str | None:
    """The organization whose Partial has that key; None: it is another record's."""
    return key.removeprefix(_PARTIAL).decode() if key.startswith(_PARTIAL) else None


def encode(record: UsageTotal | Progress | Closed | Partial) -> bytes:
    return _encoder.encode(record)


def decode(key: bytes, value: bytes) -> UsageTotal | Progress | Closed | Partial | None:
    """The record; None for the aggregator's other book-keeping. A tombstone has no value: skip it before.

    Raises UnreadableTotal.
    """
    try:
        if not key.startswith(INTERNAL):
            return _total_decoder.decode(value)
        if key == PROGRESS_KEY:
            return _progress_decoder.decode(value)
        if key == CLOSED_KEY:
            return _closed_decoder.decode(value)
        return _partial_decoder.decode(value) if key.startswith(_PARTIAL) else None
    except msgspec.MsgspecError as error:
        raise UnreadableTotal(f"key {key!r}: {error}") from error


def decimal_text(unscaled: int) -> str:
    """value × 10⁹ as a plain decimal string without trailing zeros: 1_500_000_000 → "1.5"."""
    if unscaled % _UNIT == 0:
        return str(unscaled // _UNIT)
    digits = f"{unscaled:0{_DIGITS_MIN + (unscaled < 0)}d}"
    return f"{digits[:-VALUE_SCALE]}.{digits[-VALUE_SCALE:]}".rstrip("0")


def unscaled_of(text: str) -> int:
    """The reverse of decimal_text. Raises ValueError."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(VALUE_SCALE, "0"))
