"""/api/v1/audit: what became of every event that was accepted, and whether it adds up."""

from __future__ import annotations

from confluent_kafka import KafkaException
from fastapi import Request
from pydantic import BaseModel, Field

from dashboard.auth import Caller
from dashboard.billing_access import answered
from dashboard.billing_port import CyclesBilled
from dashboard.read.invoices import CycleText
from dashboard.read.usage import WatermarkOut
from dashboard.routing import ReadRoute, api_router
from dashboard.services import Services, services_of
from warehouse.audit import Audit, audit, document
from warehouse.client import WarehouseUnavailable
from warehouse.epochs import UnknownTopic
from warehouse.projected import projection_faults
from warehouse.settled import settled
from warehouse.shards import Store

router = api_router(ReadRoute, "Usage")


class TallyOut(BaseModel):
    """value: Σ of the events that have one."""

    events: int
    value: str = Field(examples=["12000.5"])


class PlaceOut(BaseModel):
    """Where an event lies in the log."""

    epoch: int
    partition: int
    offset: int
    index: int


class RepeatedOut(BaseModel):
    """An identity that came more than once."""

    first: PlaceOut
    last: PlaceOut


class FaultOut(TallyOut):
    """What does not add up, by how much, and where the first of it lies. detail: what no place says."""

    kind: str = Field(examples=["row lost"])
    places: list[PlaceOut]
    detail: str | None = None


class CycleFaultOut(BaseModel):
    """A cycle that was not billed what it cost. meter_id: of which another quantity was counted; null: the amount."""

    customer_id: str
    subscription_id: str
    invoice_id: str
    cycle: CycleText
    meter_id: str | None
    billed: str
    found: str


class CyclesOut(BaseModel):
    """Σ of what invoices and credit notes billed for each cycle, against what it costs. billed: how many cycles were.

    unsettled: what a void invoice or a credit note took away, and the next invoice makes up for. not_compared: counted
    beyond what ClickHouse has now. problems: subscription → why its cycles could not be audited; the others were.
    """

    billed: int
    unsettled: int
    not_compared: int
    differing: int
    faults: list[CycleFaultOut]
    problems: dict[str, str]


class LostEndOut(BaseModel):
    """A partition's log had lost its end: from offset on its messages are of this epoch. What had been acknowledged
    beyond it counts where it was stored before; the rest is gone."""

    epoch: int
    partition: int
    offset: int


class AuditOut(BaseModel):
    """accepted: all that was accepted below as_of. classes: each accepted event in exactly one. balances: they sum up,
    every cycle was billed what it cost, and no fault was found. conflicts: duplicates whose value is not their first's.
    cycles: null in a process without billing's ledger. lost_ends: of the log. Lists show the first few."""

    as_of: WatermarkOut
    balances: bool
    accepted: TallyOut
    classes: dict[str, TallyOut]
    conflicts: int
    duplicates_at: list[RepeatedOut]
    conflicts_at: list[RepeatedOut]
    faults: list[FaultOut]
    lost_ends: list[LostEndOut] = []
    cycles: CyclesOut | None = None


@router.get("/audit")
async def get_audit(request: Request, caller: Caller) -> AuditOut:
    """Every accepted event in exactly one class.

    By precedence: dead letter, duplicate, voided, unmatched (no meter or no customer), unpriced (no subscription or
    price at its time), ignored late, pending late, trued up, billed, held (waiting, mismatch or void invoice), not due.
    """
    return await audit_of(services_of(request), caller.organization_id)


async def audit_of(services: Services, organization_id: str) -> AuditOut:
    """Reads every event of the organization, once for all who ask meanwhile. Raises WarehouseUnavailable."""
    found, cycles = await services.audits.of(organization_id, lambda: _counted(services, organization_id))
    whole = document(found)
    mine = next(iter(whole["organizations"]), None)
    if mine is None:
        nothing = {"events": 0, "value": "0"}
        mine = {"accepted": nothing, "classes": {}, "conflicts": 0, "duplicates_at": [], "conflicts_at": []}
    return AuditOut.model_validate(
        {
            **mine,
            "as_of": whole["as_of"],
            "balances": whole["balances"] and (cycles is None or cycles.ok),
            "faults": whole["faults"],
            "lost_ends": whole["lost_ends"],
            "cycles": None if cycles is None else cycles.document,
        }
    )


async def _counted(services: Services, organization_id: str) -> tuple[Audit, CyclesBilled | None]:
    found = await services.warehouse.run_aside(_audit, services, organization_id)
    if (billing := services.billing) is None:
        return found, None
    return found, await answered(lambda: billing.cycles_billed(organization_id, found.watermark))


def _audit(store: Store, services: Services, organization_id: str) -> Audit:
    try:
        faults = projection_faults(store, services.settings, organization_id)
        _, watermark = settled(store, services.settings)
    except (UnknownTopic, KafkaException) as error:
        raise WarehouseUnavailable(str(error)) from error
    return audit(store, watermark, services.settings.event_partitions, organization_id).with_faults(faults)
