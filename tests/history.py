"""A history of usage.events, and the pure fold of it: what counts, written from the rules, with nothing of the product.

Whatever computes totals (the SQL, the aggregator's table, an invoice) is held to this. A history is a log of messages by
place; each holds events or tombstones. An identity counts once, by its first event in the log; none does that a
tombstone names, wherever in the log it lies. Events without an identity count once by their message, which may lie in
the log more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from schemas import usage_batch, usage_void
from schemas.usage_batch import UsageBatch, unscaled_bytes
from schemas.usage_void import UsageVoids
from schemas.watermark import Watermark

CUSTOMERS = ("a", "b", "ü")
NAMES = ("calls", "bytes")
IDENTITIES = ("", "", "c:1", "c:2", "k:1:0", "c:é")
MAX_UNSCALED = 10**27 - 1

Place = tuple[int, int, int]
"""epoch, partition, offset of a message."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An event as it lies in the log. at: µs since 1970. unscaled: value × 10⁹; None: without."""

    organization: str
    customer: str
    name: str
    identity: str
    at: int
    unscaled: int | None


@dataclass(frozen=True, slots=True)
class Void:
    """A tombstone: no event of that identity counts."""

    organization: str
    customer: str
    name: str
    identity: str


@dataclass(frozen=True, slots=True)
class Written:
    """A message: events or tombstones, never both. repeated: its insert is done again, as after a crash.

    batch: stands for its batch_id; 0: it has none.
    """

    items: tuple[Sent, ...] | tuple[Void, ...]
    repeated: bool = False
    batch: int = 0


Log = Mapping[Place, Written]


@dataclass(frozen=True, slots=True)
class Counted:
    """An event that counts, and where it lies."""

    event: Sent
    place: Place
    index: int


@dataclass(frozen=True, slots=True)
class Folded:
    """Everything below a watermark, each event in exactly one of these; of no order."""

    counted: tuple[Counted, ...]
    duplicates: tuple[Counted, ...]
    voided: tuple[Counted, ...]


def log_of(
    messages: Sequence[tuple[int, Written]], partitions: int, home: Callable[[str], int]
) -> dict[Place, Written]:
    """Messages of (epoch, what was sent at once) as the gateway places them. home: customer → partition."""
    placed: dict[Place, Written] = {}
    ends: dict[tuple[int, int], int] = {}
    for epoch, message in messages:
        for partition in range(partitions):
            mine = tuple(item for item in message.items if home(item.customer) == partition)
            if mine:
                offset = ends.get((epoch, partition), 0)
                placed[epoch, partition, offset] = replace(message, items=mine)
                ends[epoch, partition] = offset + 1
    return placed


def fold(log: Log, below: Watermark | None = None) -> Folded:
    """What becomes of each event below the watermark (None: of all)."""
    known = {place: message for place, message in log.items() if below is None or below.covers(*place)}
    voids = {
        (item.organization, item.customer, item.name, item.identity)
        for message in known.values()
        for item in message.items
        if isinstance(item, Void)
    }
    seen: set[object] = set()
    counted: list[Counted] = []
    duplicates: list[Counted] = []
    voided: list[Counted] = []
    # The order of the log is that of epochs and offsets; a customer never leaves its partition.
    for place, message in sorted(known.items(), key=lambda entry: (entry[0][0], entry[0][2])):
        for index, item in enumerate(message.items):
            if isinstance(item, Void):
                continue
            found = Counted(item, place, index)
            key = (item.organization, item.customer, item.name, item.identity)
            own = (message.batch, message.items, index) if message.batch else (*place, index)
            identity = key if item.identity else own
            if identity in seen:
                duplicates.append(found)
            else:
                seen.add(identity)
                (voided if key in voids else counted).append(found)
    return Folded(tuple(counted), tuple(duplicates), tuple(voided))


def total(
    counted: Sequence[Counted], customer: str, name: str, start_us: int, end_us: int
) -> tuple[int, int, int | None]:
    """(sum × 10⁹, count, max × 10⁹ or None without a value) of a window [start_us, end_us)."""
    mine = [
        each.event
        for each in counted
        if (each.event.customer, each.event.name) == (customer, name) and start_us <= each.event.at < end_us
    ]
    values = [event.unscaled for event in mine if event.unscaled is not None]
    return sum(values), len(mine), max(values, default=None)


def encoded(message: Written, received_at: int = 1) -> bytes:
    """The message as the gateway writes it. received_at: µs."""
    events = [item for item in message.items if isinstance(item, Sent)]
    voids = [item for item in message.items if isinstance(item, Void)]
    assert bool(events) != bool(voids), "a message is one or the other"
    if voids:
        return usage_void.encode(
            UsageVoids(
                batch_id=message.batch.to_bytes(16, "big"),
                received_at=received_at,
                organization_id=[void.organization for void in voids],
                customer_id=[void.customer for void in voids],
                event_name=[void.name for void in voids],
                identity=[void.identity for void in voids],
                reason=["a test's"] * len(voids),
            )
        )
    return usage_batch.encode(
        UsageBatch(
            batch_id=message.batch.to_bytes(16, "big"),
            received_at=received_at,
            organization_id=[event.organization for event in events],
            customer_id=[event.customer for event in events],
            event_name=[event.name for event in events],
            timestamp=[event.at for event in events],
            value=[None if event.unscaled is None else unscaled_bytes(event.unscaled) for event in events],
            identity=[event.identity for event in events] if any(event.identity for event in events) else (),
        )
    )


# -- random histories --------------------------------------------------------------------------------------------------


def sent_of(organization: str) -> st.SearchStrategy[Sent]:
    return st.builds(
        Sent,
        organization=st.just(organization),
        customer=st.sampled_from(CUSTOMERS),
        name=st.sampled_from(NAMES),
        identity=st.sampled_from(IDENTITIES),
        at=st.integers(0, 30),
        unscaled=st.one_of(st.none(), st.integers(-3, 3), st.sampled_from((MAX_UNSCALED, -MAX_UNSCALED))),
    )


def void_of(organization: str) -> st.SearchStrategy[Void]:
    named = [identity for identity in IDENTITIES if identity]
    return st.builds(
        Void,
        organization=st.just(organization),
        customer=st.sampled_from(CUSTOMERS),
        name=st.sampled_from(NAMES),
        identity=st.sampled_from(named),
    )


@st.composite
def histories(
    draw: st.DrawFn, organization: str = "o", epochs: int = 2, messages_max: int = 6
) -> list[tuple[int, Written]]:
    """(epoch, message) in the order of sending: duplicates, late ones, tombstones before and after their events, and
    messages that lie in the log twice. Of two messages with one batch_id and other events both count."""
    events = st.lists(sent_of(organization), min_size=1, max_size=8).map(tuple)
    voids = st.lists(void_of(organization), min_size=1, max_size=2).map(tuple)
    message = st.builds(Written, st.one_of(events, events, voids), st.booleans(), st.integers(0, messages_max))
    sent = draw(st.lists(st.tuples(st.integers(1, epochs), message), min_size=1, max_size=messages_max))
    again = draw(st.lists(st.tuples(st.integers(1, epochs), st.sampled_from([each for _, each in sent])), max_size=3))
    return sent + again


def of_organization(messages: Sequence[tuple[int, Written]], organization: str) -> list[tuple[int, Written]]:
    """The same history of another tenant."""
    return [
        (epoch, replace(message, items=tuple(replace(item, organization=organization) for item in message.items)))
        for epoch, message in messages
    ]
