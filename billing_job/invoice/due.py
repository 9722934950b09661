"""subscriptions, as_of, now → the cycles that are due, and those whose grace still runs. Pure.

A cycle is billed up to its end, or up to the end of a subscription that ended within it. Late usage of
the last cycle is on a final invoice, FINAL_AFTER_DAYS later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from ledger.snapshot import FIRST_REVISION, invoice_id
from schemas.period import SECOND_US, Cycle, format_rfc3339
from schemas.subscription import Subscription

FINAL_AFTER_DAYS = 30
_FINAL_AFTER_US = FINAL_AFTER_DAYS * 86_400 * SECOND_US


class AsOfInFuture(ValueError):
    """Cycles were to be closed as of an instant that has not come."""


class DueCycle(msgspec.Struct, frozen=True):
    """A cycle of a subscription that ended, with what it is billed by.

    active_until: µs, end of what is billed. closable_at: µs, from when on it may be closed. final: it is the time after
    a subscription's end, of which nothing is billed but corrections of what was before. revision: of its invoice; a
    later one where the one before is void and is to be reissued.
    """

    invoice_id: str
    organization_id: str
    customer_id: str
    subscription_id: str
    product_id: str
    cycle: Cycle
    active_until: int
    closable_at: int
    final: bool = False
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
    trues_up: Callable[[str], bool],
    wait_for_imports: bool = False,
) -> DueCycles:
    """Cycles that ended by as_of and began while their subscription charged; final invoices where that has ended.

    grace_seconds: of an organization's id. trues_up: whether an organization bills late usage. wait_for_imports: what
    is billed of a time before the subscription was made waits for its creation + grace, so that history can be imported
    first; an explicit close does not wait for that. Raises AsOfInFuture.
    """
    require_past(as_of_us, now_us)
    due: list[DueCycle] = []
    in_grace: list[DueCycle] = []
    for subscription in subscriptions:
        grace_us = grace_seconds(subscription.organization_id) * SECOND_US
        ended = list(_ended(subscription, as_of_us, grace_us, wait_for_imports=wait_for_imports))
        if ended and trues_up(subscription.organization_id):
            final = _final(subscription, as_of_us, grace_us, wait_for_imports=wait_for_imports)
            ended += [] if final is None else [final]
        for found in ended:
            (due if found.closable_at <= now_us else in_grace).append(found)
    return DueCycles(_oldest_first(due), _oldest_first(in_grace))


def require_past(as_of_us: int, now_us: int) -> None:
    """Raises AsOfInFuture."""
    if as_of_us > now_us:
        raise AsOfInFuture(f"{format_rfc3339(as_of_us)} has not come yet")


def join_due_cycles(parts: Iterable[DueCycles]) -> DueCycles:
    """The due cycles of several parts of the subscriptions, as one."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    return DueCycles(
        _oldest_first([each for part in found for each in part.due]),
        _oldest_first([each for part in found for each in part.in_grace]),
    )


def owed_at(subscription: Subscription, at_us: int, is_invoiced: Callable[[str], bool]) -> DueCycle | None:
    """`cycle_at`, but after the end first the last cycle, which the end cut short, until that is invoiced.

    is_invoiced: by the id of an invoice.
    """
    ends_at = subscription.ends_at
    if ends_at is not None and subscription.charged_from < ends_at <= at_us:
        last = _due(subscription, subscription.calendar.containing(ends_at - 1), grace_us=0, wait_for_imports=False)
        if not is_invoiced(last.invoice_id):
            return last
    return cycle_at(subscription, at_us)


def cycle_at(subscription: Subscription, at_us: int) -> DueCycle | None:
    """The cycle that runs then, billed as if it ended as planned; after the end the time of the final invoice.

    None before it charges anything, and after that time.
    """
    ends_at = subscription.ends_at
    if at_us < subscription.charged_from:
        return None
    if ends_at is not None and ends_at <= at_us:
        never_begun = ends_at <= subscription.charged_from or at_us >= ends_at + _FINAL_AFTER_US
        return None if never_begun else _after(subscription, ends_at, grace_us=0, wait_for_imports=False)
    current = subscription.calendar.containing(at_us)
    return _due(subscription, current, grace_us=0, wait_for_imports=False)


def _ended(subscription: Subscription, as_of_us: int, grace_us: int, *, wait_for_imports: bool) -> Iterable[DueCycle]:
    # A cycle that starts at the subscription's end was never begun.
    until = as_of_us if subscription.ends_at is None else min(as_of_us, subscription.ends_at)
    for cycle in subscription.calendar.between(subscription.charged_from, until):
        found = _due(subscription, cycle, grace_us, wait_for_imports=wait_for_imports)
        if found.active_until <= as_of_us:
            yield found


def _final(subscription: Subscription, as_of_us: int, grace_us: int, *, wait_for_imports: bool) -> DueCycle | None:
    ends_at = subscription.ends_at
    if ends_at is None or ends_at + _FINAL_AFTER_US > as_of_us:
        return None
    return _after(subscription, ends_at, grace_us, wait_for_imports=wait_for_imports)


def _after(subscription: Subscription, ends_at: int, grace_us: int, *, wait_for_imports: bool) -> DueCycle:
    after = Cycle(ends_at, ends_at + _FINAL_AFTER_US)
    counts_from = max(after.end_us, subscription.created_at) if wait_for_imports else after.end_us
    return DueCycle(
        invoice_id=invoice_id(subscription.organization_id, subscription.id, ends_at),
        organization_id=subscription.organization_id,
        customer_id=subscription.customer_id,
        subscription_id=subscription.id,
        product_id=subscription.product_at(ends_at - 1),
        cycle=after,
        active_until=after.end_us,
        closable_at=counts_from + grace_us,
        final=True,
    )


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
