"""A loop over records, invoices or customers: what fails for one is that one's problem, and the others go on.

Two ways, for two kinds of loop: `OneByOne.one` around the work on one thing, and `OneByOne.by_halves` around work on
many things at once (one query, one insert), which is divided until what fails is alone. Both end at once for what
concerns everybody, `shared`: Kafka or ClickHouse away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import structlog
from prometheus_client import Counter

log = structlog.get_logger(__name__)

FAILURES = Counter(
    "usage_loop_failures_total",
    "Records, invoices or customers that a loop could not handle; the others continued.",
    ["loop"],
)
_REASON_LENGTH_MAX = 500
_TOLD_MAX = 10_000

Item = TypeVar("Item")
Result = TypeVar("Result")


def reason_of(error: BaseException) -> str:
    """An exception in one line, for the record that failed."""
    text = " ".join(str(error).split())[:_REASON_LENGTH_MAX]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class OneByOne:
    """One loop. name: for log and metric. shared: whether an exception concerns everybody, which ends the loop.

    on_failure: called with the key and the reason of what failed; it keeps the reason where people see it. Safe to use
    from several threads where on_failure is.
    """

    def __init__(
        self,
        name: str,
        shared: Callable[[Exception], bool],
        on_failure: Callable[[str, str], object] | None = None,
    ) -> None:
        self._name = name
        self._shared = shared
        self._on_failure = on_failure
        self._told: OrderedDict[str, str] = OrderedDict()

    @contextmanager
    def one(self, key: str) -> Generator[None]:
        """Around the work on the thing with this key; an exception that is not shared ends here, told."""
        try:
            yield
        except Exception as error:
            if self._concerns_everybody(error):
                raise
            self.failed(key, error)

    def failed(self, key: str, error: Exception) -> None:
        """Tell that the thing with this key failed. A loop that runs for ever logs the same failure once."""
        reason = reason_of(error)
        FAILURES.labels(self._name).inc()
        if self._told.get(key) != reason:
            log.error("one_failed", loop=self._name, key=key, reason=reason, exc_info=error)
            self._told[key] = reason
            if len(self._told) > _TOLD_MAX:
                self._told.popitem(last=False)
        if self._on_failure is not None:
            self._on_failure(key, reason)

    def by_halves(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result], key: Callable[[Item], str]
    ) -> Iterator[Result]:
        """Results of `work` on all items at once, or, where that fails, on halves of them, down to one.

        Work that failed may be done again on the same items: it must not matter that it was begun.
        """
        if not items:
            return
        try:
            result = work(items)
        except Exception as error:
            if self._concerns_everybody(error):
                raise
            if len(items) == 1:
                self.failed(key(items[0]), error)
                return
            log.warning("halved", loop=self._name, items=len(items), reason=reason_of(error))
            middle = len(items) // 2
            yield from self.by_halves(items[:middle], work, key)
            yield from self.by_halves(items[middle:], work, key)
            return
        yield result

    def _concerns_everybody(self, error: Exception) -> bool:
        return isinstance(error, MemoryError) or self._shared(error)
