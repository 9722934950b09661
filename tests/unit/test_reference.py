"""docs/reference.md names every setting, topic, table, metric and command, as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("module", "page"), [("reference", "reference.md"), ("column_reference", "columns.md")])
def test_the_reference_is_what_the_code_says(module: str, page: str) -> None:
    """In a process of its own: other tests may have registered metrics or set settings."""
    made = subprocess.run(
        [sys.executable, "-m", f"usage_billing.{module}"], capture_output=True, text=True, check=True, env={}
    )
    assert (DOCS / page).read_text() == made.stdout, f"run: python -m usage_billing.{module} > docs/{page}"
