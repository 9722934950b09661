"""What the doctor says: a finding for each weakness, with its cause and how to mend it; a check that can't run is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.kafka.durability import TopicDurability, is_local_stack
from schemas.settings import Settings
from usage_billing.commands.doctor import CHECKS, Finding, findings
from warehouse.client import WarehouseUnavailable


@pytest.mark.parametrize(
    ("replicas", "in_sync", "unclean", "weaknesses"),
    [
        (3, 2, False, ()),
        (5, 3, False, ()),
        (1, 1, False, ("1 of 3 replicas", "min.insync.replicas is 1, not 2")),
        (3, 1, False, ("min.insync.replicas is 1, not 2",)),
        (3, 2, True, ("unclean.leader.election.enable is on",)),
    ],
)
def test_what_an_acknowledgement_does_not_survive(
    replicas: int, in_sync: int, unclean: bool, weaknesses: tuple[str, ...]
) -> None:
    assert TopicDurability("usage.events", replicas, in_sync, unclean).weaknesses == weaknesses


@pytest.mark.parametrize(
    ("servers", "local"),
    [
        ("127.0.0.1:9092", True),
        ("localhost:9092", True),
        ("PLAINTEXT://127.0.0.1:9092", True),
        ("127.0.0.1:9", False),
        ("127.0.0.1", False),
        ("k1:9092,k2:9092", False),
        ("127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094", False),
        ("127.0.0.1:nonsense", False),
    ],
)
def test_one_broker_is_right_only_for_the_local_stack(servers: str, local: bool) -> None:
    assert is_local_stack(Settings(kafka_bootstrap_servers=servers)) is local  # pyright: ignore[reportCallIssue]


def test_findings_come_in_the_order_of_the_checks() -> None:
    def weak(_: Settings) -> Iterator[Finding]:
        yield Finding("weak", "warning", "a cause", "a remedy")

    def away(_: Settings) -> Iterator[Finding]:
        raise WarehouseUnavailable("no answer")
        yield Finding("away", "ok")

    def fine(_: Settings) -> Iterator[Finding]:
        yield from ()

    found = findings(Settings(), {"weak": weak, "away": away, "fine": fine})  # pyright: ignore[reportCallIssue]
    assert [(each.name, each.verdict) for each in found] == [("weak", "warning"), ("away", "failed"), ("fine", "ok")]
    assert found[1].cause == "no answer"


def test_every_check_has_a_docstring_that_says_what_it_looks_at() -> None:
    assert all(check.__doc__ for check in CHECKS.values())
