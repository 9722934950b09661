"""The button "Run billing now" in a real browser: what would be billed, and then it is."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Scope, new_secret, secret_digest
from tests.flow.billing import APRIL, BillingWorld
from tests.flow.board import billing_board
from tests.flow.browser import browser, sign_in, violations, watched
from tests.flow.looks import THEMES

pytestmark = pytest.mark.timeout(300)
KEY = new_secret()
PER_UNIT = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}


@pytest.fixture(scope="module")
def address(world: BillingWorld) -> Iterator[str]:
    key = ApiKey(
        id="key_run", organization_id=DEFAULT_ORGANIZATION, scopes=(Scope.ADMIN,), sha256=secret_digest(KEY),
        hint="0a3f", created_at=0, name="Anna",
    )  # fmt: skip
    world.catalog.write(key, 0)
    with billing_board(world.settings, world.catalog, world.context.log) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(address: str, chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(base_url=address)
    page = watched(context.new_page())
    sign_in(page, address, KEY)
    yield page
    context.close()


def test_what_has_ended_is_listed_and_then_billed(world: BillingWorld, page: Page) -> None:
    world.subscribe("due", PER_UNIT, ends_at=APRIL)
    world.use("due", "7")
    page.goto("/invoices")
    page.click("text=Run billing now")
    rows = page.locator("tbody tr", has=page.get_by_role("rowheader", name="due"))
    expect(rows.filter(has_text="Mar 2026")).to_contain_text("€7.00")
    expect(rows.filter(has_text="Apr 2026")).to_contain_text("€0.00")  # the final invoice
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []
    assert world.invoices("due") == [], "a list changes nothing"
    page.click("button:has-text('Run billing now')")
    expect(page.locator(".note.good")).to_have_text(re.compile(r"\d paid"))
    assert violations(page) == []
    assert [each.state for each in world.invoices("due")] == ["paid", "paid"]
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


def test_an_approved_invoice_says_who_and_when(world: BillingWorld, page: Page) -> None:
    """Approve said "The next close goes on with it." and stayed: nobody saw whether it had been done."""
    organization = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert organization is not None
    version = world.catalog.view.version(type(organization), organization.id, organization.id)
    world.catalog.write(organization.model_copy(update={"invoice_approval": "manual"}), version)
    try:
        world.subscribe("approved", PER_UNIT, ends_at=APRIL)
        world.use("approved", "5")
        assert world.close().ok
        (invoice,) = world.invoices("approved")
        world.until(lambda: world.query(f"SELECT state FROM invoices WHERE id = '{invoice.id}'") == [("computed",)])
        address = f"/invoices/{invoice.id}"
        page.goto(address)
        page.click("button:has-text('Approve')")
        words = "Approved by Anna (key …0a3f). It is charged within a minute."
        expect(page.locator(".note[role='status']")).to_have_text(words)
        expect(page.locator("button:has-text('Approve')")).to_have_count(0)
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            assert violations(page) == []
        page.goto(address)
        expect(page.locator(".note[role='status']")).to_have_text(words)
        expect(page.locator("button:has-text('Approve')")).to_have_count(0)
        assert world.close().ok
        assert world.invoices("approved")[0].state == "paid"
    finally:
        world.catalog.write(organization, version + 1)


def test_a_card_number_is_not_saved(world: BillingWorld, page: Page) -> None:
    page.goto("/customers/new")
    page.fill("#f-name", "Card")
    page.fill("#f-payment_method", "4242424242424242")
    before = world.catalog.next_offset
    page.click("text=Create customer")
    expect(page.locator("#e-payment_method")).to_have_text("That is a card number. Enter a payment method ID (pm_…).")
    assert world.catalog.next_offset == before
