"""Alert rules: a rule fires once per customer and cycle."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from schemas.decimals import DecimalString
from schemas.organization import Identifier


class AlertKind(StrEnum):
    """quantity: units. *_percent: of included units, of typical usage. amount: major units of the currency."""

    QUANTITY = "quantity"
    INCLUDED_PERCENT = "included_percent"
    TYPICAL_PERCENT = "typical_percent"
    AMOUNT = "amount"


class NotSent(StrEnum):
    """Why an alert is not sent. cycle_over: its cycle was, when its rule was made or the usage came (grace included).

    already_reached: the threshold was, when its rule was made.
    """

    CYCLE_OVER = "cycle_over"
    ALREADY_REACHED = "already_reached"


class AlertRuleSpec(BaseModel):
    """The fields that a merchant posts. customer_id None: every customer.

    Alerts are shown in any case. alert_existing: send also those that were reached when the rule was made. past_cycles:
    send also those of cycles that were over by then, or when their usage came.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    meter_id: Identifier
    customer_id: Identifier | None = None
    kind: AlertKind
    threshold: Annotated[DecimalString, Field(gt=0)]
    alert_existing: bool = False
    past_cycles: bool = False


class AlertRule(AlertRuleSpec):
    id: Identifier
    organization_id: Identifier
    created_at: int  # µs
    archived: bool = False


def alert_id(rule_id: str, customer_id: str, cycle_start: int) -> str:
    """The same for every evaluation of a rule in a cycle, so that a repeated firing is seen to be the same one."""
    return "alrt_" + hashlib.sha256(f"{rule_id}\0{customer_id}\0{cycle_start}".encode()).hexdigest()[:32]
