"""docs/reference.md names every setting, topic, table, metric and command, as they are."""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_reference_is_what_the_code_says() -> None:
    """In a process of its own: other tests may have registered metrics or set settings."""
    made = subprocess.run(
        [sys.executable, "-m", "usage_billing.reference"], capture_output=True, text=True, check=True, env={}
    )
    assert PAGE.read_text() == made.stdout, "run: python -m usage_billing.reference > docs/reference.md"
