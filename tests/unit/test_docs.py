"""README and docs name what exists, and everything that has to be in them is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from catalog.overlaps import OverlapCode
from dashboard.control.common import PAGE_MAX
from dashboard.control.webhook_endpoints import ENDPOINTS_MAX
from dashboard.pages.session import FORM_BYTES_MAX
from dashboard.routing import BODY_BYTES_MAX as CONTROL_BODY_BYTES_MAX
from dashboard.writes import IDEMPOTENCY_KEY_LENGTH_MAX
from ledger.records import HoldCode, State, WaitCode
from runtime.body import SECONDS_MAX, SILENT_SECONDS_MAX
from schemas.decimals import DECIMAL_PLACES_MAX
from schemas.event import (
    EVENTS_PER_BATCH_MAX,
    PROPERTIES_MAX,
    PROPERTY_KEY_LENGTH_MAX,
    PROPERTY_VALUE_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    TIMESTAMP_AHEAD_US_MAX,
    VALUE_DIGITS_MAX,
    VALUE_SCALE,
    VALUE_TEXT_LENGTH_MAX,
)
from schemas.product import PRICES_MAX, TIERS_MAX
from schemas.settings import Settings
from tests.doc_commands import blocks
from usage_billing.cli import app
from usage_billing.describe import describe_settings
from warehouse.audit_windows import EventClass

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CODE = (
    "billing_job",
    "catalog",
    "dashboard",
    "ingest_gateway",
    "ledger",
    "runtime",
    "schemas",
    "usage_billing",
    "warehouse",
)
_ERRORS = {"Problem": 1, "Refusal": 0, "PydanticCustomError": 0, "InvalidField": 0, "InvalidTimestamp": 0}
_CODE = re.compile(r"[a-z]+(_[a-z]+)+")


def prose(page: Path) -> str:
    return page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_links_to_exist(page: Path):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", prose(page))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_names_exist(page: Path):
    named = re.findall(r"usage-billing((?: [a-z][a-z-]*)+)", prose(page))
    assert [words for words in named if not _is_command(words.split())] == []


def _is_command(words: list[str]) -> bool:
    """Whether the words begin with a command; words after a whole command are arguments."""
    level = app
    for word in words:
        if word not in level:
            return level.default_command is not None and level is not app
        level = level[word]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_a_page_names_exist(page: Path):
    known = {name for name, *_ in describe_settings(Settings.model_construct())}
    named = set(re.findall(r"\bUSAGE_[A-Z_]+[A-Z]\b(?!_?…)", prose(page)))
    of_tests = ("USAGE_TEST_", "USAGE_API_KEY", "USAGE_KAFKA_S")  # librdkafka's own, such as USAGE_KAFKA_SASL_USERNAME
    assert sorted(name for name in named - known if not name.startswith(of_tests)) == []


@cache
def metrics() -> frozenset[str]:
    """Names as the reference has them, which another test compares with the code."""
    return frozenset(re.findall(r"^\| `(usage_\w+)` \|", (ROOT / "docs" / "reference.md").read_text(), re.M))


def test_metrics_that_the_runbook_names_exist_and_all_that_may_need_somebody_are_in_it():
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    of_ledger = {"usage_invoices", "usage_held_invoices"}  # counted from the ledger when asked
    named = {name.removesuffix("_total") for name in re.findall(r"\busage_[a-z_]+", runbook)}
    assert named - metrics() - of_ledger == set()

    needing = re.compile(r"_(lag|lost|failures|dead_letters|problem_invoices|waiting_invoices)$")
    assert {name for name in metrics() if needing.search(name)} - named == set()


def error_codes() -> Iterator[str]:
    """Codes that the code gives to errors of requests and fields, where they are written as text."""
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                position = _ERRORS.get(getattr(node.func, "id", ""))
                if position is None or len(node.args) <= position:
                    continue
                code = node.args[position]
                if isinstance(code, ast.Constant) and isinstance(code.value, str) and _CODE.fullmatch(code.value):
                    yield code.value


def test_every_error_code_is_documented():
    documented = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "errors.md").read_text()))
    found = {*error_codes(), *get_args(OverlapCode)}
    assert len(found) > 50
    assert found - documented == set()


def test_the_runbook_says_what_to_do_about_every_reason_of_an_invoice():
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert [code for code in (*get_args(WaitCode), *get_args(HoldCode)) if f"`{code}`" not in runbook] == []


def test_every_state_of_an_invoice_and_class_of_an_event_is_explained():
    concepts = (ROOT / "docs" / "concepts.md").read_text()
    names = (*get_args(State), *(found.label for found in EventClass))
    assert [name for name in names if f"`{name}`" not in concepts] == []


def test_the_limits_are_the_ones_of_the_code():
    page = (ROOT / "docs" / "limits.md").read_text()
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    stated = (
        f"| {EVENTS_PER_BATCH_MAX:,} |".replace("| ", "| 1 to "),
        f"{defaults['body_bytes_max'] >> 20} MiB (`USAGE_BODY_BYTES_MAX`)",
        f"64 KiB, {CONTROL_BODY_BYTES_MAX >> 20} MiB, {FORM_BYTES_MAX >> 10} KiB",
        f"{SILENT_SECONDS_MAX:g} s for the first byte, {SECONDS_MAX:g} s for all",
        f"1 to {TEXT_LENGTH_MAX} characters | 422",
        f"1 to {IDEMPOTENCY_KEY_LENGTH_MAX} characters | 400",
        f"below 10^{VALUE_DIGITS_MAX}, {VALUE_SCALE} decimals, {VALUE_TEXT_LENGTH_MAX} characters",
        f"{TIMESTAMP_AHEAD_US_MAX // 60_000_000} minutes ahead",
        f"{PROPERTIES_MAX}; names of {PROPERTY_KEY_LENGTH_MAX}, values of {PROPERTY_VALUE_LENGTH_MAX} characters",
        f"| {PRICES_MAX}, {TIERS_MAX} |",
        f"| {DECIMAL_PLACES_MAX} |",
        f"| {ENDPOINTS_MAX} |",
        f"| {PAGE_MAX} |",
        f"{defaults['key_streams_max']}, {defaults['organization_streams_max']} (settings)",
        f"{defaults['queue_events_max']:,} and {defaults['queue_bytes_max'] >> 20} MiB",
    )
    assert [text for text in stated if text not in page] == []


def test_tests_that_a_page_names_exist():
    named = [path for page in PAGES for path in re.findall(r"`(tests/[\w/]+\.py)`", prose(page))]
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []


def test_blocks_of_commands_that_no_test_runs_are_few():
    unrun = [block for page in PAGES for block in blocks(page) if block.language == "sh" and not block.is_run]
    assert len(unrun) <= 4


def test_the_example_that_verifies_a_webhook_works():
    (example,) = (b.text for b in blocks(ROOT / "docs/how-to/webhooks.md") if b.language == "python")
    before = "from datetime import UTC, datetime\nnow = datetime.now(UTC)\n"
    subprocess.run([sys.executable, "-c", before + example], check=True)
