"""invoices, subscriptions, products, meters → when an event is billed, late, held, or not due yet. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from schemas.partition import partition_of
from schemas.watermark import Watermark


class EventClass(IntEnum):
    """What became of an accepted event, by precedence: where two apply, the lesser is its class."""

    DEAD_LETTER = 0
    DUPLICATE = 1
    VOIDED = 2
    UNMATCHED = 3
    UNPRICED = 4
    IGNORED_LATE = 5
    PENDING_LATE = 6
    TRUED_UP = 7
    BILLED = 8
    HELD = 9
    NOT_DUE = 10

    @property
    def label(self) -> str:
        """Its name in answers: `dead_letter` and so on."""
        return self.name.lower()


_HELD_STATES = frozenset({"waiting", "mismatch", "void"})


@dataclass(frozen=True, slots=True)
class AuditedInvoice:
    """watermark None: it is waiting, and nothing is fixed. event_names: that its meters read. Instants are µs."""

    organization_id: str
    customer_id: str
    subscription_id: str
    state: str
    cycle_start: int
    active_until: int
    event_names: tuple[str, ...]
    watermark: Watermark | None
    trued_up: bool


@dataclass(frozen=True, slots=True)
class AuditedSubscription:
    """spans: (from, until, product_id), half-open, µs; until FOR_EVER: it goes on."""

    organization_id: str
    customer_id: str
    id: str
    spans: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Events of the series in [start_us, end_us) are of class_billed below the order billed_below, TRUED_UP from there
    and below trued_below, of class_late at and above both."""

    organization_id: str
    customer_id: str
    event_name: str
    start_us: int
    end_us: int
    billed_below: int
    trued_below: int
    class_billed: EventClass
    class_late: EventClass


def order_of(watermark: Watermark, partition: int) -> int:
    """The order in the log (see usage_events.position) of the first event that the watermark does not count."""
    epoch, offset = watermark.place(partition)
    return epoch << 54 | offset << 10


def windows(
    invoices: Sequence[AuditedInvoice],
    subscriptions: Iterable[AuditedSubscription],
    names_priced: Mapping[tuple[str, str], Iterable[str]],
    ignoring_late: frozenset[str],
    partitions: int,
) -> Iterator[Window]:
    """names_priced: (organization_id, product_id) → event_names that its meters read. ignoring_late: organizations."""
    by_subscription: dict[tuple[str, str], list[AuditedInvoice]] = defaultdict(list)
    for invoice in invoices:
        by_subscription[invoice.organization_id, invoice.subscription_id].append(invoice)
    for each in subscriptions:
        # An invoiced cycle lies in such a window too; that it is invoiced takes precedence.
        for start, end, product_id in each.spans:
            for name in sorted(set(names_priced.get((each.organization_id, product_id), ()))):
                key = (each.organization_id, each.customer_id, name)
                yield Window(*key, start, end, 0, 0, EventClass.NOT_DUE, EventClass.NOT_DUE)
        yield from _invoiced(
            by_subscription[each.organization_id, each.id], each, names_priced, ignoring_late, partitions
        )


def _invoiced(
    invoices: Sequence[AuditedInvoice],
    subscription: AuditedSubscription,
    names_priced: Mapping[tuple[str, str], Iterable[str]],
    ignoring_late: frozenset[str],
    partitions: int,
) -> Iterator[Window]:
    partition = partition_of(subscription.organization_id, subscription.customer_id, partitions)
    late = EventClass.IGNORED_LATE if subscription.organization_id in ignoring_late else EventClass.PENDING_LATE
    for invoice in invoices:
        start, end = invoice.cycle_start, invoice.active_until
        if invoice.watermark is None:
            # Not fixed yet: whatever its product prices waits with it.
            product_id = next((p for since, until, p in subscription.spans if since <= start < until), "")
            for name in sorted(set(names_priced.get((invoice.organization_id, product_id), ()))):
                key = (invoice.organization_id, invoice.customer_id, name)
                yield Window(*key, start, end, 0, 0, EventClass.HELD, EventClass.HELD)
            continue
        billed_below = order_of(invoice.watermark, partition)
        trued = [
            order_of(other.watermark, partition)
            for other in invoices
            if other.trued_up
            and other.state != "void"
            and other.watermark is not None
            and other.cycle_start > invoice.cycle_start
        ]
        billed = EventClass.HELD if invoice.state in _HELD_STATES else EventClass.BILLED
        for name in sorted(set(invoice.event_names)):
            key = (invoice.organization_id, invoice.customer_id, name)
            if invoice.state == "void":
                # Nothing is late for it. Where its cycle was invoiced again, that invoice takes precedence.
                yield Window(*key, start, end, billed_below, 0, EventClass.HELD, EventClass.HELD)
            else:
                yield Window(*key, start, end, billed_below, max(trued, default=0), billed, late)
