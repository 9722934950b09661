"""A new alert rule in a real browser: whom it finds above already is asked about before it is saved."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.alert_rule import AlertRule
from schemas.customer import Customer
from tests.flow.board import KEY, Running, own, running_board
from tests.flow.browser import browser, sign_in, violations, watched
from tests.flow.looks import THEMES
from tests.waiting import until

OUT = "You were signed out. Sign in to save your changes."
USED = {"UA": 90, "LH": 80, "OS": 79}
"""Customer → flights in the cycle that runs."""


@pytest.fixture(scope="module")
def running(kafka: KafkaBroker, clickhouse: ClickHouseLocal) -> Iterator[Running]:
    with running_board(kafka, clickhouse, "alert_question") as running:
        for offset, (customer, flights) in enumerate(USED.items()):
            if customer != "UA":
                running.store.write(Customer(**own("default", customer), name=customer), 0)
            running.total(customer, flights, "1", offset)
        live = running.board.services.live.view
        until(lambda: set(live.customers("default")) == set(USED), 30)
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def opened(running: Running, context: BrowserContext) -> Page:
    page = watched(context.new_page())
    sign_in(page, running.address, KEY)
    return page


@pytest.fixture
def page(running: Running, chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context()
    yield opened(running, context)
    context.close()


def fill(running: Running, page: Page, threshold: str, customer: str = "") -> None:
    page.goto(f"{running.address}/alerts")
    page.select_option("#f-meter_id", "mtr_flights")
    page.fill("#f-threshold", threshold)
    page.fill("#f-customer_id", customer)
    page.click("text=Create rule")


def rules(running: Running, threshold: str) -> list[AlertRule]:
    return [each for each in running.store.view.all(AlertRule, "default") if str(each.threshold) == threshold]


def test_customers_above_are_not_alerted_unasked(running: Running, page: Page) -> None:
    """One new rule alerted everybody who was above at once: 437 webhooks in 6 s."""
    fill(running, page, "80")
    expect(page.locator("legend")).to_have_text("2 customers are already above.")
    assert rules(running, "80") == [], "nothing is saved before the answer"
    expect(page.get_by_label("Alert them too")).not_to_be_checked()
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []
    page.click("text=Create rule")
    expect(page.locator("#rules")).to_contain_text("80 u")
    (made,) = rules(running, "80")
    assert not made.alert_existing


def test_they_are_alerted_too_where_that_is_checked(running: Running, chromium: Browser) -> None:
    """Without JavaScript too."""
    context = chromium.new_context(java_script_enabled=False)
    page = opened(running, context)
    fill(running, page, "85")
    expect(page.locator("legend")).to_have_text("1 customer is already above.")
    page.get_by_label("Alert them too").check()
    page.click("text=Create rule")
    expect(page.locator("#rules")).to_contain_text("85 u")
    (made,) = rules(running, "85")
    assert made.alert_existing
    context.close()


@pytest.mark.parametrize(("threshold", "customer"), [("91", ""), ("80.5", "OS")])
def test_nothing_is_asked_where_nobody_is_above(running: Running, page: Page, threshold: str, customer: str) -> None:
    fill(running, page, threshold, customer)
    expect(page.locator("#rules")).to_contain_text(f"{threshold} u")
    assert len(rules(running, threshold)) == 1


def test_what_is_wrong_is_said_before_anything_is_asked(running: Running, page: Page) -> None:
    fill(running, page, "70", "nobody")
    expect(page.locator("#e-customer_id")).to_be_visible()
    expect(page.locator("#f-threshold")).to_have_value("70")


def test_the_answer_is_kept_when_the_session_is_over(running: Running, page: Page) -> None:
    fill(running, page, "75")
    page.get_by_label("Alert them too").check()
    page.context.clear_cookies(name="usage_session")
    page.click("text=Create rule")
    expect(page.locator("main")).to_contain_text(OUT)
    page.fill("#key", KEY)
    page.click("button.main")
    expect(page.locator("#rules")).to_contain_text("75 u")
    (made,) = rules(running, "75")
    assert made.alert_existing


def test_an_answer_that_is_sent_twice_makes_one_rule(running: Running, page: Page) -> None:
    fill(running, page, "60")
    expect(page.locator("legend")).to_contain_text("3 customers")
    sent = page.evaluate(
        """async () => {
          const form = document.querySelector("form[action='/alerts/rules']");
          const send = (body) => fetch(form.action, { method: "POST", body: new URLSearchParams(body) });
          const first = new FormData(form), before = new FormData(form);
          before.delete("answered");
          return [await send(first), await send(first), await send(before)].map((answer) => answer.url);
        }"""
    )
    assert {url.removeprefix(running.address) for url in sent} == {"/alerts"}
    assert len(rules(running, "60")) == 1
