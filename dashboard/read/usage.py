"""/api/v1/usage: exact, from what is stored, with the watermark up to which it counts; raw events, and their export."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from dashboard.auth import Caller, Principal
from dashboard.control.common import PAGE_DEFAULT, Cursor, Filter, Limit
from dashboard.objects import Instant, Page
from dashboard.problems import field_problem
from dashboard.read.parameters import From, To, decoded_place, encoded_place, period
from dashboard.routing import ReadRoute, api_router
from dashboard.services import Services, services_of
from dashboard.usage_export import MEDIA_TYPES, ExportFormat, usage_file
from dashboard.usage_queries import (
    ROWS_MAX,
    EventFilter,
    Place,
    StoredEvent,
    TooManyRows,
    require_usage,
    stored_events,
    usage_rows,
)
from runtime.clock import now_us
from schemas.decimals import plain
from schemas.meter import Meter
from schemas.period import DAY_US, SECOND_US, Cycle, UsageWindow, calendar_month_containing
from schemas.watermark import Watermark

router = api_router(ReadRoute, "Usage")
GroupBy = Annotated[str | None, Query(min_length=1, max_length=256, description="name of a property of events")]

WINDOWS_MAX = 10_000
_WINDOW_US_MIN: dict[UsageWindow, int] = {
    "hour": 3600 * SECOND_US, "day": 23 * 3600 * SECOND_US, "month": 28 * DAY_US,
}  # fmt: skip


class UsageRowOut(BaseModel):
    """What a meter reads of a customer in [from, to). group: the property's value, where group_by names one."""

    customer_id: str
    meter_id: str
    from_: Instant = Field(serialization_alias="from")
    to: Instant
    quantity: str = Field(examples=["12000"])
    group: str | None = Field(default=None, examples=["eu"])


class WatermarkOut(BaseModel):
    """epoch: the log's incarnation. offsets: partition → next offset; everything before it counts. epochs: of
    partitions whose log has lost its end, their own."""

    epoch: int
    offsets: dict[str, int]
    epochs: dict[str, int] | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        return document if self.epochs else {name: each for name, each in document.items() if name != "epochs"}


class UsageAnswer(BaseModel):
    """as_of: exactly the events below it are counted; null: nothing is stored yet."""

    data: list[UsageRowOut]
    as_of: WatermarkOut | None


class EventOut(BaseModel):
    """An event that counts once, with its place in the log."""

    customer_id: str
    event_name: str
    event_id: str | None
    timestamp: Instant
    value: str | None
    properties: dict[str, str]
    received_at: Instant
    epoch: int
    partition: int
    offset: int
    index: int


def watermark_out(watermark: Watermark | None) -> WatermarkOut | None:
    return watermark and WatermarkOut.model_validate(watermark.as_json())


def zone_of(services: Services, organization_id: str) -> str:
    """The organization's time zone."""
    organization = services.catalog.view.organization(organization_id)
    return organization.time_zone if organization else "UTC"


def this_month(services: Services, caller: Principal) -> Cycle:
    """The calendar month in the organization's zone: what is meant where no time is given."""
    return calendar_month_containing(zone_of(services, caller.organization_id), now_us())


def _meters(services: Services, caller: Principal, meter_id: str | None) -> list[Meter]:
    view = services.catalog.view
    if meter_id is None:
        return [meter for meter in view.all(Meter, caller.organization_id) if not meter.archived]
    meter = view.get(Meter, caller.organization_id, meter_id)
    if meter is None:
        raise field_problem("meter_id", "unknown_reference", f"there is no meter {meter_id[:80]}")
    return [meter]


