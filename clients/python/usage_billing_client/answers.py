"""the gateway's answer → what becomes of the batch. Pure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeVar

import msgspec

from usage_billing_client.errors import EventError

BACKOFF_SECONDS = 0.2
BACKOFF_SECONDS_MAX = 30.0
# A wrong key or address is mended by a person: asking often would not help, and forgetting the events would lose them.
SETTINGS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """Kafka has the batch. unmatched: events of it that no meter reads or whose customer is unknown."""

    unmatched: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """The batch was refused whole. by_index: errors of events. batch: errors of the batch itself."""

    by_index: Mapping[int, tuple[EventError, ...]] = field(default_factory=dict[int, tuple[EventError, ...]])
    batch: tuple[EventError, ...] = ()


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The body is over the gateway's limit (a smaller one than expected, or a proxy's): send it in two."""


@dataclass(frozen=True, slots=True)
class Later:
    """Send it again. seconds: as the gateway asks, None: by our own backoff. reason: for people."""

    reason: str
    seconds: float | None = None


T = TypeVar("T")
Verdict = Accepted | Refused | TooLarge | Later


class _Error(msgspec.Struct):
    index: int | None = None
    field: str | None = None
    code: str = "refused"
    message: str = ""


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str | None = None
    errors: list[_Error] = []


class _Receipt(msgspec.Struct):
    unmatched: int = 0


def verdict(status: int, headers: Mapping[str, str], content: bytes, now: float) -> Verdict:
    """What an HTTP answer means. now: seconds since 1970, for a Retry-After that is a date."""
    if 200 <= status < 300:
        receipt = _decoded(content, _Receipt)
        return Accepted(receipt.unmatched if receipt else 0)
    problem = _decoded(content, _Problem) or _Problem(detail=content[:200].decode(errors="replace"))
    reason = f"{status} {problem.detail or problem.title}".strip()
    if status in (400, 415, 422):
        return _refusal(problem, reason)
    if status == 413:
        return TooLarge()
    asked = retry_after(headers.get("retry-after"), now)
    if asked is None and (300 <= status < 400 or status in (401, 403, 404, 405)):
        asked = SETTINGS_SECONDS
    return Later(reason, asked)


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header, which is a number of seconds or an HTTP date; None without a valid one."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), 3600.0)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - now), 3600.0)
    except (TypeError, ValueError):
        return None


def delay(attempt: int, asked: float | None) -> float:
    """Seconds to wait before attempt `attempt` + 1 (attempts count from 1).

    Full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015): many clients of one gateway that comes back
    spread over the whole time. A time that the gateway asked for is kept, and up to a fifth added.
    """
    if asked is not None:
        return asked * (1 + 0.2 * random.random())
    return random.uniform(0, min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** min(attempt, 20)))


def _refusal(problem: _Problem, reason: str) -> Refused:
    by_index: defaultdict[int, list[EventError]] = defaultdict(list)
    whole: list[EventError] = []
    for error in problem.errors:
        (whole if error.index is None else by_index[error.index]).append(
            EventError(error.field, error.code, error.message)
        )
    if not by_index and not whole:
        whole.append(EventError(None, "refused", reason))
    return Refused({index: tuple(errors) for index, errors in by_index.items()}, tuple(whole))


def _decoded(content: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
