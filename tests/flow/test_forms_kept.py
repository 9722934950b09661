"""A form in a real browser: kept when the session is over, sent once however often it is clicked."""

from collections.abc import Iterator
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.organization import ApiKey
from tests.flow.board import KEY, OTHER_KEY, Running, running_board, signed_in
from tests.flow.browser import browser, sign_in, violations, watched
from tests.flow.looks import THEMES

OUT = "You were signed out. Sign in to save your changes."


@pytest.fixture(scope="module")
def running(kafka: KafkaBroker, clickhouse: ClickHouseLocal) -> Iterator[Running]:
    with running_board(kafka, clickhouse, "forms_kept") as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(running: Running, chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context()
    page = watched(context.new_page())
    sign_in(page, running.address, KEY)
    yield page
    context.close()


def token_of(client: httpx.Client) -> str:
    return client.get("/meters/new").text.split('name="csrf_token" value="')[1].split('"')[0]


# -- signed out ----------------------------------------------------------------------------------------------------------


def test_a_form_is_kept_when_the_session_is_over(running: Running, page: Page) -> None:
    name = 'Kept "GmbH" & <b>Söhne</b>'
    page.goto(f"{running.address}/customers/new")
    page.fill("#f-id", "kept")
    page.fill("#f-name", name)
    page.context.clear_cookies(name="usage_session")
    page.click("text=Create customer")
    expect(page.locator("main")).to_contain_text(OUT)
    assert running.store.view.get(Customer, "default", "kept") is None
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        assert violations(page) == []
    page.fill("#key", "ubk_mistyped")
    page.click("button.main")
    expect(page.locator("#error")).to_contain_text("We don't recognize that key.")
    page.fill("#key", KEY)
    page.click("button.main")
    expect(page.locator("h1")).to_have_text(name)
    made = running.store.view.get(Customer, "default", "kept")
    assert made is not None
    assert made.name == name


def test_the_editor_asks_to_sign_in_and_keeps_the_product(running: Running, page: Page) -> None:
    page.goto(f"{running.address}/products/new")
    page.fill("#f-name", "Kept product")
    page.context.clear_cookies(name="usage_session")
    page.click("text=Add price")
    expect(page.locator("main")).to_contain_text(OUT)
    page.fill("#key", KEY)
    page.click("button.main")
    expect(page.locator("#f-name")).to_have_value("Kept product")
    expect(page.locator("[id='f-prices.1.model']")).to_be_visible()


def test_typing_in_the_editor_says_that_the_session_is_over(running: Running, page: Page) -> None:
    page.goto(f"{running.address}/products/new")
    page.context.clear_cookies(name="usage_session")
    page.fill("#f-example", "5000")
    expect(page.locator("[data-example='0']")).to_have_text(OUT)


def test_only_a_form_of_this_site_and_organization_is_kept(running: Running) -> None:
    """Who signs in must not send what another site, or another organization's page, wrote."""
    fields = {"name": "Forged", "event_name": "e", "unit": "u", "aggregation": "count"}
    with signed_in(running) as client:
        own = {**fields, "csrf_token": token_of(client)}
    same_site = {"Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=running.address, headers={"Accept": "text/html"}) as stranger:
        for sent, headers in (
            (own, {"Sec-Fetch-Site": "cross-site"}),
            (own, {}),
            (fields, same_site),
            ({**fields, "csrf_token": "forged"}, same_site),
        ):
            answer = stranger.post("/meters/new", data=sent, headers=headers)
            assert answer.status_code == 401
            assert "Forged" not in answer.text
        answer = stranger.post("/meters/new", data=own, headers=same_site)
        assert answer.status_code == 401
        assert "Forged" in answer.text
        kept = {"key": OTHER_KEY, "next": "/meters/new", "kept": urlencode(own)}
        answer = stranger.post("/sign-in", data=kept, headers=same_site)
        assert answer.status_code == 200
        assert "another organization" in answer.text
        assert "<form" not in answer.text
        answer = stranger.post("/sign-in", data={**kept, "kept": urlencode(fields)}, headers=same_site)
        assert "Forged" not in answer.text
    assert all(meter.name != "Forged" for meter in running.store.view.all(Meter))


def test_a_link_from_another_site_finds_the_session(running: Running, page: Page) -> None:
    """SameSite=Strict led everyone who followed a link in a mail to the sign-in page."""
    page.goto(running.address)
    page.route(
        "http://mail.example/**",
        lambda route: route.fulfill(
            content_type="text/html", body=f"<a href='{running.address}/customers/by-id/UA'>invoice</a>"
        ),
    )
    page.goto("http://mail.example/")
    page.click("a")
    expect(page.locator("h1")).to_contain_text("United")


# -- sent twice ----------------------------------------------------------------------------------------------------------

CREATED = {
    "meter": ("/meters/new", {"name": "Twice", "event_name": "twice", "unit": "u", "aggregation": "count"}),
    "customer": ("/customers/new", {"name": "Twice"}),
    "customer of an id": ("/customers/new", {"id": "twice", "name": "Twice"}),
    "product": (
        "/products/new",
        {
            "name": "Twice", "currency": "eur", "prices.0.model": "per_unit", "prices.0.meter_id": "mtr_miles",
            "prices.0.unit_amount": "1", "action": "save",
        },
    ),
    "alert rule": ("/alerts/rules", {"meter_id": "mtr_miles", "kind": "quantity", "threshold": "10"}),
    "webhook": ("/alerts/endpoints", {"url": "https://example.com/hooks"}),
    "API key": ("/api-keys", {"name": "Twice", "scope-read": "on"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", CREATED)
def test_a_form_that_is_sent_twice_makes_one_object(running: Running, kind: str) -> None:
    path, fields = CREATED[kind]
    source = {"/alerts/rules": "/alerts", "/alerts/endpoints": "/alerts"}.get(path, path)
    with signed_in(running) as client:
        shown = client.get(source).text
        field = shown.split(f'action="{path}"')[-1]
        request = field.split('name="request" value="')[1].split('"')[0]
        sent = {**fields, "csrf_token": token_of(client), "request": request}
        before = running.store.next_offset
        first, second = (client.post(path, data=sent) for _ in range(2))
        assert running.store.next_offset == before + 1
        assert first.status_code == second.status_code
        assert first.headers.get("location") == second.headers.get("location")
        if kind in ("webhook", "API key"):  # the secret is shown by the answer that the browser keeps
            (secret,) = {answer.text.split("<pre")[1].split("</pre>")[0] for answer in (first, second)}
            assert "ubk_" in secret or "whsec_" in secret
        assert client.post(path, data={**sent, "request": request + "2", "id": ""}).status_code < 400
        assert running.store.next_offset == before + 2


def test_a_subscription_form_that_is_sent_twice_makes_one(running: Running) -> None:
    with signed_in(running) as client:
        product = {**CREATED["product"][1], "name": "Of the subscription", "csrf_token": token_of(client)}
        product_id = client.post("/products/new", data=product).headers["location"].split("/")[2].partition("?")[0]
        fields = {
            "customer_id": "UA", "product_id": product_id, "billing_interval": "month",
            "collection_method": "charge_automatically", "csrf_token": token_of(client), "request": "r" * 32,
        }  # fmt: skip
        first, second = (client.post("/subscriptions/new", data=fields) for _ in range(2))
    assert first.headers["location"] == second.headers["location"]


def test_an_id_that_another_customer_has_is_refused(running: Running) -> None:
    with signed_in(running) as client:
        sent = {"id": "UA", "name": "Another", "csrf_token": token_of(client), "request": "another"}
        answer = client.post("/customers/new", data=sent)
    assert answer.status_code == 409
    assert "A customer with this ID already exists." in answer.text


def test_two_clicks_while_the_answer_is_awaited_make_one_api_key(running: Running, page: Page) -> None:
    page.goto(f"{running.address}/api-keys")
    page.fill("#f-name", "Clicked twice")
    page.check("[name='scope-read']")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/api-keys", hold)
    is_off, is_busy = page.evaluate(
        """() => new Promise((resolve) => {
          const button = [...document.querySelectorAll("button")].find((each) => each.textContent === "Create key");
          button.click();
          button.click();
          setTimeout(() => {
            button.form.requestSubmit();  // Enter in a field
            resolve([button.disabled, button.ariaBusy]);
          }, 50);
        })"""
    )
    assert (is_off, is_busy) == (True, "true")
    assert len(held) == 1
    held[0].continue_()
    expect(page.locator(".note.good pre")).to_contain_text("ubk_")
    made = [key for key in running.store.view.all(ApiKey, "default") if key.name == "Clicked twice"]
    assert len(made) == 1
