"""The first of an identity, and no other: against a plain set, over horizons, within bounds of memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_processors.dedupe import GENERATIONS, Dedupe, as_hashes, identity_hash, series_seed

HOUR = 3_600_000_000
FOR_EVER = 10**15


@pytest.mark.parametrize(("few", "waiting_max"), [(0, 1024), (5, 4), (64, 1024)], ids=["many", "both", "few"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.integers(0, 40), max_size=20), max_size=30))
def test_equals_a_set_in_batches_of_any_size(
    few: int, waiting_max: int, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_processors.dedupe.FEW", few)
    monkeypatch.setattr("stream_processors.dedupe._WAITING_MAX", waiting_max)
    dedupe, seen = Dedupe(FOR_EVER, 10**6), set[int]()
    for number, batch in enumerate(batches):
        expected: list[bool] = []
        for value in batch:
            expected.append(value not in seen)
            seen.add(value)
        # spread over the range, so that all bits of the bitmap are used
        hashes = as_hashes([value * (2**64 // 41) for value in batch])
        assert dedupe.first_seen(hashes, number).tolist() == expected
        assert len(dedupe) == len(seen)


def test_knows_ids_for_the_horizon_and_forgets_generations_after_it() -> None:
    dedupe = Dedupe(8 * HOUR, 10**6)
    for hour in range(24):
        assert dedupe.first_seen(as_hashes([hour]), hour * HOUR).all()
        dedupe.forget(hour * HOUR)
        for known in range(max(0, hour - 8), hour):
            assert not dedupe.first_seen(as_hashes([known]), hour * HOUR).any(), (hour, known)
        assert hour * HOUR - dedupe.known_since(hour * HOUR) <= 9 * HOUR
    assert dedupe.first_seen(as_hashes([10]), 24 * HOUR).all()
    assert len(dedupe) <= 11


def test_holds_no_more_ids_than_it_may_and_drops_the_oldest() -> None:
    ids_max = 8_000
    dedupe, rng = Dedupe(FOR_EVER, ids_max), np.random.default_rng(1)
    batches = [rng.integers(0, 2**64, 500, dtype=np.uint64) for _ in range(40)]
    for number, batch in enumerate(batches):
        dedupe.first_seen(batch, number)
        forgotten = dedupe.forget(number)
        assert len(dedupe) <= ids_max
        assert forgotten == dedupe.known_since(number)
    assert len(dedupe) >= ids_max - 2 * ids_max // GENERATIONS
    assert not dedupe.first_seen(batches[-1], 40).any()
    assert dedupe.first_seen(batches[0], 40).all()


def test_a_few_at_a_time_are_known_with_those_that_came_in_thousands() -> None:
    dedupe, rng = Dedupe(8 * HOUR, 10**7), np.random.default_rng(1)
    batches = [rng.integers(0, 2**64, size, dtype=np.uint64) for size in (3_000, 20, 1, 64, 65, 2_000) * 30]
    for number, batch in enumerate(batches):
        assert dedupe.first_seen(batch, number * HOUR // 40).all()
    for batch in batches:
        few = np.concatenate([batch[:30], rng.integers(0, 2**64, 30, dtype=np.uint64)])
        expected = [False] * len(batch[:30]) + [True] * 30
        assert dedupe.first_seen(few, len(batches) * HOUR // 40).tolist() == expected


def test_takes_at_most_24_bytes_an_id() -> None:
    dedupe, rng = Dedupe(FOR_EVER, 10**7), np.random.default_rng(1)
    for number in range(150):
        dedupe.first_seen(rng.integers(0, 2**64, 2_000, dtype=np.uint64), number)
        if number >= 10:
            assert dedupe.nbytes <= 16 * len(dedupe)  # 8 more while two levels are merged
    assert len(dedupe) == 300_000


def test_restores_what_was_packed_in_any_order_with_repeats() -> None:
    dedupe = Dedupe(8 * HOUR, 10**6)
    dedupe.restore([(2 * HOUR, as_hashes([5, 3])), (0, as_hashes([1, 2])), (HOUR, as_hashes([2, 3]))])
    assert dedupe.first_seen(as_hashes([1, 2, 3, 5, 4]), 2 * HOUR).tolist() == [False] * 4 + [True]
    assert dedupe.known_since(2 * HOUR) == 0


def test_hashes_tell_series_and_identities_apart() -> None:
    seeds = {series_seed(*names) for names in (("o", "c", "e"), ("oc", "", "e"), ("o", "ce", ""), ("o", "e", "c"))}
    assert len(seeds) == 4
    hashes = {identity_hash(identity, seed) for seed in seeds for identity in ("c:1", "k:1:0", "k:1:1")}
    assert len(hashes) == 12
    # What is written is read by a later version: the hash of an identity never changes.
    assert identity_hash("c:evt_1", series_seed("default", "cus_1", "api_request")) == 1711333786338282490
