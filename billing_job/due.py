"""subscriptions, as_of, now → the cycles that are due, and those whose grace still runs. Pure.

A cycle is billed up to its end, or up to the end of a subscription that ended within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from schemas.ledger import FIRST_REVISION, invoice_id
from schemas.period import SECOND_US, Cycle, cycle_containing, cycles, format_rfc3339
from schemas.subscription import Subscription


class AsOfInFuture(ValueError):
    """Cycles were to be closed as of an instant that has not come."""


@dataclass(frozen=True, slots=True)
class DueCycle:
    """A cycle of a subscription that ended, with what it is billed by.

    active_until: µs, end of what is billed. closable_at: µs, from when on it may be closed. revision: of its invoice;
    a later one where that of before is void and was to be made anew.
    """

    invoice_id: str
    organization_id: str
    customer_id: str
    subscription_id: str
    product_id: str
    cycle: Cycle
    active_until: int
    closable_at: int
    revision: int = FIRST_REVISION


@dataclass(frozen=True, slots=True)
class DueCycles:
    """due: may be closed now. in_grace: ended by as_of, but late events are still waited for. Oldest first."""

    due: tuple[DueCycle, ...]
    in_grace: tuple[DueCycle, ...]


def due_cycles(
    subscriptions: Iterable[Subscription],
    *,
    as_of_us: int,
    now_us: int,
    grace_seconds: Callable[[str], int],
    wait_for_imports: bool = False,
) -> DueCycles:
    """Cycles that ended at or before as_of and began while their subscription ran.

    grace_seconds: of an organization's id. wait_for_imports: what is billed of a time before the subscription was made
    waits for its creation + grace, so that history can be imported first; an explicit close does not wait for that.
    Raises AsOfInFuture.
    """
    if as_of_us > now_us:
        raise AsOfInFuture(f"{format_rfc3339(as_of_us)} has not come yet")
    due: list[DueCycle] = []
    in_grace: list[DueCycle] = []
    for subscription in subscriptions:
        grace_us = grace_seconds(subscription.organization_id) * SECOND_US
        for found in _ended(subscription, as_of_us, grace_us, wait_for_imports=wait_for_imports):
            (due if found.closable_at <= now_us else in_grace).append(found)
    return DueCycles(_oldest_first(due), _oldest_first(in_grace))


def open_cycle(subscription: Subscription, now_us: int) -> DueCycle | None:
    """The cycle that runs now, billed as if it ended as planned; None before the start and after the end."""
    ends_at = subscription.ends_at
    if now_us < subscription.started_at or (ends_at is not None and ends_at <= now_us):
        return None
    current = cycle_containing(subscription.started_at, subscription.billing_interval, subscription.time_zone, now_us)
    return _due(subscription, current, grace_us=0, wait_for_imports=False)


def _ended(subscription: Subscription, as_of_us: int, grace_us: int, *, wait_for_imports: bool) -> Iterable[DueCycle]:
    # A cycle that starts at the subscription's end was never begun.
    until = as_of_us if subscription.ends_at is None else min(as_of_us, subscription.ends_at)
    for cycle in cycles(subscription.started_at, subscription.billing_interval, subscription.time_zone, until):
        found = _due(subscription, cycle, grace_us, wait_for_imports=wait_for_imports)
        if found.active_until <= as_of_us:
            yield found


def _due(subscription: Subscription, cycle: Cycle, grace_us: int, *, wait_for_imports: bool) -> DueCycle:
    ends_at = subscription.ends_at
    active_until = cycle.end_us if ends_at is None else min(cycle.end_us, ends_at)
    counts_from = max(active_until, subscription.created_at) if wait_for_imports else active_until
    return DueCycle(
        invoice_id=invoice_id(subscription.organization_id, subscription.id, cycle.start_us),
        organization_id=subscription.organization_id,
        customer_id=subscription.customer_id,
        subscription_id=subscription.id,
        product_id=subscription.product_at(cycle.start_us),
        cycle=cycle,
        active_until=active_until,
        closable_at=counts_from + grace_us,
    )


def _oldest_first(found: list[DueCycle]) -> tuple[DueCycle, ...]:
    def order(due: DueCycle) -> tuple[int, str, str, str]:
        return (due.active_until, due.organization_id, due.customer_id, due.invoice_id)

    return tuple(sorted(found, key=order))
