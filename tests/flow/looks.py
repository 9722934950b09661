"""Every page of the dashboard, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import httpx
from playwright.sync_api import Page, expect

PAGES = {
    "overview": "/", "usage": "/usage", "events": "/usage/events", "duplicates": "/usage/duplicates",
    "event-void": "/usage/events/void?event_id=e1", "invoices": "/invoices", "billing-run": "/invoices/run", "orders": "/orders", "alerts": "/alerts",
    "customers": "/customers", "customer-new": "/customers/new",
    "subscriptions": "/subscriptions", "subscription-new": "/subscriptions/new",
    "products": "/products", "product-editor": "/products/new", "meters": "/meters", "meter-new": "/meters/new",
    "export": "/export", "api-keys": "/api-keys", "settings": "/settings", "docs": "/docs",
}  # fmt: skip
SIGN_IN = {"sign-in": "/sign-in"}
"""To be looked at without a session."""
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def pages_of_objects(http: httpx.Client) -> dict[str, str]:
    """Name → path of a page of each kind that shows one thing: the first of it that the API lists."""

    def first(path: str) -> str:
        return http.get(f"/api/v1/{path}").json()["data"][0]["id"]

    return {
        "customer": f"/customers/by-id/{first('customers')}",
        "subscription": f"/subscriptions/{first('subscriptions')}",
        "product": f"/products/{first('products')}",
        "meter": f"/meters/{first('meters')}",
        "invoice": f"/invoices/{first('invoices')}",
        "invoice-credit": f"/invoices/{first('invoices')}/credit",
    }


def looks(page: Page, address: str, paths: Mapping[str, str]) -> Iterator[str]:
    """`<name>-<size>-<theme>`, when the page looks like that: everything is on it, and it is no other page."""
    for name, path in paths.items():
        page.goto(address + path)
        assert page.url == address + path, f"{path} leads to {page.url}"
        expect(page.locator("[aria-busy]")).to_have_count(0, timeout=20_000)
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            for theme in THEMES:
                page.emulate_media(color_scheme=theme)
                yield f"{name}-{size}-{theme}"
