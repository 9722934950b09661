"""From HTTP to the paid invoice, through every service: what counts once counts once everywhere, whatever is away."""

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from tests.flow.billing import APRIL, MARCH, BillingWorld
from tests.flow.pipe import ADMIN, WHOLE_TIME, Pipe, event
from tests.services import Service

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def pipe(kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    with Pipe(kafka, clickhouse, tmp_path_factory.mktemp("pipe")) as pipe:
        yield pipe


def test_what_counts_once_counts_once_live_stored_and_invoiced(pipe: Pipe) -> None:
    """The same batch twice: with ids (and other timestamps, in another month, with another value), with one key,
    and with neither."""
    for customer in ("ids", "key", "neither"):
        pipe.world.subscribe(customer, {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"})
    named = [event("ids", 100 + i, event_id=f"e{i}") for i in range(10)]
    pipe.accepted(*named)
    pipe.accepted(*named)
    pipe.accepted(*({**each, "timestamp": "2026-03-11T00:00:00+05:00"} for each in named))
    pipe.accepted(*({**each, "timestamp": "2026-02-11T00:00:00Z", "value": 7} for each in named))
    keyed = [event("key", "0.1"), event("key", "0.2")]
    for _ in range(2):
        pipe.accepted(*keyed, **{"Idempotency-Key": "once"})
    for _ in range(2):
        pipe.accepted(event("neither", 3), event("neither", 3))
    for customer, expected in (("ids", "1045"), ("key", "0.3"), ("neither", "12")):
        pipe.everywhere(customer, expected)
    report = pipe.world.close(APRIL)
    assert report.ok, report
    totals = {
        each.customer_id: each.fixed.total for each in report.invoices if each.fixed and each.cycle_start == MARCH
    }
    assert totals == {"ids": "1045.00", "key": "0.30", "neither": "12.00"}


def test_a_message_that_lies_in_the_log_twice_counts_once(pipe: Pipe) -> None:
    """Live, in ClickHouse, on the invoice and in the audit: as duplicates of the first, without any id."""
    pipe.world.subscribe("twice", {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"})
    answer = pipe.post(event("twice", 3), event("twice", 3), event("twice", 4, event_id="named"))
    (part,) = answer.json()["receipt"]
    pipe.accepted(event("twice", 5))
    pipe.send_again(part["partition"], part["first_offset"])
    pipe.send_again(part["partition"], part["first_offset"])
    pipe.accepted(event("twice", 6))  # after them: what is counted below has come past both
    pipe.everywhere("twice", "21")
    report = pipe.world.close(APRIL)
    (invoice,) = [each for each in report.invoices if each.customer_id == "twice"]
    assert invoice.fixed is not None
    assert invoice.fixed.total == "21.00"
    listed = pipe.http.get("/api/v1/usage/duplicates", params={"customer_id": "twice"}).json()["data"]
    assert sorted((each["event_id"], each["times"], each["conflict"]) for each in listed if each["event_id"]) == [
        ("named", 3, False)
    ]
    unnamed = [each for each in listed if each["event_id"] is None]
    assert [(each["idempotency_key"], each["times"], each["conflict"]) for each in unnamed] == [(None, 3, False)] * 2
    audit = pipe.http.get("/api/v1/audit").json()
    assert audit["balances"], audit
    assert audit["classes"]["duplicate"]["events"] >= 6


def test_usage_of_the_api_names_the_watermark_that_it_counts_to(pipe: Pipe) -> None:
    answer = pipe.post(event("marked", 5))
    (part,) = answer.json()["receipt"]
    pipe.everywhere("marked", "5")
    as_of = pipe.http.get("/api/v1/usage", params={"customer_id": "marked", **WHOLE_TIME}).json()["as_of"]
    assert as_of["offsets"][str(part["partition"])] > part["last_offset"]
    (raw,) = pipe.http.get("/api/v1/usage/events", params={"customer_id": "marked", **WHOLE_TIME}).json()["data"]
    assert (raw["partition"], raw["offset"]) == (part["partition"], part["first_offset"])


def test_an_alert_fires_once_and_is_shown(pipe: Pipe) -> None:
    rule = pipe.http.post("/api/v1/alert-rules", json={"meter_id": "mtr_calls", "kind": "quantity", "threshold": "50"})
    assert rule.status_code == 201, rule.text
    pipe.accepted(event("alerted", 49))
    pipe.accepted(event("alerted", 1))
    pipe.accepted(event("alerted", 1))

    def fired() -> list[dict[str, Any]]:
        found = pipe.http.get("/api/v1/alerts", params={"customer_id": "alerted"}).json()["data"]
        return [alert for alert in found if alert["rule_id"] == rule.json()["id"]]

    pipe.world.until(fired)
    pipe.everywhere("alerted", "51")
    (alert,) = fired()
    assert Decimal(alert["quantity"]) >= 50


def test_the_sink_catches_up_after_it_was_killed(pipe: Pipe) -> None:
    """Ingest and live totals go on without it; nothing is lost or doubled when it is back."""
    pipe.accepted(*(event("killed") for _ in range(100)))
    pipe.world.sink.kill()
    pipe.accepted(*(event("killed") for _ in range(100)))
    pipe.world.until(lambda: pipe.quantity("/usage/live", "killed") == 200)
    pipe.world.sink.start()
    pipe.everywhere("killed", "200")


def test_clickhouse_away_for_half_a_minute(
    kafka: KafkaBroker, clickhouse_factory: Callable[[], ClickHouseLocal], tmp_path: Path
) -> None:
    """Ingest goes on, the sink says that it can't work, then catches up; nothing lost or doubled."""
    engine = clickhouse_factory()
    engine.start()
    with BillingWorld(kafka, engine, tmp_path) as world:
        gateway = Service("gateway", {**world.env, "USAGE_ADMIN_KEY": ADMIN}, tmp_path).start()
        http = httpx.Client(base_url=gateway.address, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20)
        sent = 0

        def send() -> None:
            nonlocal sent
            answer = http.post("/api/v1/usage/events", json={"events": [event("away") for _ in range(50)]})
            assert answer.status_code == 202
            sent += 50

        send()
        engine.kill()
        gone = time.monotonic()
        world.until(lambda: world.sink.get("/readyz").status_code == 503 or send())
        while time.monotonic() - gone < 30:  # the length of the outage is what is tested
            send()
            time.sleep(0.2)
        engine.start()
        counted = "SELECT (SELECT count() FROM usage), (SELECT count() FROM usage_accepted FINAL)"
        world.until(lambda: world.query(counted) == [(sent, sent)])
        world.until(world.sink.ready)
        http.close()
        gateway.stop()


def test_the_organization_is_there_from_the_first_start(pipe: Pipe) -> None:
    assert pipe.world.catalog.view.get(Organization, DEFAULT_ORGANIZATION, DEFAULT_ORGANIZATION) is not None
