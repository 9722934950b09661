"""What may happen to a stack, each as a generator: it does its harm, yields while it waits, and ends when all is well.

A fault yields seconds to be woken after. What it measures it notes as the recovery time of a part: from the harm (from
the start, for broker and engine, which are down for a time of the fault's choice) until the part has dealt with all
that was in the log a second later.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import clickhouse_connect
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from deploy.local.clickhouse_http import ClickHouseLocal
from runtime.kafka.admin import admin_client, answer_of, create_topics
from schemas.topics import USAGE_EVENTS, USAGE_TOTALS, sink_group, topic_name
from schemas.usage_batch import HEADER_LENGTH, encode
from tests.chaos.load import Load
from tests.chaos.lost_end import Cut, cut_ends, epochs_by_partition, reached_in_newest_epoch
from tests.chaos.recovery import Monitor, Recovery
from tests.chaos.stack import GIVES_UP_MS, Part, Stack
from tests.flow.metering import Event, batch_of
from warehouse.client import Client

Fault = Generator[float, None, float | None]
"""Returns the seconds that its part took to recover, where that is told."""
RECOVERY_SECONDS_MAX = 90.0
_EVERY = 0.1


class NotRecovered(Exception):
    """A part did not work again in time."""


@dataclass
class Bench:
    """What faults work on. recoveries: kind of part → seconds. poison: messages that are none, by their bytes.

    only: names of the faults that are chosen from; empty: all.
    """

    stack: Stack
    load: Load
    monitor: Monitor
    random: random.Random
    recoveries: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    poison: list[bytes] = field(default_factory=list[bytes])
    cuts: list[Cut] = field(default_factory=list[Cut])
    snapshots: dict[str, Path] = field(default_factory=dict[str, Path])  # a ClickHouse server's directory → its copy
    only: frozenset[str] = frozenset()


# -- harm ----------------------------------------------------------------------------------------------------------


def killed(bench: Bench, part: Part) -> Fault:
    part.killed_at.append(time.monotonic())
    part.process.kill()
    return (yield from _recovered(bench, part.kind))


def terminated(bench: Bench, part: Part) -> Fault:
    part.process.terminate()
    yield from _recovered(bench, part.kind)


def frozen(bench: Bench, part: Part) -> Fault:
    """Beyond the session time-out, so that another takes over before it goes on."""
    seconds = bench.random.uniform(2, 4) if part.kind == "serve" else bench.random.uniform(8, 13)
    if part.process.running:
        part.process.pause()
        yield seconds
        if part.process.running:
            part.process.resume()
    # As it was all the time for the others; so not noted as a recovery.
    yield from _recovered(bench, part.kind, note=False)


def outage(bench: Bench, part: Part) -> Fault:
    """Broker or engine down for seconds, in order or not."""
    yield from _stopped(part, bench.random.choice((True, False)))
    yield bench.random.uniform(0.5, 5)
    part.held = False
    yield from _recovered(bench, part.kind)


def truncated_log(bench: Bench, broker: Part) -> Fault:
    """A power cut: the broker dies, and comes back without the end of some partitions of usage.events.

    Of the other topics nothing is lost. Readers see an end below what they have read, or other messages at offsets that
    they know. Part of what is cut was stored; the rest of it was read by some, or by nobody.
    """
    yield from _stopped(broker, False)
    yield bench.random.uniform(0.2, 3)
    client = clickhouse_connect.get_client(dsn=bench.stack.engines[0].dsn("usage"), autogenerate_session_id=False)
    try:
        cuts = cut_ends(bench.stack, bench.random, client)
        bench.cuts += cuts
        bench.monitor.lost_ends.update(cut.partition for cut in cuts)
        # What was cut is in ClickHouse alone now: to put an older copy in its place would be the loss of both.
        for copy in bench.snapshots.values():
            shutil.rmtree(copy)
        bench.snapshots.clear()
        broker.held = False
        yield from _recovered(bench, broker.kind)
        aim, deadline = dict(bench.monitor.ends), time.monotonic() + RECOVERY_SECONDS_MAX
        while not _named(bench, client, cuts, aim):
            if time.monotonic() > deadline:
                raise NotRecovered(
                    f"of the lost ends {[(cut.partition, cut.start) for cut in cuts]}: epochs {epochs_by_partition(bench.stack.rows)}, "
                    f"stored {reached_in_newest_epoch(client)} of {aim}; {bench.monitor}"
                )
            yield 0.5
    finally:
        client.close()


def _named(bench: Bench, client: Client, cuts: Sequence[Cut], aim: Mapping[int, int]) -> bool:
    """Whether each partition goes on in an epoch of its own, up to `aim`, in ClickHouse and in live totals."""
    epochs, reached = epochs_by_partition(bench.stack.rows), reached_in_newest_epoch(client)
    aim = {cut.partition: aim[cut.partition] for cut in cuts}
    stored = all(
        len(epochs[partition]) > bench.monitor.lost_ends[partition] and reached[partition] >= offset
        for partition, offset in aim.items()
    )
    return stored and bench.monitor.totals_have(aim)


def late_answers(bench: Bench) -> Fault:
    """The broker's answers reach the gateway after its client has given messages up, or never: it writes some twice."""
    proxy, rnd = bench.stack.proxy, bench.random
    for _ in range(rnd.randrange(1, 4)):
        # Only for a moment, so that the client's questions after it are answered at once: it asks for a new epoch.
        proxy.delay = rnd.uniform(1.2, 2) * GIVES_UP_MS / 1000
        yield rnd.uniform(0.8, 2)
        proxy.delay = 0.0
        if rnd.random() < 0.3:
            proxy.cut()
        yield GIVES_UP_MS / 1000
    yield from _recovered(bench, "serve", note=False)


