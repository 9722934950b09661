"""usage.events → ClickHouse on the real broker and engine: what counts once, exactly; what can't be read, alone."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas import dead_letter, usage_void
from schemas.event import unscaled_value
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.partition import partition_of
from schemas.topics import USAGE_DEAD_LETTERS, topic_name
from schemas.usage_batch import SCHEMA_JSON, encode, unscaled_bytes
from schemas.usage_void import UsageVoids
from tests.flow.metering import APRIL, MARCH, Event, batch_of
from tests.flow.sinking import PARTITIONS, SinkWorld
from tests.services import environment
from tests.waiting import until
from warehouse.totals import TotalsRequest, exact_totals, independent_totals

SEED = 20260301
DAMAGED = 25


@pytest.fixture
def world(kafka: KafkaBroker, clickhouse: ClickHouseLocal, unique: str, tmp_path: Path) -> Iterator[SinkWorld]:
    with SinkWorld(kafka, clickhouse, unique, tmp_path) as made:
        yield made


def home(customer: str) -> int:
    return partition_of(DEFAULT_ORGANIZATION, customer, PARTITIONS)


def test_the_same_event_ids_count_once_whatever_else_changed(world: SinkWorld) -> None:
    events = [Event("c1", value="2.5", event_id=f"e{i}", at=MARCH + i) for i in range(10)]
    world.sink().start()
    world.send(*events)
    world.send(*events)  # a retry
    world.send(*[Event("c1", value="2.5", event_id=f"e{i}", at=MARCH + 10**9 + i) for i in range(10)])  # new timestamps
    world.send(*[Event("c1", value="2.5", event_id=f"e{i}", at=APRIL + i) for i in range(10)])  # in another month
    world.settle()
    assert world.count_and_sum("c1") == (10, Decimal(25))
    # A window looks at the first in the log only: April has none of them.
    query = "SELECT count() FROM usage WHERE customer_id = 'c1' AND timestamp >= '2026-04-01 00:00:00'"
    assert world.rows(query) == [(0,)]
    assert world.rows("SELECT count() FROM usage_accepted FINAL") == [(40,)]


def test_events_without_ids_count_as_often_as_they_are_sent(world: SinkWorld) -> None:
    events = [Event("c1", value="1") for _ in range(10)]
    world.sink().start()
    world.send(*events)
    world.send(*events)
    world.settle()
    assert world.count_and_sum("c1") == (20, Decimal(20))


def test_values_are_exact_at_their_limits(world: SinkWorld) -> None:
    most = "999999999999999999.999999999"
    values = (most, most, f"-{most}", "0.000000001", "-0.000000001", "0", None, "0.1", "0.2")
    world.sink().start()
    world.send(*[Event("c1", value=value) for value in values])
    world.settle()
    stored = [value for (value,) in world.rows("SELECT value FROM usage ORDER BY kafka_index")]
    assert stored == [None if value is None else Decimal(value) for value in values]
    total = Decimal(most) + Decimal("0.3")
    assert world.count_and_sum("c1") == (9, total)
    assert world.rows("SELECT events, value_sum FROM ingest_batches FINAL") == [(9, total)]
    request = TotalsRequest(DEFAULT_ORGANIZATION, "c1", "calls", MARCH, APRIL)
    for totals in (exact_totals, independent_totals):
        found = totals(world.client, [request], None)[request]
        assert (found.count, found.sum, found.max) == (9, total, Decimal(most))


def test_rows_carry_their_coordinates_and_properties(world: SinkWorld) -> None:
    world.sink().start()
    batch = batch_of([Event("ü", value="1", event_id="ä:ö"), Event("ü", value=None)])
    properties = [{"region": "eu", "": "x"}, {}]
    world.send_bytes(1, encode(replace(batch, properties=properties)))
    world.flush()
    world.settle()
    query = """
        SELECT customer_id, event_id, value, properties, kafka_epoch, kafka_partition, kafka_offset, kafka_index
        FROM usage ORDER BY kafka_index
    """
    assert world.rows(query) == [
        ("ü", "ä:ö", Decimal(1), {"region": "eu", "": "x"}, 1, 1, 0, 0),
        ("ü", "", None, {}, 1, 1, 0, 1),
    ]


def fields(batch: Any) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in batch.__slots__}


def raw(**changes: Any) -> bytes:
    """A framed message of one event, with columns that need not fit together."""
    record = fields(batch_of([Event("poison", value="1", event_id="p")]))
    out = io.BytesIO()
    out.write(b"\0" + (1).to_bytes(4, "big"))
    plain = fastavro.parse_schema(
        {**SCHEMA_JSON, "fields": [{**f, "type": PLAIN.get(f["name"], f["type"])} for f in SCHEMA_JSON["fields"]]}
    )
    fastavro.schemaless_writer(out, plain, {**record, **changes})
    return out.getvalue()


PLAIN: dict[str, Any] = {
    "received_at": "long",
    "timestamp": {"type": "array", "items": "long"},
    "value": {"type": "array", "items": ["null", "bytes"]},
}
GOOD = raw()
LARGEST_UNSCALED = unscaled_value("999999999999999999.999999999")
POISON: dict[str, tuple[bytes | None, str]] = {
    "no value":                (None, "framing"),
    "empty":                   (b"", "framing"),
    "no framing":              (b"{\"events\": []}", "framing"),
    "unknown schema":          (b"\0\0\0\0\x07" + GOOD[5:], "unknown_schema"),
    "only a head":             (GOOD[:24], "truncated"),
    "cut short":               (GOOD[:-1], "refused"),
    "cut in half":             (GOOD[: len(GOOD) // 2], "refused"),
    "bytes at the end":        (GOOD + b"\0", "refused"),
    "another batch behind it": (GOOD + GOOD[5:], "refused"),
    "garbage":                 (GOOD[:29] + bytes(range(256)), "event_count"),
    "no events":               (raw(**{name: [] for name in ("organization_id", "customer_id", "event_name", "timestamp", "value", "identity")}), "event_count"),
    "fewer customers":         (raw(customer_id=[]), "refused"),
    "more values":             (raw(value=[b"\1", b"\1"]), "refused"),
    "more identities":         (raw(identity=["a", "b"]), "refused"),
    "1,025 events":            (raw(**{name: [value] * 1025 for name, value in (("organization_id", "o"), ("customer_id", "c"), ("event_name", "e"), ("timestamp", 1), ("value", None))}, identity=[]), "event_count"),
    "a huge count":            (GOOD[:29] + b"\x02" + b"\x0edefault\0" + b"\xfe\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 64, "refused"),
    "a huge string":           (GOOD[:37] + b"\x02" + b"\xfe\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 64, "refused"),
    "no text":                 (GOOD.replace(b"poison", b"p\xffison"), "refused"),
    "a value too large":       (raw(value=[unscaled_bytes(LARGEST_UNSCALED + 1)]), "refused"),
    "a value too small":       (raw(value=[unscaled_bytes(-LARGEST_UNSCALED - 1)]), "refused"),
    "a value of 17 bytes":     (raw(value=[b"\1" * 17]), "refused"),
    "a value of no bytes":     (raw(value=[b""]), "refused"),
}  # fmt: skip


def test_a_message_that_cannot_be_read_is_set_aside_alone(world: SinkWorld) -> None:
    """Each between two good ones, all in one insert: no neighbour is lost, and nothing wrong is written."""
    good = 0
    for name, (message, _) in POISON.items():
        for payload in (
            encode(batch_of([Event("c1", value="1")])),
            message,
            encode(batch_of([Event("c1", value="1")])),
        ):
            world.send_bytes(home("c1"), payload, key=name.encode() if payload is message else None)
        good += 2
    world.flush()
    world.sink().start()
    world.settle(90)
    assert world.count_and_sum("c1") == (good, Decimal(good))
    assert world.rows("SELECT DISTINCT customer_id FROM usage_events") == [("c1",)]
    until(lambda: world.rows("SELECT count() FROM dead_letters") == [(len(POISON),)])
    query = "SELECT base64Decode(key), reason, payload FROM dead_letters ORDER BY kafka_offset"
    found = world.rows(query)
    expected = [(name, reason, dead_letter.base64_text(message)) for name, (message, reason) in POISON.items()]
    assert found == expected
    reasons = world.rows("SELECT reason, events FROM ingest_batches FINAL WHERE reason != '' ORDER BY kafka_offset")
    assert reasons == [(reason, 0) for _, reason in POISON.values()]


def test_tombstones_are_stored_with_their_places_and_void_what_they_name(world: SinkWorld) -> None:
    """A damaged one is set aside alone."""

    def void(*identities: str) -> bytes:
        n = len(identities)
        column = ["default"] * n, ["c1"] * n, ["calls"] * n
        return usage_void.encode(UsageVoids(b"v" * 16, MARCH, *column, identities, ["wrong"] * n))

    world.send(*[Event("c1", value="1", event_id=f"e{i}") for i in range(4)])
    for message in (void("c:e1", "c:e9"), void("c:e2")[:-1], void(""), void("c:e3")):
        world.send_bytes(home("c1"), message)
    world.send(Event("c1", value="1", event_id="e9"), Event("c1", value="1", event_id="e1", at=APRIL))
    world.sink().start()
    world.settle()
    assert world.count_and_sum("c1") == (2, Decimal(2)), "e0 and e2 are left"
    query = (
        "SELECT identity, kafka_offset, kafka_index, reason FROM usage_voids FINAL ORDER BY kafka_offset, kafka_index"
    )
    assert world.rows(query) == [("c:e1", 1, 0, "wrong"), ("c:e9", 1, 1, "wrong"), ("c:e3", 4, 0, "wrong")]
    account = "SELECT kafka_offset, events, reason FROM ingest_batches FINAL WHERE reason != '' ORDER BY kafka_offset"
    assert world.rows(account) == [(1, 0, "void"), (2, 0, "refused"), (3, 0, "refused"), (4, 0, "void")]
    until(lambda: world.rows("SELECT kafka_offset FROM dead_letters ORDER BY kafka_offset") == [(2,), (3,)])


def command(world: SinkWorld, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `usage-billing dead-letters`."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("usage-billing")), "dead-letters", *arguments],
        env=os.environ | environment(world.settings), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_dead_letters_are_listed_and_replayed_once(world: SinkWorld) -> None:
    """Set aside by a sink that could not read them, as one of an earlier version may be."""
    partition = home("c1")
    batch = replace(batch_of([Event("c1", value="3"), Event("c1", value="4")]), batch_id=b"replayed letter!")
    world.send(Event("c1", value="1"))
    world.send_bytes(partition, b"\0\0\0\0\x07" + encode(batch)[5:])
    world.send_bytes(partition, b"garbage")
    world.send(Event("c1", value="2"))
    world.sink().start()
    world.settle()
    until(lambda: world.rows("SELECT count() FROM dead_letters") == [(2,)])
    letter = dead_letter.DeadLetter(
        world.topic, 1, partition, 1, "unknown_schema", "found by an older sink", "", dead_letter.base64_text(encode(batch)), 2**52
    )  # fmt: skip
    topic = topic_name(world.settings, USAGE_DEAD_LETTERS)
    world.producer.produce(topic, dead_letter.encode(letter), partition=partition)
    world.flush()
    until(lambda: world.rows("SELECT count() FROM dead_letters WHERE detail LIKE '%older sink'") == [(1,)])
    code, said = command(world, "list", "--json")
    assert code == 0
    assert [(each["place"], each["reason"]) for each in map(json.loads, said.splitlines())] == [
        (f"1/{partition}/1", "unknown_schema"),
        (f"1/{partition}/2", "framing"),
    ]
    code, said = command(world, "replay")
    assert code == 1, "the garbage is left"
    assert f"1/{partition}/1: replayed as {partition}/4" in said
    assert f"1/{partition}/2: still not readable" in said
    assert world.count_and_sum("c1") == (4, Decimal(10)), "neighbours and what was replayed, each once"
    code, said = command(world, "replay", f"1/{partition}/1")
    assert (code, "stored already" in said) == (0, True), said
    assert world.count_and_sum("c1") == (4, Decimal(10))
    assert command(world, "replay", "9/9/9")[0] == 2


def test_random_damage_never_writes_a_wrong_row(world: SinkWorld) -> None:
    chance = random.Random(SEED)
    whole = encode(batch_of([Event("c1", value="1", event_id=f"e{i}") for i in range(5)]))
    for _ in range(DAMAGED):
        at = chance.randrange(30, len(whole))
        damaged = (
            whole[:at],
            whole[:at] + whole[at + chance.randrange(1, 9) :],
            whole[:at] + chance.randbytes(chance.randrange(1, 9)) + whole[at:],
        )[chance.randrange(3)]
        world.send_bytes(0, damaged)
        world.send_bytes(0, encode(batch_of([Event("c2", value="1")])))
    world.flush()
    world.sink().start()
    world.settle(90)
    assert world.count_and_sum("c2") == (DAMAGED, Decimal(DAMAGED))
    # A byte put into a name may leave a readable message; what the message says then is what is stored.
    sizes = world.rows("SELECT DISTINCT events FROM ingest_batches WHERE events > 1")
    assert sizes in ([], [(5,)])
