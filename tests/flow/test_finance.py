"""What finance exports, and who has which benefits: from the ledger through the sink's tables to API and command."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from billing_job.collect import void_credit
from billing_job.collect.poller import Poller
from billing_job.invoice.usage_reader import NotCovered
from dashboard.app import Dashboard
from dashboard.billing_port import BillingUnavailable
from dashboard.finance import keep_accrual
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.accrual import AccruedLine
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Scope, new_secret, secret_digest
from schemas.period import SECOND_US, Cycle, format_rfc3339, parse_rfc3339
from schemas.product import Product
from tests.flow.billing import APRIL, MAY, TIERS, BillingWorld
from usage_billing.billing_adapter import BillingAdapter
from warehouse.client import connect

pytestmark = [pytest.mark.timeout(300), pytest.mark.anyio]
KEY = new_secret()
FEE = {"model": "flat_fee", "amount": "31.00"}
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def world(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BillingWorld]:
    """March: a paid invoice with tax, one that failed, one voided and made anew, one credited, one of 0, one open."""
    with BillingWorld(kafka, clickhouse, tmp_path_factory.mktemp("billing")) as world:
        rate = world.at_stripe("POST", "/v1/tax_rates", display_name="VAT", percentage="19", inclusive="false")["id"]
        organization = world.catalog.view.organization("default")
        assert organization is not None
        world.catalog.write(organization.model_copy(update={"tax_mode": "rates", "tax_rates": (rate,)}), 1)
        key = {"id": "key_1", "organization_id": "default", "created_at": 0, "hint": "0000"}
        digest = secret_digest(KEY)
        world.catalog.write(ApiKey.model_validate({**key, "scopes": (Scope.READ,), "sha256": digest}), 0)
        good, bad = "pm_card_visa", "pm_card_chargeCustomerFail"
        for name, card in (("paid", good), ("failed", bad), ("reissued", bad), ("credited", good)):
            world.subscribe(name, TIERS, FEE, payment_method=card)
            world.use(name, "150000")
        world.subscribe("sent", TIERS, FEE, collection_method="send_invoice")
        world.use("sent", "150000")
        world.subscribe("idle")
        assert world.close().ok
        billing = world.context.billing()
        (first,) = world.invoices("reissued")
        void_credit.reissue(billing, void_credit.void(billing, first, "wrong"))
        (credited,) = world.invoices("credited")
        void_credit.credit(billing, credited, 1190, refund=True, reason="outage")
        assert world.close().ok
        until_projected(world)
        yield world


def until_projected(world: BillingWorld) -> None:
    """Everything that the ledger has is in ClickHouse's tables."""
    known = world.context.log.state.invoices.values()
    wanted = {(invoice.id, invoice.updated_at) for invoice in known}

    def there() -> bool:
        rows = world.query("SELECT id, toUnixTimestamp64Micro(updated_at) FROM invoices")
        return wanted <= {(str(id_), int(at)) for id_, at in rows}

    world.until(there)


@pytest.fixture(scope="module")
async def api(world: BillingWorld) -> AsyncIterator[httpx.AsyncClient]:
    billing = BillingAdapter(world.settings, world.catalog, world.context.log)
    board = Dashboard(world.settings, world.catalog, billing)
    transport = httpx.ASGITransport(board.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://usage/api/v1") as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield client
    board.services.warehouse.close()
    billing.close()


def run(world: BillingWorld, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "usage-billing"), "finance", *arguments],
        env=os.environ | world.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(world: BillingWorld, *arguments: str) -> Rows:
    done = run(world, *arguments)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