def slow_engine(bench: Bench, part: Part) -> Fault:
    """It takes connections and answers nothing."""
    part.process.pause()
    yield bench.random.uniform(3, 9)
    part.process.resume()
    yield from _recovered(bench, part.kind, note=False)


def engine_restored(bench: Bench, part: Part) -> Fault:
    """The first time a copy is kept, later the copy takes the place of what is there."""
    engine = part.process
    assert isinstance(engine, ClickHouseLocal)
    yield from _stopped(part, True)
    copy = bench.snapshots.get(engine.data_dir.name)
    if copy is None:
        copy = bench.snapshots[engine.data_dir.name] = bench.stack.directory / f"{engine.data_dir.name}-copy"
        shutil.copytree(engine.data_dir, copy, symlinks=True)
    else:
        shutil.rmtree(engine.data_dir)
        shutil.copytree(copy, engine.data_dir, symlinks=True)
    part.held = False
    yield from _recovered(bench, part.kind)


def rebalanced(bench: Bench, part: Part) -> Fault:
    """A third aggregator comes, and goes again."""
    part.held = False
    yield bench.random.uniform(4, 10)
    yield from _stopped(part, bench.random.choice((True, False)))
    yield from _recovered(bench, part.kind, note=False)


def group_reset(bench: Bench, parts: Sequence[Part]) -> Fault:
    """The group's offsets go back to the beginning; to change them nobody may be in it."""
    settings = bench.stack.settings
    groups = [topic_name(settings, "aggregator")]
    if parts[0].kind == "sink":
        groups = [sink_group(settings, shard) for shard in range(len(settings.clickhouse_dsns))]
    for part in parts:
        yield from _stopped(part, True)
    topic = topic_name(settings, USAGE_EVENTS)
    places = [TopicPartition(topic, partition, 0) for partition in range(settings.event_partitions)]
    deadline = time.monotonic() + RECOVERY_SECONDS_MAX
    while groups:
        request = ConsumerGroupTopicPartitions(groups[0], places)
        admin = admin_client(settings)
        try:
            answer_of(admin.alter_consumer_group_offsets([request])[groups[0]], 10)
            del groups[0]
        except KafkaException:  # killed ones are members until their session is over
            if time.monotonic() > deadline:
                raise
            yield 0.5
    yield from _resumed(bench, parts)


def changelog_lost(bench: Bench, parts: Sequence[Part]) -> Fault:
    """usage.totals is made again, empty: all is counted from the log's beginning."""
    for part in parts:
        yield from _stopped(part, True)
    settings = bench.stack.settings
    topic, admin = topic_name(settings, USAGE_TOTALS), admin_client(settings)
    answer_of(admin.delete_topics([topic])[topic], 15)
    while topic in admin.list_topics(timeout=10).topics:
        yield _EVERY
    create_topics(settings)
    bench.monitor.totals_made_again()
    yield from _resumed(bench, parts)


def failing_view(bench: Bench, part: Part) -> Fault:
    """An analyst hangs a view on our tables that fails for every event, and takes it away again."""
    engine = part.process
    assert isinstance(engine, ClickHouseLocal)
    client = clickhouse_connect.get_client(dsn=engine.dsn("usage"), autogenerate_session_id=False)
    try:
        client.command("CREATE TABLE IF NOT EXISTS analysts_table (n UInt64) ENGINE = MergeTree ORDER BY n")
        client.command(
            "CREATE MATERIALIZED VIEW IF NOT EXISTS analysts_view TO analysts_table AS "
            "SELECT toUInt64(concat('n', customer_id)) AS n FROM usage_events"
        )
        yield bench.random.uniform(2, 8)
    finally:
        client.command("DROP VIEW IF EXISTS analysts_view SYNC")
        client.close()
    yield from _recovered(bench, part.kind, note=False)


