"""`events tail` shows events that are in the log already, newest last, and then those that follow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.kafka import KafkaBroker
from tests.flow.test_gateway import EVENT, Stack
from tests.services import environment


@pytest.fixture
def stack(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(kafka, topic_prefix, tmp_path)
    yield stack
    stack.close()


def tail(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [Path(sys.executable).with_name("usage-billing"), "events", "tail", *arguments],
        env=environment(stack.settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_event_that_was_just_sent_is_shown(stack: Stack):
    for n in range(12):
        assert stack.post(EVENT | {"customer_id": f"cus_{n}", "event_id": str(n)}).status_code == 202

    assert [row["event_id"] for row in tail(stack, "--limit", "10")] == [str(n) for n in range(2, 12)]
    assert [row["event_id"] for row in tail(stack, "--last", "1", "--limit", "1")] == ["11"]
    assert [row["event_id"] for row in tail(stack, "--customer", "cus_3", "--limit", "1")] == ["3"]
    assert len(tail(stack, "--from-beginning", "--limit", "12")) == 12
