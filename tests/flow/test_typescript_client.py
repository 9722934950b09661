"""The TypeScript client's example, compiled from docs/openapi.json, against gateway and API as users run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from tests.flow.pipe import ADMIN, Pipe

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "clients/typescript/dist/examples/first_event.js"


def test_the_example_posts_events_reads_pages_and_knows_a_refusal(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None or not EXAMPLE.exists():
        reason = "the TypeScript client is not built: `make typescript`, which needs Node.js and npm"
        if os.environ.get("USAGE_TEST_TYPESCRIPT") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with Pipe(kafka, clickhouse, tmp_path) as pipe:
        shown = subprocess.run([node, EXAMPLE, str(pipe.http.base_url), ADMIN], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        answer = json.loads(shown.stdout)
        assert answer["accepted"] == 2
        assert answer["refused"] == "404 not_found"
        assert "ts_call" in answer["meters"]
        assert len(answer["meters"]) == len(pipe.http.get("/api/v1/meters").json()["data"]) >= 2, "pages of one meter"
