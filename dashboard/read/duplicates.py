"""/api/v1/usage/duplicates: events that came more than once, of which the first counts; and those that conflict."""

from __future__ import annotations

from fastapi import Request
from pydantic import BaseModel, Field

from dashboard.auth import Caller
from dashboard.control.common import PAGE_DEFAULT, Cursor, Filter, Limit
from dashboard.objects import Instant, Page
from dashboard.read.audit import PlaceOut
from dashboard.read.parameters import decoded_place, encoded_place, wrong_cursor
from dashboard.routing import ReadRoute, api_router
from dashboard.services import Services, services_of
from schemas.decimals import decimal_text
from warehouse.places import Place, order_of
from warehouse.repeats import COPIES_MAX, Copy, Repeated, partitions_of, repeated_events

router = api_router(ReadRoute, "Usage")


class CopyOut(PlaceOut):
    """One copy of an event, by its place in the log. received_at: null where its message is not known any more."""

    value: str | None = Field(examples=["12.5"])
    received_at: Instant | None


class DuplicateOut(BaseModel):
    """An event that came more than once. Of event_id and idempotency_key the one by which it was known again;
    without either its message came again.

    conflict: not all copies have the value of the first. copies: the first few, in the order of the log; the first one
    counts. customer_id and event_name are null where its row is lost, which the audit names.
    """

    customer_id: str | None
    event_name: str | None
    event_id: str | None
    idempotency_key: str | None
    times: int = Field(description="how often it came", examples=[2])
    conflict: bool
    copies: list[CopyOut] = Field(description=f"at most {COPIES_MAX}")


@router.get("/usage/duplicates")
async def list_duplicates(
    request: Request,
    caller: Caller,
    customer_id: Filter = None,
    conflicts: bool = False,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Page[DuplicateOut]:
    """Events that were accepted more than once, and count once: by partition, the latest to be repeated first.

    With `conflicts` only those whose copies say different things. A retry with another timestamp is the same event.
    """
    after = None if cursor is None else decoded_after(cursor)
    found = await duplicates(services_of(request), caller.organization_id, limit + 1, customer_id, conflicts, after)
    page = found[:limit]
    following = encoded_place(*page[-1].last) if len(found) > limit else None
    return Page(data=[_out(each) for each in page], next_cursor=following)


async def duplicates(
    services: Services, organization_id: str, limit: int, customer_id: str | None, conflicts: bool, after: Place | None
) -> list[Repeated]:
    """Raises WarehouseUnavailable."""
    partitions = partitions_of(organization_id, customer_id, services.settings.event_partitions)
    if after is not None and after[1] not in partitions:
        raise wrong_cursor()
    return await services.warehouse.run(
        repeated_events,
        organization_id,
        partitions,
        limit,
        customer_id=customer_id,
        conflicts_only=conflicts,
        after=after,
    )


def decoded_after(cursor: str) -> Place:
    """Raises Problem 422."""
    epoch, partition, offset, index = place = decoded_place(cursor, int, int, int, int)
    if min(place) < 0 or order_of((epoch, partition, offset, index)) >= 2**64:
        raise wrong_cursor()
    return epoch, partition, offset, index


def _out(found: Repeated) -> DuplicateOut:
    return DuplicateOut(
        customer_id=found.customer_id,
        event_name=found.event_name,
        event_id=found.event_id,
        idempotency_key=found.idempotency_key,
        times=found.times,
        conflict=found.conflicting,
        copies=[_copy(each) for each in found.copies],
    )


def _copy(copy: Copy) -> CopyOut:
    epoch, partition, offset, index = copy.place
    value = None if copy.value is None else decimal_text(copy.value)
    return CopyOut(
        epoch=epoch, partition=partition, offset=offset, index=index, value=value, received_at=copy.received_at
    )
