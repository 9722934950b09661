"""customer × product: from when on, in which cycles, and how it is collected."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from schemas.customer import CollectionMethod
from schemas.organization import Identifier, TimeZone
from schemas.period import BillingCalendar, BillingInterval, parse_rfc3339


def _instant(text: str) -> str:
    parse_rfc3339(text)
    return text


Rfc3339 = Annotated[str, AfterValidator(_instant)]


class SubscriptionSpec(BaseModel):
    """The fields that a merchant posts. Instants: RFC 3339 with offset.

    started_at: the anchor of every cycle; None: now. billed_from: start of the first cycle that is invoiced; None: the
    first. backdate: whether cycles that are over already are to be invoiced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    customer_id: Identifier
    product_id: Identifier
    started_at: Rfc3339 | None = None
    billed_from: Rfc3339 | None = None
    backdate: bool = False
    billing_interval: BillingInterval = "month"
    collection_method: CollectionMethod = "charge_automatically"


class ProductChange(BaseModel):
    """Another product from a cycle's start on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product_id: Identifier
    from_us: int


class ProductSpan(NamedTuple):
    """since_us ≤ t < until_us (µs): a subscription charges the product then."""

    since_us: int
    until_us: int
    product_id: str


FOR_EVER = 2**63 - 1
"""Later than every instant, µs."""


class CancelRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    at: Literal["now", "cycle_end"] = "now"


class Subscription(BaseModel):
    """A subscription as the catalog keeps it; instants are µs since 1970, UTC.

    started_at, ends_at: half-open; ends_at None: it goes on. billed_from: a cycle's start; it charges nothing of what
    was before; None: it charges from started_at on. time_zone: the organization's when it was made; its local time of
    started_at is the anchor. changes: later products, ascending. zone_changes: (µs, zone) of the organization's later
    zones; the catalog's view keeps them, no record says them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Identifier
    organization_id: Identifier
    customer_id: Identifier
    product_id: Identifier
    started_at: int
    ends_at: int | None = None
    billed_from: int | None = None
    billing_interval: BillingInterval
    collection_method: CollectionMethod
    time_zone: TimeZone
    changes: tuple[ProductChange, ...] = ()
    zone_changes: Annotated[tuple[tuple[int, TimeZone], ...], Field(exclude=True)] = ()
    created_at: int
    archived: bool = False

    @property
    def calendar(self) -> BillingCalendar:
        """When its cycles start, whenever it ends."""
        return BillingCalendar(self.started_at, self.billing_interval, self.time_zone, self.zone_changes)

    def product_at(self, cycle_start: int) -> str:
        """ID of the product of the cycle that starts then."""
        in_force = self.product_id
        for change in self.changes:
            if change.from_us <= cycle_start:
                in_force = change.product_id
        return in_force

    @property
    def product_ids(self) -> tuple[str, ...]:
        return (self.product_id, *(change.product_id for change in self.changes))

    @property
    def charged_from(self) -> int:
        """µs from which on it charges: a cycle's start."""
        return max(self.started_at, self.billed_from or self.started_at)

    @property
    def spans(self) -> tuple[ProductSpan, ...]:
        """What it charges, product by product, ascending; none is empty."""
        end = FOR_EVER if self.ends_at is None else self.ends_at
        starts = [(self.started_at, self.product_id), *((each.from_us, each.product_id) for each in self.changes)]
        ends = [*(since for since, _ in starts[1:]), end]
        spans = (
            ProductSpan(max(since, self.charged_from), min(until, end), product_id)
            for (since, product_id), until in zip(starts, ends, strict=True)
        )
        return tuple(span for span in spans if span.since_us < span.until_us)
