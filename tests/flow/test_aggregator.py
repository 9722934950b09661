"""usage.events → usage.totals, usage.alerts through a real worker: what counts once, what survives a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import admin_client, create_topics
from schemas.alert_rule import AlertKind, NotSent
from schemas.meter import Aggregation
from schemas.topics import USAGE_EVENTS, topic_name
from tests.flow.metering import APRIL, MARCH, Event, MeteringWorld
from tests.services import Service, environment
from tests.waiting import until


@pytest.fixture
def world(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> Iterator[MeteringWorld]:
    with MeteringWorld(kafka, topic_prefix, tmp_path) as world:
        yield world


def test_counts_once_survives_restarts_and_alerts_once(world: MeteringWorld) -> None:
    meter = world.meter("calls")
    world.rule("ten", meter, "10")
    worker = world.worker().start()

    # sum, count and max together; a value may be missing, negative, or have nine decimals
    world.send(Event("a", value="2.5"), Event("a", value=None), Event("a", value="-1.000000001"), Event("b"))
    until(lambda: world.total("b") == ("1", 1, "1"))
    assert world.total("a") == ("1.499999999", 3, "2.5")

    # the same batch with ids counts once, also with another timestamp in another cycle; without ids it counts twice
    batch = [Event("c", value="3", event_id=f"e{i}") for i in range(2)]
    world.send(*batch)
    world.send(*batch)
    world.send(*(Event("c", value="3", event_id=event.event_id, at=APRIL) for event in batch))
    world.send(Event("d"), Event("d"))
    world.send(Event("d"), Event("d"))
    # the last in its partition: when it is there, so is all before it
    for customer in "cd":
        world.send(Event(customer, name="end"))
        until(lambda customer=customer: world.total(customer, "end")[1] == 1)
    assert world.total("c") == ("6", 2, "3")
    assert world.total("c", cycle_start=APRIL) == ("0", 0, None)
    assert world.total("d") == ("4", 4, "1")
    # one id twice in one message; the same id of another customer or event_name is another identity
    world.send(Event("f", event_id="x"), Event("f", event_id="x"), Event("f", "other", event_id="x"))
    world.send(Event("g", event_id="x"))
    until(lambda: world.total("f", "other")[1] == 1 and world.total("g")[1] == 1)
    assert world.total("f")[1] == 1
    assert world.alerts() == {}

    # SIGTERM: all that was taken is written and committed, and the process ends well
    assert worker.stop() == 0
    assert world.all_committed()
    assert world.progress() == world.ends()

    # Ids, totals and cycles are known after a restart; the threshold is reached, once.
    worker.start()
    world.send(*batch, Event("c", value="4"))
    until(lambda: world.total("c") == ("10", 3, "4"))
    until(lambda: len(world.alerts()) == 1)
    world.send(Event("c"))
    until(lambda: world.total("c")[1] == 4)
    worker.kill()
    worker.start()
    world.send(Event("c"))
    until(lambda: world.total("c") == ("12", 5, "4"))
    ((first, *repeats),) = world.alerts().values()
    assert repeats == []
    assert (first.rule_id, first.customer_id, first.meter_id) == ("rule_ten", "c", "mtr_calls")
    assert (first.threshold, first.quantity, first.cycle_start, first.cycle_end) == ("10", "10", MARCH, APRIL)
    metrics = worker.get("/metrics").text
    for name in ("lag", "events_applied_total", "duplicates_total", "flush_seconds", "alert_seconds", "dedupe_horizon"):
        assert f"usage_aggregator_{name}" in metrics
    assert worker.stop() == 0


def test_alerts_for_rules_made_after_the_usage(world: MeteringWorld) -> None:
    count, peak = world.meter("count", aggregation=Aggregation.COUNT), world.meter("peak", aggregation=Aggregation.MAX)
    for customer in "ab":
        world.customer(customer)
    world.worker().start()
    world.send(Event("a", value="7"), Event("a", value="5"), Event("b", value="8"))
    until(lambda: world.total("a")[1] == 2 and world.total("b")[1] == 1)

    # No event touches the totals any more: the rule's appearance is enough.
    world.rule("two_calls", count, "2")
    world.rule("peak_of_b", peak, "7.000000001", customer_id="b")
    world.rule("never", peak, "8.000000000001")
    until(lambda: len(world.alerts()) == 2)
    found = {(a.rule_id, a.customer_id, a.quantity) for (a,) in world.alerts().values()}
    assert found == {("rule_two_calls", "a", "2"), ("rule_peak_of_b", "b", "8")}
    # Their cycle was over before the rules were made: shown, not sent.
    assert {alert.not_sent for (alert,) in world.alerts().values()} == {NotSent.CYCLE_OVER}

    # A rule that was made while nobody looked is caught up with at the start.
    (worker,) = world._workers  # pyright: ignore[reportPrivateUsage]
    worker.stop()
    world.rule("one_call", count, "1")
    worker.start()
    until(lambda: len(world.alerts()) == 4)
    assert all(len(published) == 1 for published in world.alerts().values())


def test_what_a_new_rule_finds_is_not_sent_and_what_comes_after_it_is(world: MeteringWorld) -> None:
    """In a cycle that runs; usage goes on all the time, and a worker that comes back decides the same."""
    meter, now = world.meter("calls"), time.time_ns() // 1000
    for customer in ("above", "below"):
        world.customer(customer)
    worker = world.worker().start()
    world.send(Event("above", value="9", at=now), Event("below", value="1", at=now))
    until(lambda: len(world.totals()) == 2)
    world.rule("seven", meter, "7", created_at=time.time_ns() // 1000)
    world.rule("told", meter, "7", created_at=time.time_ns() // 1000, alert_existing=True)
    world.send(Event("above", value="1", at=now), Event("below", value="1", at=now))
    until(lambda: len(world.alerts()) == 2)
    worker.stop()
    world.rule("stopped", meter, "7", created_at=time.time_ns() // 1000)
    world.send(Event("above", value="1", at=now), Event("below", value="8", at=now))
    worker.start()
    until(lambda: len(world.alerts()) == 6)
    found = {(alert.rule_id, alert.customer_id): alert.not_sent for (alert,) in world.alerts().values()}
    assert found == {
        ("rule_seven", "above"): NotSent.ALREADY_REACHED, ("rule_told", "above"): None,
        ("rule_stopped", "above"): NotSent.ALREADY_REACHED,
        ("rule_seven", "below"): None, ("rule_told", "below"): None, ("rule_stopped", "below"): None,
    }  # fmt: skip


def test_alerts_of_every_kind(world: MeteringWorld) -> None:
    meter = world.meter("calls")
    world.customer("a")
    world.rule("amount", meter, "2.50", kind=AlertKind.AMOUNT)
    world.rule("included", meter, "110", kind=AlertKind.INCLUDED_PERCENT)
    world.rule("typical", meter, "200", kind=AlertKind.TYPICAL_PERCENT)
    world.rule("quantity", meter, "60")
    world.worker().start()
    world.send(Event("a", value="125", at=APRIL - 1))
    until(lambda: len(world.alerts()) == 1)
    # The subscription says what the usage before it costs: no event touches the total any more.
    world.subscription("a", meter, included="100", unit_amount="0.1")
    until(lambda: len(world.alerts()) == 3)
    world.send(Event("a", value="250", at=APRIL))
    until(lambda: len(world.alerts()) == 7)
    assert {(alert.rule_id, alert.cycle_start, alert.quantity) for (alert,) in world.alerts().values()} == {
        ("rule_quantity", MARCH, "125"), ("rule_included", MARCH, "125"), ("rule_amount", MARCH, "2.50"),
        ("rule_quantity", APRIL, "250"), ("rule_included", APRIL, "250"), ("rule_amount", APRIL, "15.00"),
        ("rule_typical", APRIL, "200"),
    }  # fmt: skip


def test_passes_over_what_it_cannot_read(world: MeteringWorld) -> None:
    worker = world.worker().start()
    for partition in range(3):
        world.send_bytes(partition, b"\0\0\0\0\1nonsense")
    world.flush()
    world.send(Event("a"), Event("b"), Event("c"), Event("d"))
    until(lambda: [world.total(customer)[1] for customer in "abcd"] == [1] * 4)
    until(world.all_committed)
    assert "usage_aggregator_unreadable_total 3.0" in worker.get("/metrics").text


def test_a_topic_that_was_made_again_counts_on_from_offset_0(world: MeteringWorld) -> None:
    worker = world.worker().start()
    world.send(Event("a", value="2", event_id="x"), Event("b"))
    until(world.all_committed)
    assert worker.stop() == 0
    admin, topic = admin_client(world.settings), topic_name(world.settings, USAGE_EVENTS)
    admin.delete_topics([topic])[topic].result(15)
    until(lambda: topic not in admin.list_topics(timeout=10).topics)
    create_topics(world.settings)
    worker.start()
    world.send(Event("a", value="3"), Event("a", value="2", event_id="x"))
    until(lambda: world.total("a") == ("5", 2, "3"))
    record = world.totals()["a", "calls", MARCH]
    assert (record.first_offset, record.last_offset) == (0, 0)
    assert world.total("b") == ("1", 1, "1")


def test_goes_on_behind_what_the_log_has_lost_and_says_so(world: MeteringWorld) -> None:
    worker = world.worker().start()
    world.send(Event("a"))
    until(world.all_committed)
    assert worker.stop() == 0
    (partition,) = (p for p, end in world.ends().items() if end)
    for _ in range(5):
        world.send(Event("a"))
    lost = TopicPartition(topic_name(world.settings, USAGE_EVENTS), partition, 4)
    admin = admin_client(world.settings)  # held until the answer is there
    for future in admin.delete_records([lost]).values():
        future.result(15)
    worker.start()
    until(lambda: world.total("a")[1] == 3, seconds=60)
    until(world.all_committed)
    assert "usage_aggregator_offsets_lost_total 3.0" in worker.get("/metrics").text
    # All that is left expires before it is counted, and nothing comes after it.
    assert worker.stop() == 0
    world.send(Event("a"))
    (end,) = filter(None, world.ends().values())
    lost = TopicPartition(topic_name(world.settings, USAGE_EVENTS), partition, end)
    for future in admin.delete_records([lost]).values():
        future.result(15)
    worker.start()
    until(lambda: world.progress()[partition] == end, seconds=60)
    assert world.total("a")[1] == 3


def test_refuses_another_number_of_partitions(world: MeteringWorld, tmp_path: Path) -> None:
    env = {**environment(world.settings), "USAGE_EVENT_PARTITIONS": "4"}
    worker = Service("aggregator", env, tmp_path)
    worker.launch()
    until(lambda: not worker.running, seconds=60)
    assert worker.stop() == 1
    assert "USAGE_EVENT_PARTITIONS is 4" in worker.log_path.read_text()


def test_is_prompt_when_idle(world: MeteringWorld) -> None:
    world.worker().start()
    world.send(Event("a"))
    until(lambda: world.total("a")[1] == 1)
    delays: list[float] = []
    for expected in range(2, 7):
        received_at = time.time_ns() // 1000
        world.send(Event("a"))
        until(lambda expected=expected: world.total("a")[1] == expected)
        delays.append((world.totals()["a", "calls", MARCH].updated_at - received_at) / 1e6)
    assert sorted(delays)[2] < 0.5, delays
