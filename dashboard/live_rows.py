"""totals of events × meters → quantities, as the API and the pages show them. Pure but for the view that they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel, Field

from catalog.view import CatalogView
from dashboard.objects import Instant
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, NotSent
from schemas.decimals import plain
from schemas.totals import UsageTotal


class LiveRow(BaseModel):
    """What a meter reads of a customer in one cycle, as the stream has it. updated_at: when it last changed."""

    customer_id: str
    meter_id: str
    from_: Instant = Field(serialization_alias="from")
    to: Instant
    quantity: str = Field(examples=["12000"])
    updated_at: Instant


class AlertOut(BaseModel):
    """A rule's threshold was reached, once for a customer and cycle. currency: of an amount.

    not_sent: why no webhook was sent for it; null: it was.
    """

    id: str
    rule_id: str
    customer_id: str
    meter_id: str
    kind: AlertKind
    threshold: str
    quantity: str
    cycle_start: Instant
    cycle_end: Instant
    fired_at: Instant
    currency: str | None
    not_sent: NotSent | None


def live_rows(view: CatalogView, totals: Iterable[UsageTotal], meter_id: str | None = None) -> Iterator[LiveRow]:
    """A row for each total and meter in force that reads its event_name; meter_id: only of that one."""
    for total in totals:
        for meter in view.meters_reading(total.organization_id, total.event_name):
            if meter_id is None or meter.id == meter_id:
                yield LiveRow(
                    customer_id=total.customer_id,
                    meter_id=meter.id,
                    from_=total.cycle_start,
                    to=total.cycle_end,
                    quantity=plain(total.quantity(meter.aggregation)),
                    updated_at=total.updated_at,
                )


def alert_out(alert: Alert) -> AlertOut:
    return AlertOut.model_validate(alert, from_attributes=True)
