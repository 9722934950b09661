"""Group commit: alone at once, together while the broker is busy, bounded in time and memory, every outcome told."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from ingest_gateway.coalesce import Columns
from ingest_gateway.pipeline import NotAccepted, OutcomeUnknown, Pipeline, ReceiptRange
from ingest_gateway.producer import EventProducer, Settled
from schemas.settings import Settings
from schemas.topics import MESSAGE_BYTES_MAX
from schemas.usage_batch import UsageBatch, decode, encode

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Broker:
    """Takes messages and acknowledges them when told to, in their order."""

    fatal: str | None = None
    unreachable: bool = False
    full: bool = False
    messages: list[tuple[int, UsageBatch]] = field(default_factory=list[tuple[int, UsageBatch]])
    waiting: list[Settled] = field(default_factory=list[Settled])

    def produce(self, partition: int, key: bytes | None, value: bytes, settled: Settled) -> None:
        if self.full:
            raise BufferError("queue full")
        self.messages.append((partition, decode(value)))
        self.waiting.append(settled)

    def acknowledge(self, reason: str | None = None) -> None:
        waiting, self.waiting = self.waiting, []
        first = len(self.messages) - len(waiting)
        for offset, settled in enumerate(waiting, start=first):
            settled(None if reason else offset, reason)


@pytest.fixture
def broker() -> Broker:
    return Broker()


def pipeline_to(broker: Broker, **settings: int) -> Pipeline:
    return Pipeline(Settings(**settings), cast(EventProducer, broker))  # pyright: ignore[reportArgumentType]


def events(*customers: str) -> Columns:
    n = len(customers)
    return Columns(["default"] * n, list(customers), ["request"] * n, [0] * n, [None] * n)


def batch_of(count: int) -> UsageBatch:
    columns = events(*["ann"] * count)
    return UsageBatch(
        b"x" * 16, 1, columns.organization_id, columns.customer_id, columns.event_name, columns.timestamp, columns.value
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_alone_a_request_leaves_at_once(broker: Broker) -> None:
    pipeline = pipeline_to(broker, linger_ms=1000)
    answer = asyncio.create_task(pipeline.accept({3: events("ann", "bob")}))
    await until(lambda: broker.waiting)
    broker.acknowledge()
    assert await answer == [ReceiptRange(3, 0, 0, 2)]


async def test_a_request_knows_the_batch_ids_of_its_messages_whatever_comes_of_them(broker: Broker) -> None:
    pipeline = pipeline_to(broker)
    ids: list[list[bytes]] = [[], []]
    parts = ({0: events("ann"), 1: events("bob")}, {1: events("eve")})
    tasks = [asyncio.create_task(pipeline.accept(part, 0, known)) for part, known in zip(parts, ids, strict=True)]
    await until(lambda: len(broker.waiting) == 2)
    sent = {partition: batch.batch_id for partition, batch in broker.messages}
    assert ids == [[sent[0], sent[1]], [sent[1]]]
    broker.acknowledge("broker gone")
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ids == [[sent[0], sent[1]], [sent[1]]]


async def test_what_comes_while_messages_are_under_way_leaves_together(broker: Broker) -> None:
    pipeline = pipeline_to(broker, linger_ms=1000)
    first = asyncio.create_task(pipeline.accept({0: events("ann")}))
    await until(lambda: broker.waiting)
    others = [asyncio.create_task(pipeline.accept({0: events(f"cus_{n}")})) for n in range(50)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(broker.messages) == 1
    broker.acknowledge()
    await until(lambda: broker.waiting)
    assert [len(batch) for _, batch in broker.messages] == [1, 50]
    broker.acknowledge()
    assert await first == [ReceiptRange(0, 0, 0, 1)]
    assert await asyncio.gather(*others) == [[ReceiptRange(0, 1, 1, 1)]] * 50


async def test_a_slow_broker_holds_nobody_longer_than_the_linger(broker: Broker) -> None:
    pipeline = pipeline_to(broker, linger_ms=1)
    tasks = [asyncio.create_task(pipeline.accept({0: events("ann")}))]
    await until(lambda: len(broker.messages) == 1)
    tasks.append(asyncio.create_task(pipeline.accept({0: events("bob")})))
    await until(lambda: len(broker.messages) == 2)
    broker.acknowledge()
    assert await asyncio.gather(*tasks) == [[ReceiptRange(0, 0, 0, 1)], [ReceiptRange(0, 1, 1, 1)]]


async def test_much_is_sent_without_waiting(broker: Broker) -> None:
    pipeline = pipeline_to(broker, linger_ms=1000)
    tasks = [asyncio.create_task(pipeline.accept({n % 3: events(*["ann"] * 1000)})) for n in range(12)]
    await until(lambda: len(broker.messages) >= 10)
    assert all(len(batch) == 1000 for _, batch in broker.messages)
    while not all(task.done() for task in tasks):
        broker.acknowledge()
        await asyncio.sleep(0)


async def test_an_unknown_outcome_is_told_to_all_in_the_message(broker: Broker) -> None:
    pipeline = pipeline_to(broker)
    tasks = [asyncio.create_task(pipeline.accept({0: events("ann"), 1: events("bob")})) for _ in range(2)]
    await until(lambda: len(broker.waiting) == 2)
    broker.acknowledge("broker gone")
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, OutcomeUnknown)
        assert "broker gone" in str(outcome)


async def test_without_an_acknowledgement_the_wait_ends(broker: Broker) -> None:
    pipeline = pipeline_to(broker, delivery_timeout_ms=100)
    with pytest.raises(OutcomeUnknown, match=r"within 0\.1 s"):
        await pipeline.accept({0: events("ann")})
    broker.acknowledge()  # late; nobody waits for it any more
    answer = asyncio.create_task(pipeline.accept({0: events("ann")}))
    await until(lambda: broker.waiting)
    broker.acknowledge()
    assert await answer == [ReceiptRange(0, 1, 1, 1)]


async def test_what_was_answered_503_still_counts_against_the_bounds(broker: Broker) -> None:
    pipeline = pipeline_to(broker, delivery_timeout_ms=100, queue_events_max=1000)
    with pytest.raises(OutcomeUnknown):
        await pipeline.accept({0: events(*["ann"] * 600)})
    answer = asyncio.create_task(pipeline.accept({1: events("bob")}))
    with pytest.raises(NotAccepted, match="does not acknowledge at the moment; nothing was enqueued"):
        await answer
    assert len(broker.messages) == 1
    waiting, broker.waiting = broker.waiting, []
    broker.waiting += waiting[1:]
    waiting[0](0, None)
    answer = asyncio.create_task(
        pipeline.accept({1: events(*["bob"] * 999)})
    )  # what was late has arrived: there is room
    await until(lambda: broker.waiting)
    broker.acknowledge()
    assert await answer == [ReceiptRange(1, 1, 1, 999)]


async def test_a_void_is_answered_in_time_too(broker: Broker) -> None:
    pipeline = pipeline_to(broker, delivery_timeout_ms=100)
    with pytest.raises(OutcomeUnknown, match=r"within 0\.1 s"):
        await pipeline.accept_message(0, encode(batch_of(1)))


async def test_a_request_larger_than_a_message_is_one_receipt(broker: Broker) -> None:
    """1.3 MB of one customer, beside a small request that is in the same flush and stays whole."""
    pipeline = pipeline_to(broker, linger_ms=1000)
    first = asyncio.create_task(pipeline.accept({0: events("ann")}))
    await until(lambda: broker.waiting)
    large = Columns(["default"] * 100, ["ann"] * 100, ["request"] * 100, [0] * 100, [None] * 100)
    large.properties += [{f"k{n}": "v" * 256 for n in range(20)} for _ in range(100)]
    large.extend(large)
    large.extend(large)
    tasks = [asyncio.create_task(pipeline.accept({0: columns})) for columns in (large, events("bob", "eve"))]
    await asyncio.sleep(0)
    broker.acknowledge()
    assert await first == [ReceiptRange(0, 0, 0, 1)]
    await until(lambda: len(broker.waiting) > 1)
    assert all(len(encode(batch)) <= MESSAGE_BYTES_MAX for _, batch in broker.messages)
    assert len({batch.batch_id for _, batch in broker.messages}) == len(broker.messages)
    last = len(broker.messages) - 1
    broker.acknowledge()
    assert await asyncio.gather(*tasks) == [[ReceiptRange(0, 1, last, 400)], [ReceiptRange(0, last, last, 2)]]


async def test_bytes_are_bounded_too(broker: Broker) -> None:
    pipeline = pipeline_to(broker, queue_bytes_max=1024 * 1024)
    # One alone is always taken: what is within the limits of a request must not be refused for ever.
    waiting = asyncio.create_task(pipeline.accept({0: events("ann")}, 4 * 1024 * 1024))
    await until(lambda: broker.waiting)
    with pytest.raises(NotAccepted, match="too many events"):
        await pipeline.accept({0: events("bob")}, 100)
    broker.acknowledge()
    await waiting


async def test_a_full_queue_of_the_client_is_an_unknown_outcome(broker: Broker) -> None:
    broker.full = True
    with pytest.raises(OutcomeUnknown, match="queue full"):
        await pipeline_to(broker).accept({0: events("ann")})


@pytest.mark.parametrize(
    ("state", "reason"),
    [({"fatal": "fenced"}, "fenced"), ({"unreachable": True}, "no Kafka broker answers")],
    ids=["fatal", "unreachable"],
)
async def test_nothing_is_enqueued_for_a_broker_that_is_away(state: dict[str, object], reason: str) -> None:
    broker = Broker(**state)  # pyright: ignore[reportArgumentType]
    with pytest.raises(NotAccepted, match=reason):
        await pipeline_to(broker).accept({0: events("ann")})
    assert not broker.messages


async def test_memory_is_bounded(broker: Broker) -> None:
    pipeline = pipeline_to(broker, queue_events_max=1000)
    waiting = asyncio.create_task(pipeline.accept({0: events(*["ann"] * 999)}))
    await until(lambda: broker.waiting)
    with pytest.raises(NotAccepted, match="too many events"):
        await pipeline.accept({0: events("bob", "eve")})
    broker.acknowledge()
    assert await waiting == [ReceiptRange(0, 0, 0, 999)]


async def test_draining_sends_and_awaits_everything(broker: Broker) -> None:
    pipeline = pipeline_to(broker, linger_ms=1000)
    tasks = [asyncio.create_task(pipeline.accept({0: events("ann")}))]
    await until(lambda: broker.waiting)
    tasks.append(asyncio.create_task(pipeline.accept({0: events("bob")})))
    await asyncio.sleep(0)
    draining = asyncio.create_task(pipeline.drain(5))
    await until(lambda: len(broker.waiting) == 2)
    assert not draining.done()
    broker.acknowledge()
    await draining
    assert all(task.done() for task in tasks)
