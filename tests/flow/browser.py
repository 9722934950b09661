"""Debian's Chromium, driven by Playwright: pages as a visitor sees them, and what axe-core says of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def browser() -> Generator[Browser]:
    """Skips the test where there is no Chromium, but in CI, which installs it."""
    if CHROMIUM is None:
        assert "CI" not in os.environ, "CI installs chromium"
        pytest.skip("chromium is not installed")
    expect.set_options(timeout=20_000)  # a busy machine is no error
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield opened
        opened.close()


def watched(page: Page) -> Page:
    """The test fails when a script of the page does, or when the browser holds something back."""
    page.on("pageerror", lambda error: pytest.fail(f"a script failed: {error}"))
    page.on("console", lambda message: _refused(message.text))
    return page


def _refused(text: str) -> None:
    if "Content Security Policy" in text:
        pytest.fail(text)


def sign_in(page: Page, address: str, key: str) -> None:
    page.goto(f"{address}/sign-in")
    page.fill("#key", key)
    page.click("button.main")


def violations(page: Page) -> list[str]:
    """What axe-core finds on the page as it is: WCAG's A and AA, and its best practices."""
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(Axe().axe_script)
    options = "{resultTypes: ['violations']}"
    found: list[dict[str, Any]] = page.evaluate(f"axe.run({options}).then(results => results.violations)")
    return [
        f"{each['id']}: {each['help']}: {', '.join(str(node['target']) for node in each['nodes'][:5])}"
        for each in found
    ]
