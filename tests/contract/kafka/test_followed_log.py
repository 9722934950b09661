"""A followed log: loaded before start() returns, and every append is answered by the verdict that all followers share."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest

from deploy.local.kafka import KafkaBroker
from runtime.kafka.acked_producer import AckedProducer, Record
from runtime.kafka.followed_log import FollowedLog, LogRecord, LogUnavailable, RecordTooLarge
from schemas.settings import Settings
from tests.contract.kafka.topics import create_topic, delete_records
from tests.waiting import until


class Unavailable(LogUnavailable):
    """Of these tests' log."""


class Names:
    """Each name is given once: the first record wins. A record `die` ends its follower.

    apply_seconds: that each record takes.
    """

    def __init__(self, apply_seconds: float) -> None:
        self.given: dict[bytes, tuple[int, int]] = {}
        self._apply_seconds = apply_seconds

    def apply(self, record: LogRecord) -> bool:
        time.sleep(self._apply_seconds)
        if record.value == b"die":
            raise ValueError("a record that can't be applied")
        return self.given.setdefault(record.value, record[:2]) == record[:2]


@contextmanager
def following(
    settings: Settings,
    topic: str,
    partitions: int = 1,
    *,
    seconds: float = 10.0,
    more_partitions: bool = False,
    apply_seconds: float = 0.0,
) -> Generator[tuple[FollowedLog[bool], Names]]:
    names = Names(apply_seconds)
    log = FollowedLog(
        settings.kafka_properties,
        topic,
        names.apply,
        name="names",
        unavailable=Unavailable,
        partitions=partitions,
        more_partitions=more_partitions,
        seconds=seconds,
        delivery_seconds=seconds,
        producer={"message.max.bytes": 10_000},
    )
    log.start()
    try:
        yield log, names
    finally:
        log.stop()


def verdict(log: FollowedLog[bool], value: bytes, partition: int = 0, seconds: float = 30.0) -> bool:
    return log.verdict_of(log.append(partition, None, value), time.monotonic() + seconds)


@pytest.fixture
def settings(kafka: KafkaBroker) -> Settings:
    return Settings(kafka_bootstrap_servers=kafka.bootstrap_servers)


def test_of_two_writers_the_first_in_the_log_wins_for_every_follower(settings: Settings, unique: str) -> None:
    create_topic(settings, unique, 2)
    with following(settings, unique, 2) as (one, of_one), following(settings, unique, 2) as (other, of_other):
        appended = [(log.append(0, b"key", b"%d" % number)) for number in range(1000) for log in (one, other)]
        deadline = time.monotonic() + 60
        verdicts = [one.verdict_of(verdict, deadline) for verdict in appended]
        assert all(sorted(verdicts[at : at + 2]) == [False, True] for at in range(0, len(verdicts), 2))
        assert verdict(one, b"elsewhere", partition=1)
        until(lambda: one.next_offsets == other.next_offsets == {0: 2000, 1: 1})
        assert of_one.given == of_other.given
        assert one.check() is None
    with following(settings, unique, 2) as (late, of_late):
        assert late.next_offsets == {0: 2000, 1: 1}, "start() returns when the log is loaded"
        assert of_late.given == of_one.given
        assert not verdict(late, b"0")


def test_a_record_too_large_is_refused_and_others_are_written(settings: Settings, unique: str) -> None:
    create_topic(settings, unique)
    with following(settings, unique) as (log, _):
        with pytest.raises(RecordTooLarge):
            log.append(0, None, b"x" * 20_000)
        assert verdict(log, b"small")


def test_a_log_takes_as_long_to_load_as_its_records_need(settings: Settings, unique: str) -> None:
    """They are read in one batch, and each of them is progress."""
    create_topic(settings, unique)
    AckedProducer(settings.kafka_properties, delivery_seconds=20).write(unique, [Record(0, None, b"x")] * 40)
    with following(settings, unique, seconds=2.0, apply_seconds=0.1) as (log, _):
        assert log.next_offsets == {0: 40}


def test_a_log_without_its_beginning_is_refused(settings: Settings, unique: str) -> None:
    create_topic(settings, unique)
    AckedProducer(settings.kafka_properties, delivery_seconds=20).write(unique, [Record(0, None, b"x")] * 3)
    delete_records(settings, unique, 0, 2)
    with pytest.raises(Unavailable, match="begins at offset 2"), following(settings, unique):
        pass


def test_a_log_with_other_partitions_is_refused_unless_more_may_be_there(settings: Settings, unique: str) -> None:
    create_topic(settings, unique, 2)
    for partitions, more in ((1, False), (3, False), (3, True)):
        with (
            pytest.raises(Unavailable, match=f"2 partitions instead of {partitions}"),
            following(settings, unique, partitions, more_partitions=more),
        ):
            pass
    with following(settings, unique, 1, more_partitions=True) as (log, _):
        assert verdict(log, b"written")


def test_a_topic_that_does_not_exist_is_refused(settings: Settings, unique: str) -> None:
    with pytest.raises(Unavailable, match="could not be read"), following(settings, unique):
        pass


def test_a_follower_that_dies_answers_its_writers_and_is_not_ready(settings: Settings, unique: str) -> None:
    create_topic(settings, unique)
    with following(settings, unique) as (log, _):
        with pytest.raises(Unavailable, match="can't be read any more"):
            verdict(log, b"die")
        assert "is not followed" in (log.check() or "")
        with pytest.raises(Unavailable, match="can't be read any more"):
            verdict(log, b"later")


def test_an_outage_is_reported_in_time_and_ends_nothing(kafka_factory: Callable[[], KafkaBroker], unique: str) -> None:
    broker = kafka_factory()
    broker.start()
    settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
    create_topic(settings, unique)
    with following(settings, unique):  # a broker that has just started may take longer than the time-out below
        pass
    with following(settings, unique, seconds=3) as (log, names):
        until(lambda: is_written(log), 30)
        broker.kill()
        with pytest.raises(Unavailable, match="not written"):
            verdict(log, b"away")
        broker.start()
        until(lambda: is_written(log), 30)
        assert b"again" in names.given


def is_written(log: FollowedLog[bool]) -> bool:
    try:
        verdict(log, b"again")
    except Unavailable:
        return False
    return True
