"""docs/reference.md names every setting, topic, table, metric and command, as they are."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from ledger.records import LedgerRecord
from schemas.settings import Settings
from schemas.topics import BILLING_LEDGER, topic_specs
from usage_billing.topic_reference import TOPICS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("module", "page"), [
    ("reference", "reference.md"), ("column_reference", "columns.md"), ("topic_reference", "topics.md"),
])  # fmt: skip
def test_the_reference_is_what_the_code_says(module: str, page: str) -> None:
    """In a process of its own: other tests may have registered metrics or set settings."""
    made = subprocess.run(
        [sys.executable, "-m", f"usage_billing.{module}"], capture_output=True, text=True, check=True, env={}
    )
    assert (DOCS / page).read_text() == made.stdout, f"run: python -m usage_billing.{module} > docs/{page}"


def test_every_topic_has_its_records_documented() -> None:
    documented = [records.topic for records in TOPICS]
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    assert sorted(documented) == sorted(spec.name for spec in topic_specs(Settings.model_construct(**defaults)))
    assert set(get_args(LedgerRecord)) == {
        kind for each in TOPICS if each.topic == BILLING_LEDGER for kind in each.types
    }
