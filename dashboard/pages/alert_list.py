"""alerts → what a person needs to know of each: who, which meter, how far beyond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal

from dashboard.pages.formats import money, number
from dashboard.services import Services
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, NotSent
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.period import Cycle

SHOWN = 100
_NOT_SENT = {
    NotSent.CYCLE_OVER: "not sent: the billing period was over",
    NotSent.ALREADY_REACHED: "not sent: already reached when the rule was created",
}
_WIDE = Context(prec=80)  # the default one refuses more than 28 digits
_TENTH = Decimal("0.1")


@dataclass(frozen=True, slots=True)
class AlertLine:
    """customer, meter: names, or ids where there is nothing of that id. text: what was reached. not_sent: why not."""

    id: str
    customer_id: str
    customer: str
    meter: str
    text: str
    cycle: Cycle
    fired_at: int
    not_sent: str | None


def threshold_text(kind: AlertKind, threshold: str, unit: str) -> str:
    """What a rule waits for, in words."""
    match kind:
        case AlertKind.QUANTITY:
            return f"{number(threshold)} {unit}"
        case AlertKind.INCLUDED_PERCENT:
            return f"{number(threshold)}% of included units"
        case AlertKind.TYPICAL_PERCENT:
            return f"{number(threshold)}% of typical usage"
        case AlertKind.AMOUNT:
            return f"a spend of {number(threshold)}"


def _reached_text(alert: Alert, unit: str) -> str:
    """What was reached and the rule's limit: "Usage is 166.2% of typical (limit 150%)"."""
    limit = number(alert.threshold)
    match alert.kind:
        case AlertKind.QUANTITY:
            return f"Usage reached {number(alert.quantity)} {unit} (limit {limit})"
        case AlertKind.AMOUNT if alert.currency:
            spend, spend_limit = (money(amount, alert.currency) for amount in (alert.quantity, alert.threshold))
            return f"Spend reached {spend} (limit {spend_limit})"
        case AlertKind.AMOUNT:
            return f"Spend reached {number(alert.quantity)} (limit {limit})"
        case AlertKind.INCLUDED_PERCENT:
            return f"Usage is {_percent(alert.quantity)} of the included units (limit {limit}%)"
        case AlertKind.TYPICAL_PERCENT:
            return f"Usage is {_percent(alert.quantity)} of typical (limit {limit}%)"


def _percent(quantity: str) -> str:
    """Rounded down, so that no alert seems to come before its limit."""
    return f"{number(Decimal(quantity).quantize(_TENTH, ROUND_DOWN, _WIDE))}%"


def alert_list(
    services: Services, organization_id: str, limit: int, wanted: Callable[[Alert], bool] = lambda _: True
) -> list[AlertLine]:
    """The newest alerts."""
    view = services.catalog.view
    lines: list[AlertLine] = []
    for alert in services.live.view.alerts(organization_id):
        if len(lines) == limit:
            break
        if not wanted(alert):
            continue
        customer = view.get(Customer, organization_id, alert.customer_id)
        meter = view.get(Meter, organization_id, alert.meter_id)
        unit = meter.unit if meter else "units"
        lines.append(
            AlertLine(
                id=alert.id,
                customer_id=alert.customer_id,
                customer=customer.name if customer else alert.customer_id,
                meter=meter.name if meter else alert.meter_id,
                text=_reached_text(alert, unit),
                cycle=Cycle(alert.cycle_start, alert.cycle_end),
                fired_at=alert.fired_at,
                not_sent=None if alert.not_sent is None else _NOT_SENT[alert.not_sent],
            )
        )
    return lines