@router.get("/usage")
async def get_usage(
    request: Request,
    caller: Caller,
    customer_id: Filter = None,
    meter_id: Filter = None,
    from_: From = None,
    to: To = None,
    window: UsageWindow | None = None,
    group_by: GroupBy = None,
) -> UsageAnswer:
    """Exact quantities of the events that are stored.

    Days and months are the organization's; without `from` and `to` the current month. A row for each customer, meter
    and window with usage; with `group_by` for each value of that property too, empty for events without it.
    """
    services = services_of(request)
    wanted = period(from_, to, this_month(services, caller))
    if window and (wanted.end_us - wanted.start_us) // _WINDOW_US_MIN[window] > WINDOWS_MAX:
        raise field_problem("window", "too_many_windows", f"at most {WINDOWS_MAX} windows fit in an answer")
    meters = _meters(services, caller, meter_id)
    watermark = await services.warehouse.stored(caller.organization_id, customer_id)
    try:
        rows = await services.warehouse.run(
            usage_rows,
            caller.organization_id,
            meters,
            wanted,
            watermark=watermark,
            window=window,
            zone=zone_of(services, caller.organization_id),
            customer_id=customer_id,
            group_by=group_by,
        )
    except TooManyRows:
        raise field_problem(None, "too_many_rows", f"more than {ROWS_MAX} rows: ask for less at a time") from None
    data = [
        UsageRowOut(
            customer_id=row.customer_id,
            meter_id=row.meter_id,
            from_=row.period.start_us,
            to=row.period.end_us,
            quantity=plain(row.quantity),
            group=row.group,
        )
        for row in rows
    ]
    if not data and customer_id is not None and meter_id is not None and window is None:
        start, end = wanted.start_us, wanted.end_us
        data = [UsageRowOut(customer_id=customer_id, meter_id=meter_id, from_=start, to=end, quantity="0")]
    return UsageAnswer(data=data, as_of=watermark_out(watermark))


def event_filter(
    services: Services,
    caller: Principal,
    *,
    customer_id: str | None,
    event_name: str | None,
    meter_id: str | None,
    event_id: str | None,
    from_: str | None,
    to: str | None,
) -> EventFilter:
    """Raises Problem 422. A search for an event_id is not narrowed to a month."""
    if meter_id is not None:
        event_name = _meters(services, caller, meter_id)[0].event_name
    everything = Cycle(0, now_us() + 366 * DAY_US)
    default = everything if event_id is not None else this_month(services, caller)
    return EventFilter(period(from_, to, default), customer_id, event_name, event_id)


@router.get("/usage/events")
async def list_events(
    request: Request,
    caller: Caller,
    customer_id: Filter = None,
    event_name: Filter = None,
    meter_id: Filter = None,
    event_id: Filter = None,
    from_: From = None,
    to: To = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Page[EventOut]:
    """Counted events with their log positions, newest first. Default: the current month."""
    services = services_of(request)
    wanted = event_filter(
        services, caller, customer_id=customer_id, event_name=event_name, meter_id=meter_id, event_id=event_id,
        from_=from_, to=to,
    )  # fmt: skip
    after = None if cursor is None else decoded_event_place(cursor)
    found = await services.warehouse.run(stored_events, caller.organization_id, wanted, limit + 1, after)
    page = found[:limit]
    following = event_place(page[-1]) if len(found) > limit else None
    return Page(data=[event_out(event) for event in page], next_cursor=following)


def event_out(event: StoredEvent) -> EventOut:
    value = None if event.value is None else plain(event.value)
    fields = {name: getattr(event, name) for name in EventOut.model_fields if name != "value"}
    return EventOut(**fields, value=value)


def event_place(event: StoredEvent) -> str:
    """The cursor of the page after this event."""
    return encoded_place(event.timestamp, event.epoch, event.partition, event.offset, event.index)


def decoded_event_place(cursor: str) -> Place:
    """Raises Problem 422."""
    timestamp, epoch, partition, offset, index = decoded_place(cursor, int, int, int, int, int)
    return timestamp, epoch, partition, offset, index


# -- export ------------------------------------------------------------------------------------------------------------


@router.get(
    "/usage/export",
    response_class=StreamingResponse,
    responses={200: {"content": {each: {"schema": {"type": "string"}} for each in MEDIA_TYPES.values()}}},
)
async def export_usage(
    request: Request,
    caller: Caller,
    customer_id: Filter = None,
    event_name: Filter = None,
    meter_id: Annotated[str | None, Query(max_length=256, description="events that this meter reads")] = None,
    from_: From = None,
    to: To = None,
    format: Annotated[ExportFormat, Query(description="of the file")] = "csv",
) -> Response:
    """All counted events as CSV, JSON lines or Parquet, in no order.

    In CSV, text cells that begin with = + - @ or ' are prefixed with '; the other formats have the text as it is.
    `events import` accepts each of the files.
    """
    services = services_of(request)
    wanted = event_filter(
        services, caller, customer_id=customer_id, event_name=event_name, meter_id=meter_id, event_id=None,
        from_=from_, to=to,
    )  # fmt: skip
    await services.warehouse.run(require_usage, caller.organization_id, customer_id)  # 503 before the answer has begun
    return usage_file(services, caller.organization_id, wanted, format)
