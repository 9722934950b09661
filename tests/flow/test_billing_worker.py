"""`usage-billing billing`: closes by itself what is due, follows payments, says how it is, and ends in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from ledger.invoice import Invoice
from tests.flow.billing import APRIL, BillingWorld
from tests.services import Service

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def world(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BillingWorld]:
    directory = tmp_path_factory.mktemp("billing")
    quick: dict[str, Any] = {"billing_seconds": 0.3, "sweep_seconds": 0.3, "coverage_timeout_seconds": 1.0}
    with BillingWorld(kafka, clickhouse, directory, **quick) as world:
        yield world


@pytest.fixture(scope="module")
def worker(world: BillingWorld) -> Iterator[Service]:
    world.subscribe("before", ends_at=APRIL)
    world.use("before", "150000")
    service = Service("billing", world.env, world.directory).start()
    yield service
    if service.running:
        service.stop()


def only(world: BillingWorld, name: str) -> Invoice | None:
    """The invoice of its one cycle; the final one, 30 days after the end, is another."""
    found = [each for each in world.invoices(name) if each.cycle_start < APRIL]
    assert len(found) <= 1
    return found[0] if found else None


def in_state(world: BillingWorld, name: str, state: str) -> bool:
    """paid: and its order is recorded, which comes a moment after."""
    found = only(world, name)
    return found is not None and found.state == state and (state != "paid" or found.order is not None)


def test_what_is_due_is_closed_by_itself(world: BillingWorld, worker: Service) -> None:
    world.until(lambda: in_state(world, "before", "paid"))
    world.subscribe("during", ends_at=APRIL)
    world.use("during", "150000")
    world.until(lambda: in_state(world, "during", "paid") or in_state(world, "during", "payment_failed"))
    found = only(world, "during")
    assert found is not None
    assert found.order is not None or found.document()["total"] == "0.00"


def test_payments_are_followed(world: BillingWorld, worker: Service) -> None:
    world.use("followed", "150000")  # before its subscription, so that the first round counts it
    world.subscribe("followed", ends_at=APRIL, payment_method="pm_card_chargeCustomerFail")
    world.until(lambda: in_state(world, "followed", "payment_failed"))
    (at_stripe,) = world.stripe_invoices("followed")
    world.at_stripe("POST", f"/v1/invoices/{at_stripe['id']}/pay", paid_out_of_band="true")
    world.until(lambda: in_state(world, "followed", "paid"))
    found = only(world, "followed")
    assert found is not None
    assert found.order is not None
    assert len(world.stripe.requests("POST", f"/v1/invoices/{at_stripe['id']}/pay")) == 2


def test_a_failure_is_not_repeated_every_round(world: BillingWorld, worker: Service) -> None:
    world.use("backs_off", "150000")
    world.stripe.fault("error", "POST", "/v1/invoices/*/finalize", times=0)
    try:
        world.subscribe("backs_off", ends_at=APRIL)
        world.until(lambda: finalizing(world, "backs_off") == "failed")
        (draft,) = world.stripe_invoices("backs_off")
        rounds = _rounds(worker)
        world.until(lambda: _rounds(worker) >= rounds + 4)
        assert len(world.stripe.requests("POST", f"/v1/invoices/{draft['id']}/finalize")) == 1
    finally:
        world.stripe.control("DELETE", "faults")


def finalizing(world: BillingWorld, name: str) -> str | None:
    found = only(world, name)
    attempt = None if found is None else found.attempt("finalize")
    return None if attempt is None else attempt.phase


def _rounds(worker: Service) -> float:
    return sum(
        float(line.rpartition(" ")[2])
        for line in worker.get("/metrics").text.splitlines()
        if line.startswith("usage_billing_closes_total{")
    )


def test_it_says_how_it_is(world: BillingWorld, worker: Service) -> None:
    metrics = worker.get("/metrics").text
    assert 'usage_invoices{state="paid"}' in metrics
    assert 'usage_stripe_calls_total{method="POST",outcome="done"}' in metrics
    assert worker.get("/healthz").status_code == 200
    world.sink.stop()
    try:
        world.use("unready", "150000")
        world.subscribe("unready", ends_at=APRIL)
        world.until(lambda: worker.get("/readyz").status_code == 503)
        reasons = worker.get("/readyz").json()["reasons"]
        assert reasons == {"round": "ClickHouse does not have all events of the watermark yet"}
        world.until(lambda: in_state(world, "unready", "waiting"))
    finally:
        world.sink.start()
    world.until(lambda: worker.get("/readyz").status_code == 200)
    world.until(lambda: in_state(world, "unready", "paid"))


def test_it_ends_in_order(worker: Service) -> None:
    assert worker.stop() == 0
