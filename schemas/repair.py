"""usage.repairs record ⇄ bytes: what is to be added to a live total so that it is exact.

Key and partition: the total's own. A repair is computed from a total as it was published, and says how many repairs
that total contained (`repairs`); the aggregator applies it only while the total contains as many. So of two repairs
computed from one state of a total the first in the log wins, and one that is sent or read again changes nothing.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated

import msgspec

from schemas.totals import total_key, unscaled_of


class UnreadableRepair(ValueError):
    """Bytes in usage.repairs that are not a repair."""


Number = Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]+(\.[0-9]{1,9})?$")]
"""A plain decimal string of at most 9 decimals, as schemas.totals.decimal_text writes it."""


class RepairReason(StrEnum):
    RECONCILE = "reconcile"
    VOID = "void"
    LATE_CATALOG = "late_catalog"
    WHOLE = "whole"  # repairs nothing: at its place every series of the organization was exact; of no customer


class UsageRepair(msgspec.Struct, frozen=True):
    """A difference, exact total − live total, both at one place: (topic_id, partition, offset).

    offset: the last one that both contain, −1: none. repairs: those that the live total contains, 0 where there is no
    such total. count, sum: to be added; sum is a plain decimal string. max: the exact one at the place; max_was: the
    live one seen there; None: no value. cycle_start, cycle_end, made_at: µs since 1970.
    """

    repair_id: str
    organization_id: str
    customer_id: str
    event_name: str
    cycle_start: int
    cycle_end: int
    repairs: int
    count: int
    sum: Number
    max: Number | None
    max_was: Number | None
    topic_id: str
    partition: int
    offset: int
    reason: RepairReason
    made_at: int

    @property
    def key(self) -> bytes:
        return total_key(self.organization_id, self.customer_id, self.event_name, self.cycle_start, self.cycle_end)


def repair_id(key: bytes, repairs: int, topic_id: str, offset: int) -> str:
    """The same for every repair that is computed from one state of a total. key: the total's."""
    return "rep_" + hashlib.sha256(key + f"\0{repairs}\0{topic_id}\0{offset}".encode()).hexdigest()[:32]


def repaired_max(current: int | None, repair: UsageRepair) -> int | None:
    """The max, × 10⁹, after a repair; None: no value.

    The greater of both, so that it is right whatever came after the repair's place; but a max that is still the one
    seen there gives way, or a void could never lower it.
    """
    exact = None if repair.max is None else unscaled_of(repair.max)
    seen = None if repair.max_was is None else unscaled_of(repair.max_was)
    if current == seen or current is None:
        return exact
    return current if exact is None else max(current, exact)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageRepair)


def encode(repair: UsageRepair) -> bytes:
    return _encoder.encode(repair)


def decode(message: bytes) -> UsageRepair:
    """Raises UnreadableRepair."""
    try:
        return _decoder.decode(message)
    except msgspec.MsgspecError as error:
        raise UnreadableRepair(str(error)) from error
