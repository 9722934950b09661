"""slow answers → pages that don't wait for them: what is asked for again is the same counting, not a second one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

KEPT_SECONDS = 2.0
COUNTINGS_MAX = 256


class Countings(Generic[T]):
    """Countings that are under way, and a moment longer: long enough for the part of the page that asks for them."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, tuple[float, asyncio.Task[T]]] = {}

    def begun(self, key: Hashable, count: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The counting of that key. key: all that its result depends on, the organization too."""
        now = time.monotonic()
        for other, (since, task) in list(self._tasks.items()):
            if task.done() and now - since > KEPT_SECONDS:
                del self._tasks[other]
        found = self._tasks.get(key)
        if found is None:
            if len(self._tasks) >= COUNTINGS_MAX:
                self._tasks.pop(next(iter(self._tasks)))
            task = asyncio.create_task(count())
            task.add_done_callback(_seen)
            found = self._tasks[key] = (now, task)
        return found[1]


class Rounds(Generic[T]):
    """Countings that read everything: of a key one runs at a time, and one waits for it, however many ask.

    Who asks while one runs shares the one after it, so an answer is never older than its question.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[T]] = {}
        self._next: dict[Hashable, asyncio.Task[T]] = {}

    async def of(self, key: Hashable, count: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of a counting that begins from now on. Raises what it raises."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._round(key, count))
            task.add_done_callback(_seen)
        # Shielded: who goes away does not end it for the others.
        return await asyncio.shield(task)

    async def _round(self, key: Hashable, count: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if (before := self._running.get(key)) is not None:
            await asyncio.wait((before,))
        self._running[key] = self._next.pop(key)
        try:
            return await count()
        finally:
            del self._running[key]


def _seen(task: asyncio.Task[Any]) -> None:
    """Nobody may be there any more to hear of an error."""
    if not task.cancelled():
        task.exception()


async def soon(task: asyncio.Task[T], seconds: float) -> T | None:
    """The result, if it is there in time; None: it is not, and goes on being counted. Raises what the counting did."""
    done, _ = await asyncio.wait((task,), timeout=seconds)
    return task.result() if done else None
