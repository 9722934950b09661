"""Commands of the README and of the pages of docs/, typed as they are printed, on one local stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doc_commands import ROOT, Shell, blocks, script

README = ROOT / "README.md"
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if script(page)]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("docs") / "local")
    yield shell
    shell.type("make down")


@pytest.fixture(scope="module")
def quick_start(shell: Shell) -> str:
    """What the README's commands print, from `make up` to `make down`."""
    return shell.type(script(README))


@pytest.fixture(scope="module")
def helpers(shell: Shell, quick_start: str) -> str:
    """The README's definitions of KEY, api and id, with the stack up again."""
    shell.type("make up")
    return next(block.text for block in blocks(README) if block.text.startswith("KEY="))


def test_the_readme_leads_a_newcomer_to_a_paid_invoice(quick_start: str):
    assert "admin key  is in " in quick_start
    assert '"unmatched":1' in quick_start
    assert '"event_name":"api_request"' in quick_start
    assert '"total": "10.00"' in quick_start
    assert '"state": "paid"' in quick_start
    assert "1 of 1 invoices verified" in quick_start
    assert "every accepted event in one class: balances" in quick_start


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work(shell: Shell, helpers: str, page: Path):
    printed = shell.type(helpers + script(page))
    assert '"status":4' not in printed, printed  # curl prints a refused request and succeeds