def poisoned(bench: Bench) -> Fault:
    """Messages that are no batches, between those that are: truncated, of an unknown schema, garbage, empty."""
    producer = bench.stack.producer
    rnd = bench.random
    good = encode(batch_of([Event("customer-0"), Event("customer-1")]))
    bad = [b"", rnd.randbytes(rnd.randrange(1, 300)), b"\0\0\0\x7f\xff" + rnd.randbytes(50)]
    bad += [good[: rnd.randrange(HEADER_LENGTH, len(good))], b"\0\0\0\0\x63" + good[HEADER_LENGTH:]]
    topic = topic_name(bench.stack.settings, USAGE_EVENTS)
    for message in bad:
        producer.produce(topic, message, partition=rnd.randrange(bench.stack.settings.event_partitions))
        bench.poison.append(message)
    deadline = time.monotonic() + 60
    while producer.flush(0.01):
        if time.monotonic() > deadline:
            raise NotRecovered("poison could not be sent")
        yield _EVERY


# -- what they share -----------------------------------------------------------------------------------------------


def _stopped(part: Part, in_order: bool) -> Fault:
    part.held = True
    if in_order:
        part.process.terminate()
        deadline = time.monotonic() + 30
        while part.process.running and time.monotonic() < deadline:
            yield _EVERY
    part.process.kill()


def _resumed(bench: Bench, parts: Sequence[Part]) -> Fault:
    for part in parts:
        part.held = False
    yield from _recovered(bench, parts[0].kind, note=False)


def _recovered(bench: Bench, kind: str, *, note: bool = True) -> Generator[float, None, float]:
    recovery = Recovery(bench.monitor, _works(bench, kind))
    while not recovery.done():
        if recovery.seconds > RECOVERY_SECONDS_MAX:
            raise NotRecovered(f"{kind} did not work again within {RECOVERY_SECONDS_MAX:g} s; {recovery}")
        yield _EVERY
    seconds = recovery.seconds
    if note:
        bench.recoveries.setdefault(kind, []).append(seconds)
    return seconds


def _works(bench: Bench, kind: str) -> Callable[[dict[int, int]], bool]:
    began, monitor = time.monotonic(), bench.monitor
    match kind:
        case "aggregator":
            return monitor.totals_have
        case "sink" | "clickhouse":
            return monitor.stored_has
        case "serve" | "kafka":
            return lambda _: bench.load.answered_at > began
        case _:
            ready = [part.ready for part in bench.stack.of_kind(kind)]
            return lambda _: all(each() for each in ready)


# -- which one, when -----------------------------------------------------------------------------------------------


def next_fault(bench: Bench) -> tuple[str, list[Part], Fault] | None:
    """A fault at random, of parts that none is done to now, its name and those parts; None: they are not free."""
    stack, rnd = bench.stack, bench.random
    one = rnd.choice([part for part in stack.services if part.kind != "serve"])
    server = stack.servers[0] if len(stack.servers) == 1 else rnd.choice(stack.servers)
    aggregators, sinks = stack.of_kind("aggregator"), stack.of_kind("sink")
    choices: list[tuple[int, str, list[Part], Callable[[], Fault]]] = [
        (8, f"kill {one.kind}", [one], lambda: killed(bench, one)),
        (3, f"terminate {one.kind}", [one], lambda: terminated(bench, one)),
        (4, f"freeze {one.kind}", [one], lambda: frozen(bench, one)),
        (2, "kill serve", [stack.gateway], lambda: killed(bench, stack.gateway)),
        (1, "terminate serve", [stack.gateway], lambda: terminated(bench, stack.gateway)),
        (1, "freeze serve", [stack.gateway], lambda: frozen(bench, stack.gateway)),
        (3, "answers late", [stack.gateway], lambda: late_answers(bench)),
        (3, "broker down", [stack.kafka], lambda: outage(bench, stack.kafka)),
        (3, "engine down", [server], lambda: outage(bench, server)),
        (2, "engine slow", [server], lambda: slow_engine(bench, server)),
        (3, "engine restored", [server], lambda: engine_restored(bench, server)),
        (4, "analyst's failing view", [server], lambda: failing_view(bench, server)),
        (5, "log truncated", [stack.kafka, *stack.servers], lambda: truncated_log(bench, stack.kafka)),
        (2, "rebalance", [stack.guest], lambda: rebalanced(bench, stack.guest)),
        (1, "aggregators' group reset", aggregators, lambda: group_reset(bench, aggregators)),
        (1, "sinks' group reset", sinks, lambda: group_reset(bench, sinks)),
        (1, "changelog lost", [*aggregators, stack.guest, stack.kafka], lambda: changelog_lost(bench, aggregators)),
        (2, "poison", [stack.kafka], lambda: poisoned(bench)),
    ]
    if len(stack.servers) > 1:  # what it looks at is on one server
        choices = [choice for choice in choices if choice[1] != "log truncated"]
    choices = [choice for choice in choices if not bench.only or choice[1] in bench.only]
    _, name, parts, begin = rnd.choices(choices, [weight for weight, *_ in choices])[0]
    if any(part.broken for part in parts):
        return None
    if stack.kafka.broken and any(part is stack.kafka for part in parts):
        return None
    return name, parts, begin()
