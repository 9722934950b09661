"""Which servers a bill may rest on."""

from __future__ import annotations

import pytest

from warehouse.versions import refusal

TOO_OLD, WRONG = "is too old: 24.8 or later", "negative decimals wrongly"


@pytest.mark.parametrize(("version", "reason"), [
    ("24.8",      None),
    ("24.8.1.1",  None),
    ("25.1.2",    None),
    ("26.9.2.1",  None),
    ("24.7.9",    TOO_OLD),
    ("23.12.1",   TOO_OLD),
    ("9.9",       TOO_OLD),
    ("0",         TOO_OLD),
    ("",          TOO_OLD),
    ("26.1.0",    WRONG),
    ("26.1.7.90", WRONG),
    ("26.1.8.1",  None),
    ("26.2.6.1",  WRONG),
    ("26.2.7",    None),
    ("26.3",      WRONG),
    ("26.3.3.20", WRONG),
    ("26.3.4.1",  None),
])  # fmt: skip
def test_a_version_is_refused_with_its_reason(version: str, reason: str | None) -> None:
    found = refusal(version)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)
