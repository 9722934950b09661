"""`events import` against the real gateway: however often it is repaired and repeated, every row counts once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaBroker
from tests.flow.test_gateway import ADMIN, Stack
from usage_billing.client import NoAnswer, UsageClient

HEAD = "customer_id,event_name,timestamp,value\n"
ROW = "cus_1,api_request,2026-03-01T00:00:00Z,1\n"


@pytest.fixture
def stack(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(kafka, topic_prefix, tmp_path)
    yield stack
    stack.close()


def run(stack: Stack, *arguments: str | Path, text: bytes | None = None) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [
            Path(sys.executable).with_name("usage-billing"),
            "events",
            "import",
            *arguments,
            "--address",
            stack.gateway.address,
        ],
        env={**os.environ, "USAGE_API_KEY": ADMIN},
        input=text,
        capture_output=True,
        timeout=90,
        check=False,
    )
    return subprocess.CompletedProcess(answer.args, answer.returncode, answer.stdout.decode(), answer.stderr.decode())


def counted(stack: Stack) -> int:
    """Events of the log that count: one for each identity."""
    return len({identity for batch in stack.log().values() for identity in batch.identity})


def test_a_file_with_a_bad_row_is_sent_once_it_is_right_and_counts_once(stack: Stack, tmp_path: Path):
    path = tmp_path / "usage.csv"
    rows = [ROW] * 3000
    path.write_text(HEAD + "".join([*rows[:1499], ROW.replace(",1\n", ",abc\n"), *rows[1500:]]))
    refused = run(stack, path)
    assert (refused.returncode, counted(stack)) == (1, 0)
    assert "line 1501, column value" in refused.stderr

    path.write_text(HEAD + "".join(rows))
    for _ in range(2):
        assert "3,000 events accepted" in run(stack, path).stdout
        assert counted(stack) == 3000
    run(stack, path, "--id-prefix", "april")
    assert counted(stack) == 6000


def test_what_only_the_gateway_knows_is_named_by_line_and_holds_up_no_other_row(stack: Stack, tmp_path: Path):
    answer = stack.post({"customer_id": "c", "event_name": "e", "timestamp": "2026-03-01T00:00:00Z", "value": "x"})
    assert answer.status_code == 422  # the gateway is up, and strict
    path, errors = tmp_path / "usage.csv", tmp_path / "errors.csv"
    # Only the gateway's clock says what lies in the future.
    path.write_text(HEAD + ROW + ROW.replace("2026", "2999") + ROW.replace("cus_1", "cus_2"))
    partly = run(stack, path, "--errors-to", errors)

    assert partly.returncode == 1
    assert "2 events accepted" in partly.stdout
    assert "line 3, column timestamp" in partly.stderr
    with errors.open() as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["3"]

    path.write_text(path.read_text().replace("2999", "2026"))
    assert run(stack, path).returncode == 0
    assert counted(stack) == 3


def test_rows_whose_body_would_be_too_large_are_sent_in_several_requests(stack: Stack, tmp_path: Path):
    """1,000 rows with 20 long properties are 5.6 MB, and were answered with 413."""
    assert stack.settings.body_bytes_max == 4 * 1024 * 1024
    names = [f"property_{n}" for n in range(20)]
    path = tmp_path / "usage.csv"
    texts = ",".join("ü" * 128 for _ in names)
    rows = [f"cus_1,api_request,2026-03-01T00:00:00Z,{n},{texts}\n" for n in range(1000)]
    path.write_text(f"{HEAD.strip()},{','.join(names)}\n" + "".join(rows))
    assert path.stat().st_size > stack.settings.body_bytes_max
    for _ in range(2):
        done = run(stack, path, "--properties", ",".join(names))
        assert (done.returncode, counted(stack)) == (0, 1000), done.stderr
        assert "1,000 events accepted" in done.stdout


def test_names_that_no_meter_reads_are_told(stack: Stack, tmp_path: Path):
    path = tmp_path / "usage.csv"
    path.write_text(HEAD + ROW.replace("api_request", "api_requests") * 20)
    told = run(stack, path).stdout

    assert "20 events unmatched" in told
    assert "api_requests" in told
    assert "cus_1" in told


def test_a_dry_run_sends_nothing_and_standard_input_is_a_file_too(stack: Stack):
    dry = run(stack, "-", "--format", "csv", "--dry-run", text=(HEAD + ROW).encode())
    assert (dry.returncode, counted(stack)) == (0, 0)
    assert "api_request: 1 event, sum of values 1" in dry.stdout

    assert run(stack, "-", "--format", "csv", text=(HEAD + ROW).encode()).returncode == 0
    assert counted(stack) == 1


def test_a_gateway_that_does_not_answer_is_one_line_and_said_while_it_is_asked_again():
    said: list[str] = []
    client = UsageClient("http://127.0.0.1:9", "key", on_wait=said.append, retry_seconds_max=1.0)

    with client, pytest.raises(NoAnswer, match=r"no answer at http://127\.0\.0\.1:9"):
        client.send([{"customer_id": "c"}])
    assert len(said) > 1
