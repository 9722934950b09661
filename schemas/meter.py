"""A meter reads one event_name and makes one number of its events."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from schemas.organization import Identifier, Name

N = TypeVar("N")


class Aggregation(StrEnum):
    """count: events, whatever their value. sum: of values, none is 0. max: greatest value; 0 without any."""

    SUM = "sum"
    COUNT = "count"
    MAX = "max"

    @property
    def needs_value(self) -> bool:
        return self is not Aggregation.COUNT

    def quantity(self, total: N, count: N, greatest: N | None, zero: N) -> N:
        """The part of a total that a meter reads. greatest None: no event had a value, and a max is `zero`."""
        match self:
            case Aggregation.SUM:
                return total
            case Aggregation.COUNT:
                return count
            case Aggregation.MAX:
                return zero if greatest is None else greatest


class MeterSpec(BaseModel):
    """The fields that a merchant posts. event_name and aggregation never change after creation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    event_name: Identifier
    unit: Name
    aggregation: Aggregation


class Meter(MeterSpec):
    id: Identifier
    organization_id: Identifier
    created_at: int  # µs
    archived: bool = False
