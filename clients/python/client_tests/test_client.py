"""The client against a gateway that misbehaves: nothing lost, nothing doubled, nobody blocked."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from usage_billing_client import (
    AsyncUsageClient,
    ClientClosed,
    Event,
    NotDelivered,
    QueueFull,
    RefusedEvent,
    SpoolError,
    UsageClient,
    answers,
)
from usage_billing_client.testing import RecordingClient

from .gateway import Gateway, refusing

Make = Callable[..., UsageClient]


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(answers, "SETTINGS_SECONDS", 0.01)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes clients, and closes what a test left open."""
    made: list[UsageClient] = []

    def make(gateway: Gateway, **options: Any) -> UsageClient:
        made.append(UsageClient("http://gateway", "secret", transport=gateway, linger_seconds=0.01, **options))
        return made[-1]

    yield make
    for client in made:
        with contextlib.suppress(NotDelivered):
            client.close(timeout=0.2)


def track_many(client: UsageClient, count: int) -> None:
    for number in range(count):
        client.track(f"cus_{number % 7}", "call", number)


def values(gateway: Gateway) -> list[int]:
    return sorted(event["value"] for event in gateway.counted.values())


def test_events_are_sent_in_batches_and_counted_once(make: Make):
    gateway = Gateway()
    client = make(gateway)
    track_many(client, 2500)
    client.flush()

    assert values(gateway) == list(range(2500))
    assert set(gateway.copies.values()) == {1}
    assert max(map(len, gateway.requests)) <= 1000
    assert (client.stats().tracked, client.stats().accepted, client.stats().waiting) == (2500, 2500, 0)


def test_a_batch_keeps_its_ids_over_retries_whatever_the_answer_was(make: Make):
    answered = iter([503, None, 429, 500])
    gateway = Gateway()

    def behave(events: list[dict[str, Any]]) -> httpx.Response | None:
        status = next(answered, 0)
        if status is None:  # taken, and the answer is lost
            gateway.accept(events)
            raise httpx.ReadError("connection reset")
        return httpx.Response(status, headers={"Retry-After": "0"}) if status else None

    gateway.behaviour = behave
    client = make(gateway, connections=1)
    track_many(client, 10)
    client.flush()

    assert values(gateway) == list(range(10))
    assert len({tuple(event["event_id"] for event in events) for events in gateway.requests}) == 1
    assert client.stats().retries == 4


def test_events_at_fault_are_refused_and_the_rest_of_their_batch_is_sent(make: Make):
    def behave(events: list[dict[str, Any]]) -> httpx.Response | None:
        wrong = [index for index, event in enumerate(events) if event["value"] in (3, 5)]
        return refusing("value_invalid", *wrong) if wrong else None

    refused: list[RefusedEvent] = []
    gateway = Gateway(behave)
    client = make(gateway, on_refused=refused.append)
    track_many(client, 10)
    client.flush()

    assert values(gateway) == [0, 1, 2, 4, 6, 7, 8, 9]
    assert sorted(event.event["value"] for event in refused) == [3, 5]
    assert {event.errors[0].code for event in refused} == {"value_invalid"}
    assert client.stats().refused == 2


def test_a_callback_that_fails_stops_nothing(make: Make):
    def fail(_: RefusedEvent) -> None:
        raise RuntimeError("a fault of the application")

    gateway = Gateway(lambda events: refusing("value_invalid", 0) if events[0]["value"] == 0 else None)
    client = make(gateway, on_refused=fail)
    track_many(client, 3)
    client.flush()

    assert values(gateway) == [1, 2]


def test_an_event_that_can_not_be_encoded_is_refused_alone(make: Make):
    refused: list[RefusedEvent] = []
    gateway = Gateway()
    client = make(gateway, on_refused=refused.append)
    client.track("cus_1", "call", float("nan"))
    client.track("cus_1", "call", 1)
    client.flush()

    assert values(gateway) == [1]
    assert [event.errors[0].code for event in refused] == ["event_not_encodable"]


def test_a_body_that_is_too_large_for_the_gateway_is_sent_in_parts(make: Make):
    refused: list[RefusedEvent] = []
    gateway = Gateway(
        lambda events: httpx.Response(413) if len(events) > 3 or any(e["value"] == 7 for e in events) else None
    )
    client = make(gateway, on_refused=refused.append)
    track_many(client, 20)
    client.flush()

    assert values(gateway) == [number for number in range(20) if number != 7]
    assert [event.errors[0].code for event in refused] == ["too_large"]


def test_a_wrong_key_keeps_the_events_and_says_why(make: Make):
    status = [401]
    gateway = Gateway(lambda events: httpx.Response(status[0], json={"title": "Unauthorized"}) if status[0] else None)
    client = make(gateway)
    track_many(client, 5)
    with pytest.raises(NotDelivered, match="401 Unauthorized") as raised:
        client.flush(timeout=0.3)
    assert raised.value.events == 5
    assert not raised.value.kept

    status[0] = 0  # the key is put in force
    client.flush()
    assert values(gateway) == list(range(5))
    assert client.stats().last_error is None


