"""Which epoch a message is of, where its partition's log has lost its end once and again."""

from __future__ import annotations

from typing import cast

import pytest

from schemas.log_break import LogBreak, break_id, breaks_in, log_id, starts_of
from warehouse import epochs
from warehouse.client import Client
from warehouse.epochs import Break, Epochs

EPOCHS = Epochs("topic", 3, {1: (Break(80, 4), Break(60, 7))})


@pytest.mark.parametrize(("partition", "offset", "epoch"), [(0, 0, 3), (0, 99, 3), (1, 59, 3), (1, 60, 7), (1, 99, 7)])
def test_the_epoch_of_a_message_that_the_log_has_now(partition: int, offset: int, epoch: int) -> None:
    assert EPOCHS.at(partition, offset) == epoch


def test_the_epochs_of_now() -> None:
    assert EPOCHS.own == {1: 7}
    assert (EPOCHS.start(0), EPOCHS.start(1)) == (0, 60)
    assert (EPOCHS.log_id(0), EPOCHS.log_id(1)) == ("topic", "topic/2")


def test_the_epochs_that_the_log_still_has_something_of() -> None:
    assert EPOCHS.in_log(0) == ((0, 3),)
    assert EPOCHS.in_log(1) == ((0, 3), (60, 7))
    again = Epochs("topic", 3, {0: (Break(80, 4), Break(60, 5), Break(90, 6)), 1: (Break(9, 4), Break(0, 5))})
    assert again.in_log(0) == ((0, 3), (60, 5), (90, 6))
    assert again.in_log(1) == ((0, 5),)


@pytest.mark.parametrize("topic_id", ["abc", "a/b", "a/1/2/3", "/"])
def test_the_newest_topic_may_have_slashes_in_its_id(monkeypatch: pytest.MonkeyPatch, topic_id: str) -> None:
    """Kafka's ids are base64."""
    found = {"old": 1, topic_id: 2, f"{topic_id}/0/1/80": 3, "old/0/1/50": 4}
    monkeypatch.setattr(epochs, "epochs", lambda _: found)
    assert epochs.newest_epochs(cast(Client, None)) == Epochs(topic_id, 2, {0: (Break(80, 3),)})


def test_a_log_is_known_by_its_topic_and_how_often_it_lost_its_end() -> None:
    for breaks in (0, 1, 12):
        assert breaks_in(log_id("topic", breaks), "topic") == breaks
    assert breaks_in("another", "topic") is None
    assert breaks_in("topic/x", "topic") is None


def test_starts_are_of_one_topic_and_partition_in_their_order() -> None:
    def of(topic: str, partition: int, number: int, start: int) -> LogBreak:
        return LogBreak(
            id=break_id(topic, partition, number), topic_id=topic, partition=partition, number=number,
            start=start, read_to=0, created_at=0,
        )  # fmt: skip

    found = [of("t", 0, 2, 60), of("t", 0, 1, 80), of("t", 1, 1, 5), of("old", 0, 1, 9)]
    assert starts_of(found, "t", 0) == (80, 60)
    assert starts_of(found, "t", 2) == ()
