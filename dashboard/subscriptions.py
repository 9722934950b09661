"""A subscription's life as pure functions: begun, changed from the next cycle, cancelled now or at a cycle's end."""

from __future__ import annotations

from typing import Literal

from dashboard.problems import field_problem
from runtime.one_by_one import OneByOne
from schemas.period import DAY_US, Cycle, format_rfc3339, parse_rfc3339
from schemas.subscription import ProductChange, Subscription, SubscriptionSpec

Status = Literal["scheduled", "active", "ended"]


_LOOP = OneByOne("subscriptions", lambda _: False)
START_AHEAD_US_MAX = 5 * 366 * DAY_US


class AlreadyEnded(ValueError):
    """What has ended, or will before the change could come, can't be changed."""


def begun(
    spec: SubscriptionSpec, *, subscription_id: str, organization_id: str, time_zone: str, now: int
) -> Subscription:
    """A new subscription; its anchor is local time in time_zone, the organization's.

    Raises Problem 422 for a start before 1970, or so far ahead that it must be a mistake.
    """
    if spec.started_at is not None and not 0 <= parse_rfc3339(spec.started_at) <= now + START_AHEAD_US_MAX:
        raise field_problem("started_at", "started_at_range", "from 1970 to 5 years ahead is allowed")
    return Subscription(
        id=subscription_id,
        organization_id=organization_id,
        customer_id=spec.customer_id,
        product_id=spec.product_id,
        started_at=now if spec.started_at is None else parse_rfc3339(spec.started_at),
        billed_from=None if spec.billed_from is None else parse_rfc3339(spec.billed_from),
        billing_interval=spec.billing_interval,
        collection_method=spec.collection_method,
        time_zone=time_zone,
        created_at=now,
    )


def require_billed_from(subscription: Subscription, now: int) -> None:
    """Raises Problem 422 unless billed_from, where given, is the start of a cycle up to the next one to begin.

    Up to the next one: the starts of later ones move with the organization's time zone.
    """
    billed_from, last = subscription.billed_from, next_cycle_start(subscription, now)
    if billed_from is None:
        return
    if not subscription.started_at <= billed_from <= last:
        allowed = f"from {format_rfc3339(subscription.started_at)} to {format_rfc3339(last)} is allowed"
        raise field_problem("billed_from", "billed_from_range", f"{allowed}, the start of the next billing period")
    cycle = subscription.calendar.containing(billed_from)
    if cycle.start_us != billed_from:
        raise field_problem(
            "billed_from",
            "billed_from_not_a_start",
            f"a billing period starts at {cycle.start}, the next one at {cycle.end}; one of them is expected",
        )


def require_backdate(subscription: Subscription, *, backdate: bool, now: int) -> None:
    """Raises Problem 422 for cycles that are over already and would be invoiced, unless that is what is wanted."""
    periods = 0 if backdate else past_cycles(subscription, now)
    if periods:
        billed = f"{periods} billing period{'s' * (periods > 1)} from {format_rfc3339(subscription.charged_from)} on"
        raise field_problem(
            "backdate",
            "backdate_required",
            f'{billed} would be invoiced; send "backdate": true to invoice them, or "billed_from" to begin later',
        )


def past_cycles(subscription: Subscription, now: int) -> int:
    """How many of its cycles are over by now, and charged."""
    return sum(cycle.end_us <= now for cycle in subscription.calendar.between(subscription.charged_from, now))


def status_at(subscription: Subscription, now: int) -> Status:
    if subscription.ends_at is not None and subscription.ends_at <= now:
        return "ended"
    return "scheduled" if now < subscription.started_at else "active"


def cycle_at(subscription: Subscription, now: int) -> Cycle | None:
    """The whole billing cycle in which now lies, also where the subscription ends within it; None unless active."""
    if status_at(subscription, now) != "active":
        return None
    return subscription.calendar.containing(now)


def cycle_shown(subscription: Subscription, now: int) -> Cycle | None:
    """`cycle_at` for a list: of a subscription without a calendar None, so that the others are shown."""
    with _LOOP.one(subscription.id):
        return cycle_at(subscription, now)
    return None


def next_cycle_start(subscription: Subscription, now: int) -> int:
    """Start of the next cycle to begin, µs."""
    cycle = subscription.calendar.containing(max(now, subscription.started_at))
    return cycle.start_us if now < subscription.started_at else cycle.end_us


def cancelled(subscription: Subscription, at: Literal["now", "cycle_end"], now: int) -> Subscription:
    """Ends now, or where the current cycle does; one that has not begun never will. Never ends later than before.

    An ended subscription comes back as it is: to cancel twice is to cancel once.
    """
    ends_at = max(now, subscription.started_at) if at == "now" else next_cycle_start(subscription, now)
    if subscription.ends_at is not None:
        ends_at = min(ends_at, subscription.ends_at)
    return subscription.model_copy(update={"ends_at": ends_at})


def changed(subscription: Subscription, product_id: str, now: int) -> Subscription:
    """Another product from the next cycle on, in place of a change that was waiting for it. Raises AlreadyEnded."""
    from_us = next_cycle_start(subscription, now)
    if subscription.ends_at is not None and subscription.ends_at <= from_us:
        raise AlreadyEnded("the subscription ends before its next cycle")
    kept = tuple(change for change in subscription.changes if change.from_us < from_us)
    settled = subscription.model_copy(update={"changes": kept})
    if settled.product_at(from_us) == product_id:
        return settled
    return settled.model_copy(update={"changes": (*kept, ProductChange(product_id=product_id, from_us=from_us))})