@pytest.mark.parametrize("policy", ["raise", "block"])
def test_a_full_queue_raises_by_policy(make: Make, policy: str):
    client = make(
        Gateway(lambda _: httpx.Response(503)),
        when_full=policy,
        block_seconds=0.05,
        queue_events_max=10,
        batch_events_max=5,
    )
    with pytest.raises(QueueFull):
        track_many(client, 1000)
    # Without a spool the bound holds for queue and batches alike: ten and ten, and one batch on its way between them.
    assert client.waiting <= 10 + 10 + 5


def test_a_full_queue_drops_and_counts_by_policy(make: Make):
    gate = threading.Event()
    gateway = Gateway(lambda _: None if gate.is_set() else httpx.Response(503))
    client = make(gateway, when_full="drop", queue_events_max=10, batch_events_max=5)
    track_many(client, 1000)
    stats = client.stats()
    assert stats.dropped > 0
    assert stats.tracked + stats.dropped == 1000

    gate.set()
    client.flush()
    assert len(gateway.counted) == stats.tracked


def test_a_blocked_caller_goes_on_when_there_is_room(make: Make):
    gate = threading.Event()
    gateway = Gateway(lambda _: None if gate.is_set() else httpx.Response(503))
    client = make(gateway, queue_events_max=10, batch_events_max=5)
    producer = threading.Thread(target=track_many, args=(client, 200))
    producer.start()
    gate.set()
    producer.join(30)
    client.flush()

    assert values(gateway) == list(range(200))


def test_a_spool_keeps_events_for_the_next_client_with_their_ids(make: Make, tmp_path: Path):
    first = make(Gateway(lambda _: httpx.Response(503)), spool=tmp_path)
    track_many(first, 25)
    first.persist()
    with pytest.raises(NotDelivered) as raised:
        first.close(timeout=0.05)
    assert raised.value.kept
    sent = {event["event_id"] for events in first._transport.requests for event in events}  # type: ignore[union-attr]

    gateway = Gateway()
    make(gateway, spool=tmp_path).flush()

    assert values(gateway) == list(range(25))
    assert sent <= set(gateway.counted)


def test_a_position_comes_back_with_the_events_that_it_was_given_with(make: Make, tmp_path: Path):
    first = make(Gateway(), spool=tmp_path)
    assert first.position is None
    first.track_all([Event("cus_1", "call", number) for number in range(3)], position="3")
    first.close()

    assert make(Gateway(), spool=tmp_path).position == "3"


def test_two_clients_share_a_spool_directory_and_take_over_what_the_other_left(make: Make, tmp_path: Path):
    away = Gateway(lambda _: httpx.Response(503))
    first, second = make(away, spool=tmp_path), make(away, spool=tmp_path)
    for client in (first, second):
        track_many(client, 4)
        client.persist()
        with pytest.raises(NotDelivered):
            client.close(timeout=0.05)

    gateway = Gateway()
    client = make(gateway, spool=tmp_path)
    track_many(client, 1)
    client.flush()
    # Adopted when the thread first looks, which is before it batches anything.
    assert len(gateway.counted) == 9


def test_a_spool_that_can_not_be_opened_is_an_error_at_once(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError):
        UsageClient("http://gateway", "secret", spool=tmp_path / "file" / "spool")


def test_a_closed_client_takes_nothing(make: Make):
    client = make(Gateway())
    client.close()

    with pytest.raises(ClientClosed):
        client.track("cus_1", "call")
    with pytest.raises(ClientClosed):
        client.track_all([Event("cus_1", "call")])
    client.close()


@pytest.mark.parametrize("spooled", [False, True])
def test_a_forked_child_sends_its_own_events_and_not_its_parents(make: Make, tmp_path: Path, spooled: bool):
    log = tmp_path / "child"
    gateway = Gateway()
    client = make(gateway, spool=tmp_path / "spool" if spooled else None)
    track_many(client, 3)
    child = os.fork()
    if child == 0:
        try:
            gateway.counted.clear()
            client.track("cus_child", "call", 99)
            client.flush()
            log.write_text(repr(sorted(event["customer_id"] for event in gateway.counted.values())))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    client.flush()

    assert log.read_text() == "['cus_child']"
    assert values(gateway) == [0, 1, 2]


def test_the_async_twin_waits_without_blocking_the_loop():
    async def run() -> tuple[list[int], int]:
        gate = asyncio.Event()
        gateway = Gateway(lambda _: None if gate.is_set() else httpx.Response(503))
        async with AsyncUsageClient(
            "http://gateway", "secret", transport=gateway, linger_seconds=0.01, queue_events_max=10, batch_events_max=5
        ) as client:

            async def produce() -> None:
                for number in range(100):
                    await client.track("cus_1", "call", number)

            producing = asyncio.create_task(produce())
            await asyncio.sleep(0)
            gate.set()
            await producing
            await client.flush()
            return values(gateway), client.stats().accepted

    assert asyncio.run(run()) == (list(range(100)), 100)


def test_the_double_has_the_methods_of_the_real_one():
    for name, member in inspect.getmembers(RecordingClient):
        if name.startswith("_") or name == "of":
            continue
        real = getattr(UsageClient, name)
        if callable(member):
            assert inspect.signature(member) == inspect.signature(real), name


def test_the_double_records():
    double = RecordingClient()
    double.track("cus_1", "call", 2, timestamp=datetime(2026, 3, 30, tzinfo=UTC))
    double.track("cus_2", "call", 3)

    assert [event.value for event in double.of("cus_1", "call")] == [2]
    assert double.stats().accepted == 2
