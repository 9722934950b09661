"""What reads every event is read once for all who ask meanwhile, and never before they asked."""

from __future__ import annotations

import asyncio

import pytest

from dashboard.counting import Rounds

pytestmark = pytest.mark.anyio


class Counting:
    """A count that ends when it is let go; began: how often."""

    def __init__(self) -> None:
        self.began = self.at_once = self.at_once_max = 0
        self.let_go = asyncio.Event()

    async def count(self) -> int:
        self.began += 1
        number = self.began
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        await self.let_go.wait()
        self.at_once -= 1
        return number


async def asked(rounds: Rounds[int], counting: Counting, times: int) -> list[asyncio.Task[int]]:
    """So many requests, all of them under way."""
    tasks = [asyncio.create_task(rounds.of("acme", counting.count)) for _ in range(times)]
    for _ in range(10):
        await asyncio.sleep(0)
    return tasks


async def test_many_that_ask_share_one_count_and_later_ones_the_next() -> None:
    rounds, counting = Rounds[int](), Counting()
    first = await asked(rounds, counting, 20)
    later = await asked(rounds, counting, 20)
    assert counting.began == 1
    counting.let_go.set()
    assert set(await asyncio.gather(*first)) == {1}
    assert set(await asyncio.gather(*later)) == {2}
    assert (counting.began, counting.at_once_max) == (2, 1)
    assert await rounds.of("acme", counting.count) == 3


async def test_each_key_is_counted_by_itself() -> None:
    rounds, counting = Rounds[int](), Counting()
    tasks = [asyncio.create_task(rounds.of(key, counting.count)) for key in ("a", "b")]
    while counting.at_once < 2:
        await asyncio.sleep(0)
    counting.let_go.set()
    assert sorted(await asyncio.gather(*tasks)) == [1, 2]


async def test_who_goes_away_ends_it_for_nobody_and_an_error_is_everybodys() -> None:
    rounds, counting = Rounds[int](), Counting()
    gone, stays = await asked(rounds, counting, 2)
    gone.cancel()
    counting.let_go.set()
    assert await stays == 1

    async def fails() -> int:
        raise ValueError("no answer")

    for _ in range(2):
        with pytest.raises(ValueError, match="no answer"):
            await rounds.of("acme", fails)
    assert await rounds.of("acme", counting.count) == 2
