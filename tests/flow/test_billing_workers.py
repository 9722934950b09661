"""Several workers: they share the customers, keep Stripe's limit together, and take over from one that dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from tests.flow.billing import APRIL, BillingWorld
from tests.services import Service

pytestmark = pytest.mark.timeout(300)
CALLS_A_SECOND = 40


@pytest.fixture(scope="module")
def world(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BillingWorld]:
    directory = tmp_path_factory.mktemp("billing")
    quick: dict[str, Any] = {"billing_seconds": 0.3, "sweep_seconds": 60.0, "stripe_calls_per_second": CALLS_A_SECOND}
    with BillingWorld(kafka, clickhouse, directory, **quick) as world:
        yield world


def writers(world: BillingWorld, names: list[str]) -> set[str]:
    return {
        fixed.writer for name in names for each in world.invoices(name) if (fixed := each.fixed) and not fixed.final
    }


def all_paid(world: BillingWorld, names: list[str]) -> bool:
    return all({each.state for each in world.invoices(name)} == {"paid"} for name in names)


def busiest_second(world: BillingWorld) -> int:
    """Most calls in any second of the clock of the one who was called."""
    return max(Counter(int(each["at"]) for each in world.stripe.requests()).values())


def test_workers_share_customers_and_rate_and_take_over(world: BillingWorld) -> None:
    first = [f"first_{number}" for number in range(12)]
    for name in first:
        world.use(name, "150000")
        world.subscribe(name, ends_at=APRIL)
    workers = [Service("billing", world.env, world.directory).start() for _ in range(2)]
    try:
        world.until(lambda: all_paid(world, first))
        assert all(len(world.stripe_invoices(name)) == 1 for name in first)

        second = [f"second_{number}" for number in range(12)]
        for name in second:
            world.use(name, "150000")
            world.subscribe(name, ends_at=APRIL)
        world.until(lambda: all_paid(world, second))
        assert len(writers(world, second)) == 2, "one of them did everything"
        assert busiest_second(world) <= CALLS_A_SECOND * 1.2

        workers[0].kill()
        third = [f"third_{number}" for number in range(6)]
        for name in third:
            world.use(name, "150000")
            world.subscribe(name, ends_at=APRIL)
        world.until(lambda: all_paid(world, third))
        for name in (*first, *second, *third):
            (at_stripe,) = world.stripe_invoices(name)
            assert world.stripe.charges()[at_stripe["id"]]["succeeded"] == 1
    finally:
        for worker in workers:
            if worker.running:
                worker.stop()
