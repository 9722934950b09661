"""What was used by a date and not invoiced by then. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from schemas.period import Cycle

LATE_USAGE = "late_usage"
"""Stands for a meter's name: what an invoiced cycle costs beyond its invoices. The invoice's line has the same word."""
LATE_LINE = 65_535
"""The line's number of late usage: after every line of a cycle."""


@dataclass(frozen=True, slots=True)
class AccruedLine:
    """The cost of one price of a cycle by a date.

    line: number of the line; LATE_LINE: late usage.
    meter_id: empty for a flat fee, a minimum and late usage.
    meter: its name; without one, the price model or LATE_USAGE.
    period: from the cycle's start to its end or the date, whichever comes first.
    net: major units, before tax; negative for a credit.
    """

    customer_id: str
    subscription_id: str
    product_id: str
    line: int
    meter_id: str
    meter: str
    period: Cycle
    quantity: Decimal
    net: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class NotAccrued:
    """A subscription that could not be counted or priced, and why."""

    customer_id: str
    subscription_id: str
    product_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Accrual:
    """lines: what is accrued. missing: subscriptions without a known accrual; the rest is complete."""

    lines: Sequence[AccruedLine]
    missing: Sequence[NotAccrued] = ()
