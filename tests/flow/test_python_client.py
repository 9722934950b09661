"""The Python client and the real gateway, both killed at random: every event of a source is in the log, once."""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

from usage_billing_client import UsageClient

from deploy.local.kafka import KafkaBroker
from deploy.local.process import ManagedProcess
from schemas.event import VALUE_SCALE
from schemas.usage_batch import UsageBatch
from tests.flow.test_gateway import ADMIN, Stack
from tests.waiting import until

SEED = 20260302
KILLS = 20
PRODUCER = Path(__file__).with_name("python_client_producer.py")


def counted(log: dict[tuple[int, int], UsageBatch]) -> list[int]:
    """The values of `source`, sorted: of each identity the first in its partition's order, as the system counts."""
    first: dict[str, int] = {}
    for _, batch in sorted(log.items()):
        for customer, identity, value in zip(batch.customer_id, batch.identity, batch.value, strict=True):
            if customer == "source" and value is not None:
                first.setdefault(identity, int.from_bytes(value, "big", signed=True) // 10**VALUE_SCALE)
    return sorted(first.values())


def position_in(spool: Path) -> int:
    """What the producer's spool says it has read of its source."""
    if not (path := spool / "0.sqlite").exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        try:
            row = db.execute("SELECT text FROM position").fetchone()
        except sqlite3.OperationalError:
            return 0  # the tables are not there yet
    return int(row[0]) if row else 0


def test_a_source_is_counted_exactly_once_though_client_and_gateway_are_killed(
    kafka: KafkaBroker, topic_prefix: str, tmp_path: Path
):
    rnd, spool, stop = random.Random(SEED), tmp_path / "spool", tmp_path / "stop"
    stack = Stack(kafka, topic_prefix, tmp_path)
    producer = ManagedProcess("producer", tmp_path / "producer.log")

    def start() -> None:
        producer.spawn([sys.executable, str(PRODUCER), stack.gateway.address, ADMIN, str(spool), str(stop)])

    def goes_on() -> None:
        before = position_in(spool)
        until(lambda: position_in(spool) > before, 60)

    try:
        start()
        for number in range(KILLS):
            goes_on()
            time.sleep(rnd.uniform(0, 0.1))  # a moment that has nothing to do with what is being sent
            producer.kill()
            if number % 5 == 4:
                stack.gateway.kill()
                stack.gateway.start()
            start()
        goes_on()
        stop.write_text("")
        until(lambda: not producer.running, 90)
        assert producer.exit_code == 0, (tmp_path / "producer.log").read_text()
        read = position_in(spool)

        assert counted(stack.log()) == list(range(read))
    finally:
        producer.kill()
        stack.close()


def test_events_at_fault_reach_the_application_and_the_rest_is_counted(
    kafka: KafkaBroker, topic_prefix: str, tmp_path: Path
):
    stack = Stack(kafka, topic_prefix, tmp_path)
    refused: list[tuple[object, str]] = []
    try:
        with UsageClient(
            stack.gateway.address,
            ADMIN,
            on_refused=lambda event: refused.append((event.event.get("value"), event.errors[0].code)),
        ) as usage:
            for value in (0, "1.0000000001", 2, "x", 4):
                usage.track("source", "calls", value)
            usage.flush()
            stats = usage.stats()

        assert counted(stack.log()) == [0, 2, 4]
        assert sorted(refused) == [("1.0000000001", "value_too_many_decimals"), ("x", "value_invalid")]
        assert (stats.accepted, stats.refused, stats.unmatched) == (3, 2, 3)
    finally:
        stack.close()
