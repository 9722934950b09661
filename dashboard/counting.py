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


def _seen(task: asyncio.Task[Any]) -> None:
    """Nobody may be there any more to hear of an error."""
    if not task.cancelled():
        task.exception()


async def soon(task: asyncio.Task[T], seconds: float) -> T | None:
    """The result, if it is there in time; None: it is not, and goes on being counted. Raises what the counting did."""
    done, _ = await asyncio.wait((task,), timeout=seconds)
    return task.result() if done else None
