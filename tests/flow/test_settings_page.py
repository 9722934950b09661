"""Stripe's settings in a real browser: what Stripe does not know is said beside its field, and nothing is saved."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from schemas.organization import DEFAULT_ORGANIZATION, ApiKey, Organization, Scope, new_secret, secret_digest
from tests.flow.billing import BillingWorld
from tests.flow.board import billing_board
from tests.flow.browser import browser, sign_in, violations, watched
from tests.flow.looks import THEMES

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("faults_end")]
OPERATOR, MERCHANT = new_secret(), new_secret()


@pytest.fixture(scope="module")
def address(world: BillingWorld) -> Iterator[str]:
    for name, secret in (("operator", OPERATOR), ("merchant", MERCHANT)):
        key = ApiKey(
            id=f"key_{name}", organization_id=DEFAULT_ORGANIZATION, scopes=(Scope.ADMIN,),
            sha256=secret_digest(secret), hint="0000", created_at=0,
        )  # fmt: skip
        world.catalog.write(key, 0)
    settings = world.settings.model_copy(update={"admin_key": SecretStr(OPERATOR)})
    with billing_board(settings, world.catalog, world.context.log) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(address: str, chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(base_url=address)
    page = watched(context.new_page())
    sign_in(page, address, OPERATOR)
    page.goto("/settings")
    yield page
    context.close()


def organization(world: BillingWorld) -> Organization:
    found = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert found is not None
    return found


def assert_refused(world: BillingWorld, page: Page, field: str, value: str, message: str) -> None:
    """Saving names what is wrong beside its field, keeps what was typed, and writes nothing."""
    before = world.catalog.next_offset
    page.fill(f"#f-{field}", value)
    page.click("text=Save")
    expect(page.locator(f"#e-{field}")).to_contain_text(message)
    expect(page.locator(f"#f-{field}")).to_have_value(value)
    expect(page.locator(".note.good")).to_have_count(0)
    expect(page.locator(".note.bad")).to_have_count(0)
    assert world.catalog.next_offset == before
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []


def test_a_tax_rate_that_stripe_does_not_know_is_said_beside_its_field(world: BillingWorld, page: Page) -> None:
    """A typo was saved, and left every invoice `computed`."""
    known = world.at_stripe("POST", "/v1/tax_rates", display_name="VAT", percentage="19", inclusive="false")["id"]
    page.select_option("[name=tax_mode]", "rates")
    assert_refused(world, page, "tax_rates", f"{known} txr_typo", "txr_typo")
    assert_refused(world, page, "tax_rates", f"{known} 19%", "txr_")
    page.fill("#f-tax_rates", known)
    page.click("text=Save")
    expect(page.locator(".note.good")).to_have_text("Settings saved.")
    assert (organization(world).tax_mode, organization(world).tax_rates) == ("rates", (known,))


def test_taxing_by_rates_without_a_rate_is_said_beside_the_field(world: BillingWorld, page: Page) -> None:
    page.select_option("[name=tax_mode]", "rates")
    assert_refused(world, page, "tax_rates", "", "At least one tax rate is needed")


def test_an_account_that_the_key_can_not_act_for_is_not_saved(world: BillingWorld, page: Page) -> None:
    world.stripe.fault(
        "error", "GET", "/v1/account", account="acct_typo", times=0, status=403,
        message="The provided key does not have access to account 'acct_typo'",
    )  # fmt: skip
    assert_refused(world, page, "stripe_account_id", "acct_typo", "does not have access to account")
    assert_refused(world, page, "stripe_account_id", "acct-1", "acct_")
    page.select_option("[name=tax_mode]", "none")  # rates are of an account
    page.fill("#f-tax_rates", "")
    page.fill("#f-stripe_account_id", "acct_1Right")
    page.click("text=Save")
    expect(page.locator(".note.good")).to_have_text("Settings saved.")
    assert organization(world).stripe_account_id == "acct_1Right"


def test_nothing_is_saved_while_stripe_does_not_answer(world: BillingWorld, page: Page) -> None:
    before = world.catalog.next_offset
    world.stripe.fault("500_before", "GET", "/v1/tax_rates/*", times=0, kept=False)
    page.fill("#f-tax_rates", "txr_1Another")
    page.click("text=Save")
    expect(page.locator(".note.bad[role=alert]")).to_contain_text("Stripe can't be asked now, nothing is changed")
    expect(page.locator("#f-tax_rates")).to_have_value("txr_1Another")
    assert world.catalog.next_offset == before


def test_a_merchant_sees_the_account_and_can_not_change_it(
    world: BillingWorld, address: str, chromium: Browser
) -> None:
    context = chromium.new_context(base_url=address)
    page = watched(context.new_page())
    sign_in(page, address, MERCHANT)
    page.goto("/settings")
    expect(page.locator("#f-stripe_account_id")).to_have_count(0)
    shown = organization(world).stripe_account_id or "the operator’s own"
    expect(page.locator("main")).to_contain_text(f"Stripe account: {shown}. Only the operator changes it.")
    page.fill("#f-name", "Renamed")
    page.click("text=Save")
    expect(page.locator(".note.good")).to_have_text("Settings saved.")
    assert organization(world).name == "Renamed"
    context.close()