async def rows(api: httpx.AsyncClient, report: str, **params: str) -> Rows:
    answer = await api.get(f"/finance/{report}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def test_lines_of_every_issued_invoice(world: BillingWorld, api: httpx.AsyncClient) -> None:
    found = await rows(api, "lines")
    by_state = {(each["customer_id"], each["state"]) for each in found}
    assert by_state == {
        ("paid", "paid"), ("failed", "payment_failed"), ("reissued", "void"), ("reissued", "payment_failed"),
        ("credited", "paid"), ("sent", "open"), ("idle", "paid"),
    }  # fmt: skip
    calls, fee = [each for each in found if each["customer_id"] == "paid"]
    (invoice,) = world.invoices("paid")
    assert {
        name: calls[name]
        for name in (
            "number",
            "period_start",
            "period_end",
            "product",
            "meter",
            "quantity",
            "net",
            "tax",
            "currency",
            "paid",
        )
    } == {
        "number": invoice.document()["number"],
        "period_start": "2026-03-01T00:00:00Z",
        "period_end": "2026-04-01T00:00:00Z",
        "product": "paid",
        "meter": "mtr_calls",
        "quantity": "150000",
        "net": "135.00",
        "tax": "25.65",
        "currency": "eur",
        "paid": "true",
    }
    assert (fee["meter"], fee["net"], fee["tax"], fee["issued_at"][:2]) == ("flat_fee", "31.00", "5.89", "20")
    (idle,) = [each for each in found if each["customer_id"] == "idle"]
    assert (idle["number"], idle["net"], idle["tax"], idle["paid"]) == ("", "0.00", "", "true")
    assert await rows(api, "lines", to="2026-03-01T00:00:00Z") == []
    answer = await api.get("/finance/lines", params={"format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.DictReader(io.StringIO(answer.text))) == found
    assert command(world, "lines") == found


async def test_revenue_by_meter_and_month_without_void_ones_and_less_credits(
    world: BillingWorld, api: httpx.AsyncClient
) -> None:
    found, by_period = await rows(api, "revenue"), await rows(api, "revenue-by-period")

    def without_month(of: Rows) -> list[tuple[str, ...]]:
        return sorted((each["meter"], each["quantity"], each["net"], each["invoices"]) for each in of)

    assert (
        without_month(found)
        == without_month(by_period)
        == [
            ("credit notes", "0", "-11.90", "1"),
            ("flat_fee", "0", "155.00", "5"),
            ("mtr_calls", "750000", "675.00", "6"),
        ]
    )
    # March was closed long ago: what is issued, voided and credited now is this month's.
    assert {each["month"] for each in by_period} == {"2026-03"}
    assert await rows(api, "revenue", to="2026-04-01T00:00:00Z") == []
    assert await rows(api, "revenue-by-period", **{"from": "2026-04-01T00:00:00Z"}) == []
    assert command(world, "revenue") == found
    assert command(world, "revenue", "--by-period") == by_period


async def test_open_items_are_what_is_still_to_be_paid(world: BillingWorld, api: httpx.AsyncClient) -> None:
    found = await rows(api, "open-items")
    assert sorted((each["customer_id"], each["state"], each["amount_open"], each["net"]) for each in found) == [
        ("failed", "payment_failed", "197.54", "166.00"),
        ("reissued", "payment_failed", "197.54", "166.00"),
        ("sent", "open", "197.54", "166.00"),
    ]
    sent = next(each for each in found if each["customer_id"] == "sent")
    assert (bool(sent["due_at"]), sent["unpaid_reason"]) == (True, "")  # it is not due yet, so not overdue
    assert command(world, "open-items") == found


async def test_an_accrual_is_what_was_used_and_not_invoiced_at_a_date(
    world: BillingWorld, api: httpx.AsyncClient
) -> None:
    at = "2026-03-16T12:00:00Z"  # the middle of March
    world.use("paid", "20000", at=parse_rfc3339("2026-03-20T00:00:00Z"))  # after it
    found = await rows(api, "accrual", at=at)
    mine = [each for each in found if each["customer_id"] == "paid"]
    assert [(each["meter"], each["quantity"], each["net"]) for each in mine] == [
        ("mtr_calls", "150000", "135.00"),
        ("flat_fee", "1", "15.50"),
    ]
    assert {(each["period_start"], each["period_end"]) for each in found} == {("2026-03-01T00:00:00Z", at)}

    # Its invoice was issued later than that, today: the whole of March, late events too, was not billed then either.
    world.use("paid", "5000", at=APRIL + 1)  # counted as soon as it is accepted
    at = "2026-05-01T00:00:00Z"
    later = await rows(api, "accrual", at=at)
    mine = [each for each in later if each["customer_id"] == "paid"]
    assert [(each["period_start"], each["meter"], each["net"]) for each in mine] == [
        ("2026-03-01T00:00:00Z", "mtr_calls", "145.00"),
        ("2026-03-01T00:00:00Z", "flat_fee", "31.00"),
        ("2026-04-01T00:00:00Z", "mtr_calls", "10.00"),
        ("2026-04-01T00:00:00Z", "flat_fee", "31.00"),
    ]
    assert command(world, "accrual", "--at", at, "--keep") == later
    today = await rows(api, "accrual", at="2026-11-01T00:00:00Z")
    assert {each["period_start"] for each in today} >= {"2026-03-01T00:00:00Z", "2026-10-01T00:00:00Z"}
    assert (await api.get("/finance/accrual", params={"at": "2126-01-01T00:00:00Z"})).status_code == 422
    assert (await api.get("/finance/accrual", params={"at": "yesterday"})).status_code == 422
    assert await rows(api, "lines", **{"from": "9000-01-01T00:00:00Z", "to": "9999-01-01T00:00:00Z"}) == []
    kept = world.query("SELECT customer_id, period_start, meter, toString(net) FROM finance_accrual")
    assert len(kept) == len(later)
    assert command(world, "accrual", "--at", at, "--keep") == later
    assert len(world.query("SELECT * FROM finance_accrual")) == len(later)


def test_an_accrual_is_of_everything_in_one_store_or_none(world: BillingWorld) -> None:
    billing = BillingAdapter(world.settings, world.catalog, world.context.log)
    with closing(billing):
        with world.service.all_stored() as watermark:
            assert sum(watermark.offsets.values()) > 0
        with (
            pytest.raises(NotCovered, match="older copy"),
            world.service.all_stored(),
            connect(world.settings) as client,
        ):
            client.command("TRUNCATE TABLE store_marks")  # as a copy of before has them

        # What the sink has not stored yet is waited for, and told of when that takes too long.
        world.sink.pause()
        world.use("paid", "1", at=APRIL + 2)
        hasty = BillingAdapter(
            world.settings.model_copy(update={"coverage_timeout_seconds": 0.5}), world.catalog, world.context.log
        )
        with (
            closing(hasty),
            pytest.raises(BillingUnavailable, match="does not have all events"),
        ):
            hasty.accrue(DEFAULT_ORGANIZATION, APRIL)
        world.sink.resume()
        with world.service.all_stored():
            assert world.query(
                f"SELECT count() FROM usage WHERE timestamp = fromUnixTimestamp64Micro({APRIL + 2})"
            ) == [(1,)]


def test_an_accrual_of_nothing_replaces_what_was_kept(world: BillingWorld) -> None:
    one = AccruedLine("c", "sub", "prod", 0, "mtr", "Calls", Cycle(0, MAY), Decimal(1), Decimal(2), "eur")
    kept = "SELECT organization_id, customer_id FROM finance_accrual WHERE organization_id LIKE 'org_k%' ORDER BY 1"
    with connect(world.settings) as client:
        for organization in ("org_k1", "org_k2"):
            keep_accrual(client, organization, MAY, MAY, [one])
        keep_accrual(client, "org_k1", MAY, MAY + 1, [])
    assert world.query(kept) == [("org_k2", "c")]


async def test_benefits_by_subscription(world: BillingWorld, api: httpx.AsyncClient) -> None:
    for name in ("failed", "paid"):
        known = world.catalog.view.get(Product, "default", f"prod_{name}")
        assert known is not None
        world.catalog.write(known.model_copy(update={"benefits": ("priority-support", "sla")}), 1)

    async def of(customer: str) -> list[Any]:
        answer = await api.get(f"/customers/{customer}/benefits")
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    assert [(each["benefit"], each["state"]) for each in await of("failed")] == [
        ("priority-support", "active"),
        ("sla", "active"),
    ]
    world.stripe.advance(16 * 86_400)
    Poller(world.context.billing(), 0.0).run()
    until_projected(world)
    (invoice,) = world.invoices("failed")
    first, _ = await of("failed")
    assert {name: first[name] for name in ("state", "reason", "invoice_id", "subscription_id", "product_id")} == {
        "state": "suspended",
        "reason": "retries_exhausted",
        "invoice_id": invoice.id,
        "subscription_id": "sub_failed",
        "product_id": "prod_failed",
    }
    assert {each["state"] for each in await of("paid")} == {"active"}
    assert await of("sent") == []
    assert (await api.get("/customers/nobody/benefits")).status_code == 404


async def test_late_usage_is_accrued_from_its_cycles_invoice_until_its_own(
    world: BillingWorld, api: httpx.AsyncClient
) -> None:
    world.subscribe("tardy", TIERS, ends_at=APRIL)
    world.use("tardy", "100000")
    world.close()
    (first,) = world.invoices("tardy")
    assert first.issued_at is not None
    at, before = format_rfc3339(first.issued_at + SECOND_US), format_rfc3339(first.issued_at - SECOND_US)

    async def accrued(date: str) -> list[tuple[str, str, str]]:
        found = [each for each in await rows(api, "accrual", at=date) if each["customer_id"] == "tardy"]
        assert {(each["period_start"], each["period_end"]) for each in found} <= {
            ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")
        }
        return [(each["meter"], each["quantity"], each["net"]) for each in found]

    assert await accrued(at) == []
    world.use("tardy", "50000")
    late = [("late_usage", "1", "25.00")]
    assert await accrued(at) == late
    assert await accrued(before) == [("mtr_calls", "150000", "135.00")], "the whole of it was not invoiced then"
    known = command(world, "accrual", "--at", at, "--keep")
    late_nets = sorted((each["customer_id"], each["net"]) for each in known if each["meter"] == "late_usage")
    assert late_nets == [("paid", "10.00"), ("tardy", "25.00")]  # the former: of what another test used
    kept = "SELECT customer_id, toString(net) FROM finance_accrual WHERE meter = 'late_usage' ORDER BY 1"
    assert world.query(kept) == [("paid", "10"), ("tardy", "25")]

    world.stripe.advance(86_400)
    world.close(MAY)  # its final invoice, among others
    invoices = world.invoices("tardy")
    assert [each.document()["total"] for each in invoices] == ["110.00", "25.00"], "what was invoiced, what was accrued"
    last = invoices[1].issued_at
    assert last is not None
    assert await accrued(at) == late, "it was not invoiced then"
    assert await accrued(format_rfc3339(last + SECOND_US)) == []


async def test_a_subscription_without_an_accrual_is_named_and_all_others_are_accrued(
    world: BillingWorld, api: httpx.AsyncClient
) -> None:
    """Its start is one that no calendar has: the accrual of the whole organization was a 500."""
    at = format_rfc3339(APRIL - SECOND_US)
    before = await rows(api, "accrual", at=at)
    assert before
    world.subscribe("odd", TIERS, started_at=-(10**17))
    answer = await api.get("/finance/accrual", params={"at": at})
    assert answer.status_code == 200, answer.text
    nothing = dict.fromkeys(("meter_id", "period_start", "period_end", "quantity", "net", "currency"), "")
    missing = {"customer_id": "odd", "subscription_id": "sub_odd", "product_id": "prod_odd", "meter": "not_computed"}
    assert answer.json() == {
        "data": [*before, nothing | missing],
        "problems": {"sub_odd": "ValueError: value or calculation out of range"},
    }
    stored = world.query("SELECT * FROM finance_accrual ORDER BY ALL")
    done = run(world, "accrual", "--at", at, "--keep")
    assert done.returncode == 1
    assert "1 subscriptions are not computed and nothing is kept: sub_odd: ValueError" in done.stderr
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == len(before) + 1
    assert world.query("SELECT * FROM finance_accrual ORDER BY ALL") == stored
