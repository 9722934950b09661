"""usage.totals and usage.alerts on a real broker → live totals, the stream, and pages in a real browser."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from msgspec import structs
from playwright.sync_api import Page, Route, expect

from dashboard.app import Dashboard
from dashboard.billing_port import BillingUnavailable
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas import totals
from schemas.customer import Customer
from schemas.organization import ApiKey, Scope, new_secret, secret_digest
from schemas.period import calendar_month_containing
from schemas.topics import USAGE_TOTALS, topic_name
from schemas.totals import Progress
from tests.flow.board import KEY, OTHER_KEY, PARTITIONS, READ_KEY, ZONE, Running, own, running_board, signed_in
from tests.flow.browser import browser, sign_in, watched
from tests.waiting import until


@pytest.fixture(scope="module")
def running(kafka: KafkaBroker, clickhouse: ClickHouseLocal) -> Iterator[Running]:
    with running_board(kafka, clickhouse, "dashboard") as running:
        yield running


# -- live totals and alerts ---------------------------------------------------------------------------------------------


def test_the_newest_total_is_shown_and_an_older_one_changes_nothing(running: Running) -> None:
    running.total("newest", 3, "10.5", offset=7)
    running.total("newest", 2, "9", offset=5)  # a frozen worker's last write
    running.total("newest", 4, "10.50", offset=8)
    until(lambda: [r["quantity"] for r in running.get("/usage/live", customer_id="newest")["data"]] == ["4", "10.50"])
    answer = running.get("/usage/live", customer_id="newest", meter_id="mtr_flights")
    (row,) = answer["data"]
    cycle = calendar_month_containing(ZONE, time.time_ns() // 1000)
    assert (row["meter_id"], row["from"], row["to"]) == ("mtr_flights", cycle.start, cycle.end)
    assert answer["complete"] is True
    assert (
        running.get(
            "/usage/live", customer_id="newest", **{"from": "2013-01-01T00:00:00Z", "to": "2014-01-01T00:00:00Z"}
        )["data"]
        == []
    )


def test_the_lag_is_the_logs_end_less_what_is_counted(running: Running) -> None:
    records = [Progress("topic", partition, 3, time.time_ns() // 1000, 0) for partition in range(PARTITIONS)]
    for record in records:
        running.producer.produce(
            topic_name(running.settings, USAGE_TOTALS), totals.encode(record), totals.PROGRESS_KEY, record.partition
        )
    running.producer.flush()
    until(lambda: running.get("/usage/live")["lag"] == {"messages": 0, "seconds": 0.0})


def test_an_alert_is_listed_once_however_often_it_is_published(running: Running) -> None:
    fired = running.alert("alerted")
    running.alert("alerted")
    until(lambda: len(running.get("/alerts", customer_id="alerted")["data"]) == 1)
    running.alert("alerted-2")
    until(lambda: len(running.get("/alerts", rule_id="rule_1")["data"]) >= 2)
    (alert,) = running.get("/alerts", customer_id="alerted")["data"]
    assert (alert["id"], alert["threshold"], alert["quantity"]) == (fired.id, "80", "90")


def test_another_process_reads_everything_from_the_start(running: Running) -> None:
    running.total("restart", 11, "1", offset=1)
    until(lambda: bool(running.get("/usage/live", customer_id="restart")["data"]))
    second = Dashboard(running.settings, running.store)
    second.start()
    try:
        assert second.services.live.wait_until_caught_up(20)
        (series,) = second.services.live.view.series_of("default", "restart")
        assert series[-1].count == 11
    finally:
        second.services.live.stop()


def test_the_stream_tells_an_organization_of_its_own_changes(running: Running) -> None:
    events: list[tuple[str, Any]] = []
    with (
        httpx.Client(timeout=15) as client,
        client.stream(
            "GET", f"{running.address}/api/v1/stream", headers={"Authorization": f"Bearer {READ_KEY}"}
        ) as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        name = ""
        for line in lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))))
                if name == "ready":
                    running.total("UA", 1, "1", offset=1, organization="other")
                    running.alert("UA", organization="other")
                    running.total("streamed", 5, "77", offset=1)
                    running.alert("streamed")
                if {"totals", "alerts"} <= {each for each, _ in events}:
                    break
    rows = [row for name, data in events if name == "totals" for row in data]
    assert {(row["customer_id"], row["meter_id"], row["quantity"]) for row in rows} == {
        ("streamed", "mtr_flights", "5"), ("streamed", "mtr_miles", "77"),
    }  # fmt: skip
    fired = [alert for name, data in events if name == "alerts" for alert in data]
    assert [alert["customer_id"] for alert in fired] == ["streamed"]


def test_a_client_that_reads_nothing_costs_bounded_memory(running: Running) -> None:
    async def run() -> None:
        listener = running.board.services.live.listen("default")
        try:
            total = running.total("bounded", 1, "1", offset=1)
            for n in range(3):
                listener.offer([structs.replace(total, customer_id=f"c{n}-{i}") for i in range(6000)], [])
            changed, _, overflowed = listener.take()
            assert overflowed
            assert len(changed) <= 10_000
        finally:
            running.board.services.live.forget(listener)

    asyncio.run(run())


# -- sign-in and pages --------------------------------------------------------------------------------------------------

PAGES = [
    "/", "/usage", "/usage/events", "/invoices", "/alerts", "/customers", "/customers/new", "/customers/by-id/UA",
    "/subscriptions", "/subscriptions/new", "/products", "/products/new", "/meters", "/meters/new", "/meters/mtr_miles",
    "/export", "/export/usage.csv", "/export/invoices.csv", "/api-keys", "/settings", "/live/totals", "/live/alerts",
    "/live/numbers", "/live/deliveries", "/orders", "/usage/figures", "/usage/events/void", "/usage/duplicates", "/export/finance/lines.csv",
]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_every_page_needs_a_session_and_has_strict_headers(running: Running, path: str) -> None:
    without = httpx.get(running.address + path)
    assert without.status_code in (303, 401)
    with signed_in(running) as client:
        page = client.get(path)
        assert page.status_code == 200, page.text
        if not path.endswith(".csv"):
            assert "script-src 'self'" in page.headers["Content-Security-Policy"]
            assert "unsafe" not in page.headers["Content-Security-Policy"]
            assert "<script>window.ran" not in page.text
            assert "<b>inc</b>" not in page.text
            assert " style=" not in page.text
            assert " onclick=" not in page.text


def test_signing_in_sets_a_cookie_for_this_site_and_leads_nowhere_else(running: Running) -> None:
    for target, expected in (
        ("/usage?window=day", "/usage?window=day"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil", "/"),
    ):
        answer = httpx.post(f"{running.address}/sign-in", data={"key": KEY, "next": target})
        assert answer.headers["Location"] == expected
        cookie = answer.headers["Set-Cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert KEY.lower() not in cookie


@pytest.mark.parametrize(
    ("key", "status"), [("wrong", 401), ("", 401), (READ_KEY, 403)], ids=["unknown", "none", "read key"]
)
def test_signing_in_needs_an_admin_key(running: Running, key: str, status: int) -> None:
    answer = httpx.post(f"{running.address}/sign-in", data={"key": key})
    assert answer.status_code == status
    assert "Set-Cookie" not in answer.headers


def test_a_form_needs_its_own_sessions_token(running: Running) -> None:
    fields = {"name": "Forged", "event_name": "e", "unit": "u", "aggregation": "count"}
    with signed_in(running) as client, signed_in(running) as other:
        token = other.get("/meters/new").text.split('name="csrf_token" value="')[1].split('"')[0]
        before = running.store.next_offset
        for sent, headers in (
            (fields, {}),
            ({**fields, "csrf_token": "x"}, {}),
            ({**fields, "csrf_token": token}, {}),
            ({**fields, "csrf_token": token}, {"Sec-Fetch-Site": "cross-site"}),
        ):
            assert client.post("/meters/new", data=sent, headers=headers).status_code == 403
        assert running.store.next_offset == before
        own_token = client.get("/meters/new").text.split('name="csrf_token" value="')[1].split('"')[0]
        assert client.post("/meters/new", data={**fields, "csrf_token": own_token}).status_code == 303


def test_a_forged_or_revoked_session_is_none(running: Running) -> None:
    secret = new_secret()
    key = ApiKey(**own("default", "key_revoked"), scopes=(Scope.ADMIN,), sha256=secret_digest(secret), hint="0000")
    running.store.write(key, 0)
    with signed_in(running, secret) as client:
        assert client.get("/").status_code == 200
        cookie = client.cookies["usage_session"]
        for forged in (cookie[:-2] + "xx", "", "a.b.c", cookie.split(".")[0]):
            assert httpx.get(running.address, cookies={"usage_session": forged}).status_code == 303
        running.store.write(key.model_copy(update={"archived": True}), 1)
        assert client.get("/").status_code == 303


def test_nothing_of_another_organization_is_on_a_page(running: Running) -> None:
    running.total("secretive", 5, "1", offset=1)
    running.store.write(Customer(**own("default", "secretive"), name="Secretive"), 0)
    until(lambda: bool(running.get("/usage/live", customer_id="secretive")["data"]))
    with signed_in(running) as mine, signed_in(running, OTHER_KEY) as theirs:
        assert "Secretive" in mine.get("/").text
        for path in PAGES:
            assert "ecretive" not in theirs.get(path).text, path
        assert theirs.get("/customers/by-id/secretive").status_code == 404


def test_closed_invoices_are_shown_though_the_open_cycle_cannot_be_priced(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Mock(preview=Mock(side_effect=BillingUnavailable("no sink has read usage.events yet")))
    # By its dictionary: a State has its attributes there alone, so an undone setattr would leave none.
    state: dict[str, Any] = running.board.app.state._state  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setitem(state, "services", replace(running.board.services, billing=away))
    with signed_in(running) as client:
        page = client.get("/invoices", params={"customer_id": "UA"})
    assert page.status_code == 200
    assert "Can't calculate the upcoming invoice: no sink has read usage.events yet." in page.text


def test_the_registry_answers_as_kafkas_clients_ask(running: Running) -> None:
    registry = f"{running.address}/schema-registry"
    answer = httpx.get(f"{registry}/schemas/ids/1")
    assert answer.headers["Content-Type"] == "application/vnd.schemaregistry.v1+json"
    assert json.loads(answer.json()["schema"])["name"] == "UsageBatch"
    subject = topic_name(running.settings, "usage.events-value")
    of_voids = topic_name(running.settings, "usage.events-usage.UsageVoid")
    assert httpx.get(f"{registry}/subjects").json() == [subject, of_voids]
    latest = httpx.get(f"{registry}/subjects/{subject}/versions/latest").json()
    assert (latest["id"], latest["version"], latest["schema"]) == (1, 1, answer.json()["schema"])
    for path, code in (
        ("schemas/ids/3", 40403),
        ("subjects/x/versions", 40401),
        (f"subjects/{subject}/versions/2", 40402),
    ):
        missing = httpx.get(f"{registry}/{path}")
        assert (missing.status_code, missing.json()["error_code"]) == (404, code)


def test_the_reference_shows_every_operation(running: Running) -> None:
    document = httpx.get(f"{running.address}/openapi.json").json()
    text = httpx.get(f"{running.address}/docs").text
    for path, methods in document["paths"].items():
        assert path.replace("{", "{") in text
        for operation in methods.values():
            assert f'id="{operation["operationId"]}"' in text
    assert "http://" not in text.replace(running.address, "")


# -- a real browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(running: Running) -> Iterator[Page]:
    with browser() as opened:
        page = watched(opened.new_page())
        sign_in(page, running.address, KEY)
        yield page


def test_numbers_move_in_the_browser(running: Running, page: Page) -> None:
    running.total("UA", 1000, "12345678901234567890.5", offset=1)
    cell = page.locator('[data-total="UA|mtr_flights"]')
    expect(cell).to_have_text("1,000")
    expect(page.locator("[data-live-status]")).to_have_text("Live")
    running.total("UA", 1234567, "12345678901234567890.5", offset=2)
    expect(cell).to_have_text("1,234,567")  # how soon is measured by bench_visible
    expect(page.locator('[data-total="UA|mtr_miles"]')).to_have_text("12,345,678,901,234,567,890.5")
    running.total("UA-new", 7, "1", offset=1)
    expect(page.locator('[data-total="UA-new|mtr_flights"]')).to_have_text("7")
    running.alert("UA")
    expect(page.locator('[data-part="alerts"]')).to_contain_text("United <script>")
    assert page.evaluate("window.ran") is None


def test_a_meter_a_tiered_product_and_a_subscription_are_made_in_the_browser(running: Running, page: Page) -> None:
    page.goto(f"{running.address}/meters/new")
    for name, text in (("name", "Calls"), ("event_name", "call"), ("unit", "calls")):
        page.fill(f"#f-{name}", text)
    page.click("text=Create meter")
    expect(page.locator("h1")).to_have_text("Calls")

    page.goto(f"{running.address}/products/new")
    page.fill("#f-name", "Tiered")
    page.select_option("[id='f-prices.0.meter_id']", label="Calls")
    expect(page.locator("[data-example='0']")).to_have_text("12,000 calls cost €22.00")
    page.fill("#f-example", "150000")
    expect(page.locator("[data-example='0']")).to_have_text("150,000 calls cost €135.00")
    page.fill("[name='prices.0.tiers.0.up_to']", "many")
    page.click("text=Create product")
    expect(page.locator(".error").first).to_contain_text("Enter a number")
    page.fill("[name='prices.0.tiers.0.up_to']", "10000")
    page.click("text=Add price")
    page.select_option("[id='f-prices.1.model']", "flat_fee")
    page.fill("[name='prices.1.amount']", "49.00")
    page.click("text=Create product")
    expect(page.locator("h1")).to_have_text("Tiered")
    expect(page.locator("main")).to_contain_text("€49.00 per billing period")

    page.click("text=New subscription")
    page.fill("#f-customer_id", "nobody")
    page.click("text=Create subscription")
    expect(page.locator("#e-customer_id")).to_contain_text("There is no customer")
    page.fill("#f-customer_id", "UA")
    page.click("text=Create subscription")
    expect(page.locator("h1")).to_contain_text("Tiered")
    expect(page.locator(".badge.good").first).to_have_text("active")


def answer_held(running: Running, page: Page) -> list[Route]:
    """The editor of a new product, waiting for its answer to another model; it is there after the page's next step."""
    page.goto(f"{running.address}/products/new")
    held: list[Route] = []
    page.route("**/products/new", lambda route: held.append(route), times=1)
    with page.expect_request("**/products/new"):
        page.select_option("[id='f-prices.0.model']", "per_unit")
    return held


def test_what_is_typed_while_the_editor_waits_for_an_answer_stays(running: Running, page: Page) -> None:
    held = answer_held(running, page)
    page.fill("#f-name", "Typed early")
    page.fill("#f-example", "5000")
    held[0].continue_()
    page.fill("[name='prices.0.unit_amount']", "0.01")
    expect(page.locator("[data-example='0']")).to_contain_text("5,000")
    expect(page.locator("#f-name")).to_have_value("Typed early")
    expect(page.locator("#f-example")).to_have_value("5000")


def test_typing_goes_on_where_it_was_when_the_editors_answer_comes(running: Running, page: Page) -> None:
    held = answer_held(running, page)
    page.focus("#f-example")
    page.keyboard.press("Control+a")
    with page.expect_response("**/products/new"):
        held[0].continue_()
    expect(page.locator("[name='prices.0.unit_amount']")).to_be_visible()
    page.keyboard.type("5000")  # takes the place of what was selected
    expect(page.locator("#f-example")).to_have_value("5000")
