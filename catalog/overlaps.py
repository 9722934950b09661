"""A customer's subscriptions → products and meters that two of them would charge in the same time. Pure.

One subscription of a customer at a time charges a meter, and a product, whatever the price.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from schemas.subscription import FOR_EVER, ProductSpan, Subscription

OverlapCode = Literal["meter_priced_twice", "product_subscribed_twice"]


class Meters(Protocol):
    """The part of the catalog's view that the rule needs."""

    def meters_of(self, organization_id: str, product_ids: Iterable[str]) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class Overlap:
    """since_us ≤ t < until_us (µs): this subscription and the other one both charge the product or meter `named`."""

    other_id: str
    code: OverlapCode
    named: str
    since_us: int
    until_us: int

    @property
    def message(self) -> str:
        does = "prices" if self.code == "meter_priced_twice" else "charges"
        return f"subscription {self.other_id} of this customer already {does} {self.named} in that time"

    def within(self, other: Overlap) -> bool:
        """Whether the other overlap includes this one."""
        same = (self.other_id, self.code, self.named) == (other.other_id, other.code, other.named)
        return same and other.since_us <= self.since_us and self.until_us <= other.until_us


def charged_twice(
    view: Meters, subscription: Subscription, others: Iterable[Subscription], before: Subscription | None
) -> Overlap | None:
    """The first overlap that the subscription adds. An overlap of the subscription as it was `before` is accepted."""
    others = list(others)
    known = [] if before is None else list(_overlaps(view, before, others))
    return next(
        (
            found
            for found in _overlaps(view, subscription, others)
            if not any(found.within(overlap) for overlap in known)
        ),
        None,
    )


def _overlaps(view: Meters, subscription: Subscription, others: Iterable[Subscription]) -> Iterator[Overlap]:
    for other in others:
        for span in subscription.spans:
            for theirs in other.spans:
                since, until = max(span.since_us, theirs.since_us), min(span.until_us, theirs.until_us)
                twice = _charged_by_both(view, subscription.organization_id, span, theirs) if since < until else None
                if twice is not None:
                    yield Overlap(other.id, *twice, since, until)


def _charged_by_both(
    view: Meters, organization_id: str, span: ProductSpan, theirs: ProductSpan
) -> tuple[OverlapCode, str] | None:
    meters = view.meters_of(organization_id, [span.product_id]) & view.meters_of(organization_id, [theirs.product_id])
    if meters:
        return "meter_priced_twice", ", ".join(sorted(meters))
    if span.product_id == theirs.product_id:
        return "product_subscribed_twice", span.product_id
    return None


def priced_twice_ever(view: Meters, subscription: Subscription, others: Iterable[Subscription]) -> Overlap | None:
    """The rule of the first records (RULES 1): meters of every product that a subscription ever had, all the time."""
    meters = view.meters_of(subscription.organization_id, subscription.product_ids)
    for other in others:
        twice = meters & view.meters_of(other.organization_id, other.product_ids)
        if twice and subscription.started_at < _end(other) and other.started_at < _end(subscription):
            since, until = max(subscription.started_at, other.started_at), min(_end(subscription), _end(other))
            return Overlap(other.id, "meter_priced_twice", ", ".join(sorted(twice)), since, until)
    return None


def _end(subscription: Subscription) -> int:
    return FOR_EVER if subscription.ends_at is None else subscription.ends_at
