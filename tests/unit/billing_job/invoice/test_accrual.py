"""Accruals and simulations: the cost of cycles that no invoice bills, or of another product, from the same events."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from billing_job.invoice.accrual import accrue
from billing_job.invoice.simulate import NotSimulable, simulate
from billing_job.invoice.usage_reader import UsageReader
from schemas.accrual import LATE_USAGE, Accrual
from schemas.currency import amount_text
from schemas.period import Cycle
from schemas.watermark import Watermark
from tests.cycles import FEE, MONTHS, ORG, TIERS, Stored, World

MID_APRIL = (MONTHS[3] + MONTHS[4]) // 2


@dataclass
class CoveredStore(Stored):
    """Everything in the log is in ClickHouse."""

    def covered(self) -> Watermark:
        return self.end


@pytest.fixture
def world() -> World:
    """January to March are invoiced and issued, with 100 calls each; April has 50 in its first half, and one later."""
    world = World((TIERS, FEE), ends_at=None, stored=CoveredStore())
    for month in (0, 1, 2):
        world.event(month, "calls", 100)
    for fixed in world.close(MONTHS[3]):
        world.issue(fixed, MONTHS[3])
    world.event(3, "calls", 50)
    world.stored.log.append((MID_APRIL, "calls", world.stored.log[0][2]))  # type: ignore[index]
    return world


def accrued(world: World, at: int) -> Accrual:
    return accrue(world.view, world.ledger, world.stored, ORG, at, world.stored.end)


def lines(accrual: Accrual) -> list[tuple[int, str, str, str]]:
    """(start of the cycle's month, meter, quantity, net)."""
    return [
        (MONTHS.index(line.period.start_us), line.meter, str(line.quantity), amount_text(line.net, line.currency))
        for line in accrual.lines
    ]


def test_an_open_cycle_is_priced_as_if_it_ended_at_the_date(world: World) -> None:
    """10 units are included in full; half of the flat fee; events from the date on do not count."""
    accrual = accrued(world, MID_APRIL)
    assert lines(accrual) == [(3, "calls", "50", "13.40"), (3, "flat_fee", "1", "1.50")]
    assert accrual.missing == []
    assert {line.period.end_us for line in accrual.lines} == {MID_APRIL}


def test_late_usage_of_an_invoiced_cycle_is_a_line_of_its_own(world: World) -> None:
    world.event(1, "calls", 10)
    assert (1, LATE_USAGE, "1", "3.35") in lines(accrued(world, MID_APRIL))
    world.policy("ignore")
    assert [line for line in lines(accrued(world, MID_APRIL)) if line[1] == LATE_USAGE] == []


def test_an_invoice_that_was_issued_after_the_date_bills_nothing_by_then(world: World) -> None:
    before = accrued(world, MONTHS[3] - 1)
    assert {month for month, *_ in lines(before)} == {0, 1, 2}
    world.void_invoice(world.invoices[0].id)  # waived: nobody owes it
    assert {month for month, *_ in lines(accrued(world, MONTHS[3] - 1))} == {1, 2}


def simulated(world: World, product: Any, customer: str = "c") -> list[tuple[str, str | None, str | None]]:
    found = simulate(
        world.view,
        world.ledger,
        cast(UsageReader, world.stored),
        organization_id=ORG,
        customer_id=customer,
        product=product,
        period=Cycle(MONTHS[0], MONTHS[4]),
    )
    documents = [cycle.document() for cycle in found]
    return [(each["total"], each["billed"], each["difference"]) for each in documents]


def test_a_simulation_stands_beside_what_was_billed(world: World) -> None:
    assert simulated(world, "prod") == [("33.15", "33.15", "0.00")] * 3 + [("40.50", None, None)]


@pytest.mark.parametrize(
    ("product", "customer", "field"),
    [
        ("prod_none", "c",      "product_id"),
        ("prod",      "nobody", "customer_id"),
    ],
)  # fmt: skip
def test_a_simulation_of_what_is_not_there_is_refused(world: World, product: str, customer: str, field: str) -> None:
    with pytest.raises(NotSimulable) as refused:
        simulated(world, product, customer)
    assert refused.value.field == field
