"""The button "Run billing now" in a real browser: what would be billed, and then it is."""

import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from dashboard.app import Dashboard
from deploy.local.process import free_ports
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Scope, new_secret, secret_digest
from tests.flow.billing import APRIL, BillingWorld
from tests.flow.board import serve
from tests.flow.browser import browser, sign_in, violations, watched
from tests.flow.looks import THEMES
from tests.waiting import until
from usage_billing.invoice_desk import LedgerDesk

pytestmark = pytest.mark.timeout(300)
KEY = new_secret()
PER_UNIT = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}


@pytest.fixture
def page(world: BillingWorld) -> Iterator[Page]:
    key = ApiKey(
        id="key_run", organization_id=DEFAULT_ORGANIZATION, scopes=(Scope.ADMIN,), sha256=secret_digest(KEY), hint="0",
        created_at=0,
    )  # fmt: skip
    world.catalog.write(key, 0)
    desk = LedgerDesk(world.settings, world.catalog, world.stage.log)
    board = Dashboard(world.settings, world.catalog, desk)
    (port,) = free_ports(1)
    stopping = threading.Event()
    thread = serve(board, port, stopping)
    until(lambda: board.services.live.check() is None, 30)
    with browser() as opened:
        page = watched(opened.new_page(base_url=f"http://127.0.0.1:{port}"))
        sign_in(page, f"http://127.0.0.1:{port}", KEY)
        yield page
    stopping.set()
    thread.join(20)
    desk.close()


def test_what_has_ended_is_listed_and_then_billed(world: BillingWorld, page: Page) -> None:
    world.subscribe("due", PER_UNIT, ends_at=APRIL)
    world.use("due", "7")
    page.goto("/invoices")
    page.click("text=Run billing now")
    row = page.locator("tbody tr")
    expect(row).to_contain_text("€7.00")
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []
    assert world.invoices("due") == [], "a list changes nothing"
    page.click("button:has-text('Run billing now')")
    expect(page.locator(".note.good")).to_contain_text("1 paid")
    assert violations(page) == []
    assert [each.state for each in world.invoices("due")] == ["paid"]
    page.goto("/invoices/run")
    expect(page.locator("main")).to_contain_text("Nothing is due")


def test_an_unpaid_invoice_is_collected_from_its_page(world: BillingWorld, page: Page) -> None:
    """A new card did not help: no button collected what was open."""
    world.subscribe("refused", PER_UNIT, ends_at=APRIL, payment_method="pm_card_chargeCustomerFail")
    world.use("refused", "9")
    world.close()
    (invoice,) = world.invoices("refused")
    world.until(lambda: world.query(f"SELECT state FROM invoices WHERE id = '{invoice.id}'") == [("payment_failed",)])
    page.goto(f"/invoices/{invoice.id}")
    expect(page.locator("dl", has_text="Next attempt")).to_be_visible()
    page.goto("/customers/by-id/refused")
    page.fill("#f-payment_method", "pm_card_visa")
    page.click("text=Save")
    expect(page.locator(".note.good")).to_contain_text("Customer saved")
    page.goto(f"/invoices/{invoice.id}")
    page.click("text=Retry payment")
    expect(page.locator(".note.good")).to_contain_text("Retrying within a minute")
    assert world.close().ok
    assert world.invoices("refused")[0].state == "paid"


def test_a_card_number_is_not_saved(world: BillingWorld, page: Page) -> None:
    page.goto("/customers/new")
    page.fill("#f-name", "Card")
    page.fill("#f-payment_method", "4242424242424242")
    before = world.catalog.next_offset
    page.click("text=Create customer")
    expect(page.locator("#e-payment_method")).to_contain_text("This is a card's number")
    assert world.catalog.next_offset == before
