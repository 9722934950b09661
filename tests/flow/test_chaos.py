"""`make chaos`, short: a whole stack under load and faults by seed, then an independent count of everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run

pytestmark = pytest.mark.timeout(400)

SECONDS = 25.0  # of faults; with start, settling and counting some 80


@pytest.mark.parametrize("seed", [20260301])
def test_nothing_is_lost_or_doubled_whatever_dies(seed: int, tmp_path: Path) -> None:
    report = run(seed, SECONDS, tmp_path)
    print("\n".join(report.lines()))
    assert sum(report.faults.values()) >= 3
    assert report.accepted > 1000
    assert report.ok, "\n".join(report.lines())
