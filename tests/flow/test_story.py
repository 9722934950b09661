"""A merchant's first day in a real browser, on the whole system; then every page, light and dark, wide and narrow."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from tests.flow.browser import browser, sign_in, violations, watched
from tests.flow.looks import PAGES, SIGN_IN, looks, pages_of_objects
from tests.flow.pipe import ADMIN, Pipe
from tests.receiver import Receiver
from tests.waiting import until

pytestmark = pytest.mark.timeout(400)
NAUGHTY = "<script>window.ran = 1</script>"
NAME = f"Acme {NAUGHTY}"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.end()


@pytest.fixture(scope="module")
def pipe(kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    with Pipe(kafka, clickhouse, tmp_path_factory.mktemp("story"), webhook_private_targets=True) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(pipe: Pipe, chromium: Browser) -> Page:
    page = watched(chromium.new_page(viewport={"width": 1280, "height": 860}))
    page.on("dialog", lambda dialog: dialog.accept())
    sign_in(page, pipe.serve.address, ADMIN)
    return page


def now() -> str:
    return datetime.now(UTC).isoformat()


def posted(pipe: Pipe, *values: int, first_id: int = 0) -> None:
    pipe.accepted(
        *(
            {
                "customer_id": "acme", "event_name": "api_request", "timestamp": now(), "value": value,
                "event_id": f"=e{first_id + n}", "properties": {"region": "eu" if n % 2 else "us"},
            }
            for n, value in enumerate(values)
        )
    )  # fmt: skip


def test_from_signing_in_to_being_paid(pipe: Pipe, page: Page, receiver: Receiver) -> None:
    address = pipe.serve.address
    expect(page.locator("h1")).to_have_text("Overview")

    page.goto(f"{address}/meters/new")
    for name, text in (("name", "API requests"), ("event_name", "api_request"), ("unit", "requests")):
        page.fill(f"#f-{name}", text)
    page.select_option("#f-aggregation", "sum")
    page.click("text=Create meter")
    expect(page.locator("h1")).to_have_text("API requests")
    meter = page.url.partition("?")[0].rpartition("/")[2]

    page.goto(f"{address}/products/new")
    page.fill("#f-name", "Standard")
    page.select_option("[id='f-prices.0.meter_id']", label="API requests")
    page.fill("#f-example", "150000")
    expect(page.locator("[data-example='0']")).to_have_text("150,000 requests cost €135.00")
    page.click("text=Create product")
    expect(page.locator("h1")).to_have_text("Standard")

    page.goto(f"{address}/customers/new")
    page.fill("#f-id", "acme")
    page.fill("#f-name", NAME)
    page.fill("#f-payment_method", "pm_card_visa")
    page.click("text=Create customer")
    expect(page.locator("h1")).to_have_text(NAME)
    page.click("text=New subscription")
    page.select_option("#f-product_id", label="Standard (EUR)")
    page.click("text=Create subscription")
    expect(page.locator(".badge.good").first).to_have_text("active")
    subscription = page.url.partition("?")[0]

    page.goto(f"{address}/alerts")
    page.fill("#f-url", receiver.url("/hooks"))
    page.click("text=Create webhook")
    expect(page.locator(".note.good pre")).to_contain_text("whsec_")
    page.select_option("#f-meter_id", label="API requests")
    page.select_option("#f-kind", "amount")
    page.fill("#f-threshold", "20")
    page.click("text=Create rule")
    expect(page.locator("#rules")).to_contain_text("a spend of 20")

    # Events, and the number moves.
    page.goto(address)
    posted(pipe, 9_000)
    cell = page.locator("[data-total^='acme|']")
    expect(cell).to_have_text("9,000")
    expect(page.locator("[data-live-status]")).to_have_text("Live")
    posted(pipe, 1_000, 140_000, first_id=1)
    expect(cell).to_have_text("150,000")  # how soon is measured by bench_visible, where nothing else runs
    expect(page.locator("[data-part='alerts']")).to_contain_text("€135.00")
    until(lambda: len(receiver.of("/hooks")) == 1)
    page.goto(f"{address}/alerts")
    expect(page.locator("#deliveries")).to_contain_text("delivered")
    assert page.evaluate("window.ran") is None

    # Exact usage, by a property too; the invoice as it would be.
    pipe.world.until(lambda: pipe.stored_now("acme", meter) == 150_000)
    page.goto(f"{address}/usage?customer_id=acme&meter_id={meter}")
    expect(page.locator("main")).to_contain_text("150,000 requests")
    page.goto(f"{address}/usage?customer_id=acme&meter_id={meter}&group_by=region&wait=1")
    expect(page.locator("tbody")).to_contain_text("140,000")
    page.goto(f"{address}/usage?customer_id=acme&meter_id={meter}&window=cycle&wait=1")
    expect(page.locator("main")).to_contain_text("By billing period")
    page.goto(f"{address}/usage/events?event_id=%3De2")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.goto(f"{address}/invoices?customer_id=acme")
    expect(page.locator("tfoot")).to_contain_text("€135.00")

    # One that came again, saying something else, counts no second time and is told.
    posted(pipe, 1_001, first_id=1)
    pipe.world.until(lambda: pipe.http.get("/api/v1/usage/duplicates").json()["data"])
    page.goto(f"{address}/usage/duplicates")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_contain_text("1,001")
    assert pipe.stored_now("acme", meter) == 150_000

    # The subscription ends, its cycle is closed and paid.
    page.goto(subscription)
    page.click("button[value='now']")
    expect(page.locator(".badge").first).to_contain_text("ended")
    report = pipe.world.close(time.time_ns() // 1000)
    assert report.ok, report
    until(lambda: [each["state"] for each in pipe.http.get("/api/v1/invoices").json()["data"]] == ["paid"])
    page.goto(f"{address}/invoices")
    expect(page.locator("tbody tr", has_text="Acme")).to_contain_text("Paid")
    expect(page.locator("tbody tr", has_text="Acme")).to_contain_text("€135.00")
    page.click(f"text={NAME}")
    expect(page.locator("main")).to_contain_text("€20.00")
    page.click("text=Verify")
    expect(page.locator(".note.good")).to_contain_text("Verified")
    expect(page.locator(".explained")).to_contain_text("above 10000 to 100000: 90000 x 0.001")
    page.get_by_role("link", name="View events").click()
    expect(page.locator("tbody tr")).to_have_count(3)
    page.goto(f"{address}/orders")
    expect(page.locator("tbody tr")).to_contain_text("€135.00")
    assert page.evaluate("window.ran") is None

    # What is exported is what was posted.
    page.goto(f"{address}/export")
    with page.expect_download() as download:
        page.click("text=Download usage.csv")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert {(row["event_id"], row["value"]) for row in rows} == {("'=e0", "9000"), ("'=e1", "1000"), ("'=e2", "140000")}
    with page.expect_download() as download:
        page.click("text=Download invoices.csv")
    (invoice,) = csv.DictReader(io.StringIO(Path(download.value.path()).read_text()))
    assert (invoice["customer_id"], Decimal(invoice["total"]), invoice["state"]) == ("acme", Decimal(135), "paid")

    # An event that is not to count, and the whole of it.
    page.goto(f"{address}/usage/events?event_id=%3De2")
    page.click("text=Void")
    page.fill("#f-reason", NAUGHTY)
    page.click("text=Void event")
    expect(page.locator(".note.good")).to_contain_text("Event voided")
    until(lambda: not pipe.http.get("/api/v1/usage/events", params={"event_id": "=e2"}).json()["data"])
    page.goto(address)
    # The page asks again by itself; a count is kept the longer the longer it took.
    expect(page.locator("[data-part='conservation']")).to_contain_text("4 received", timeout=180_000)


def test_every_page_is_accessible_and_fits(pipe: Pipe, chromium: Browser, page: Page) -> None:
    """axe-core finds no violation and nothing is wider than the screen."""
    context = chromium.new_context(storage_state=page.context.storage_state(), reduced_motion="reduce")
    opened, found = watched(context.new_page()), list[str]()

    def look_at(paths: dict[str, str]) -> None:
        for look in looks(opened, pipe.serve.address, paths):
            found.extend(f"{look}: {each}" for each in violations(opened))
            wide = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                found.append(f"{look}: {wide} px wider than the screen")

    look_at(PAGES | pages_of_objects(pipe.http))
    context.clear_cookies()
    look_at(SIGN_IN)
    context.close()
    assert found == []


def test_a_keyboard_reaches_everything(pipe: Pipe, page: Page) -> None:
    page.goto(f"{pipe.serve.address}/alerts")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"f-meter_id", "f-kind", "f-threshold", "Create rule", "f-url", "Create webhook"} <= reached
