"""inputs → the service: no 500, no hang, no growth of memory."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from tests.fuzz.inputs import Input, corpus, field_names, mutated, of_every_route, quoted
from tests.fuzz.world import FuzzWorld

UNDER_WAY = 24
SECONDS_MAX = 20.0
SECONDS_MAX_OF = {"/api/v1/audit": 90.0}
"""It reads every event, and waits until ClickHouse has all that was posted before."""
READ_EVERYTHING = ("/api/v1/audit", "/api/v1/finance/", "/api/v1/usage/duplicates", "/api/v1/usage/export")
"""Asked for a fifth as often as others: three quarters of the time would go into ClickHouse's reading for these."""
WARM_UP = 0.4
"""Part of the run after which memory must not grow: by then every cache has what it holds."""
GROWTH_BYTES_MAX = 96 * 1024 * 1024
FAILURES_MAX = 20
_ADDRESSES = (f"10.{a}.{b}.{c}" for a, b, c in itertools.cycle(itertools.product(range(250), repeat=3)))
"""Of clients: from one alone sign-in would soon hear no more."""


@dataclass(slots=True)
class Outcome:
    """failures: what was answered and the input, as small as it could be made."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    failures: list[tuple[str, Input]] = field(default_factory=list[tuple[str, Input]])
    growth_bytes: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{sum(self.statuses.values())} inputs in {self.seconds:.0f} s ({self.processor_seconds:.0f} s of processor time): {dict(sorted(self.statuses.items()))}"
        ]
        lines.append(f"memory grew by {self.growth_bytes / 1e6:.0f} MB after the warm-up")
        lines += [f"{what}: {found.line()}" for what, found in self.failures]
        return "\n".join(lines)


async def run(world: FuzzWorld, seed: int, count: int, *, progress: bool = False) -> Outcome:
    """The corpus, then so many mutations of it and of a request for every route."""
    chance, outcome, started = random.Random(seed), Outcome(), time.monotonic()
    processor_before = time.process_time()
    seeds = [*corpus(), *of_every_route(world)]
    names = field_names(world, seeds)
    weights = list(itertools.accumulate(0.2 if each.path.startswith(READ_EVERYTHING) else 1.0 for each in seeds))
    seen: set[tuple[str, str, str]] = set()
    warm = 0

    def inputs() -> Iterator[Input]:
        yield from seeds
        for _ in range(count):
            yield mutated(chance, chance.choices(seeds, cum_weights=weights)[0], names)

    async def work(waiting: Iterator[tuple[int, Input]]) -> None:
        nonlocal warm
        for number, each in waiting:
            what, status = await answered(world, each)
            outcome.statuses[status] += 1
            if (
                what
                and len(outcome.failures) < FAILURES_MAX
                and (kind := (what, each.method, _shape(each.path))) not in seen
            ):
                seen.add(kind)
                outcome.failures.append((what, await smallest(world, each, what)))
            if number == int(count * WARM_UP):
                warm = resident_bytes()
            if progress and number % 10_000 == 0:
                print(
                    f"{number} {time.monotonic() - started:.0f} s {resident_bytes() >> 20} MiB",
                    file=sys.stderr,
                    flush=True,
                )

    waiting = iter(enumerate(inputs()))
    await asyncio.gather(*(work(waiting) for _ in range(UNDER_WAY)))
    outcome.growth_bytes = resident_bytes() - warm
    outcome.seconds = time.monotonic() - started
    outcome.processor_seconds = time.process_time() - processor_before
    return outcome


def _shape(path: str) -> str:
    return "/".join(path.split("/")[:4])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def answered(world: FuzzWorld, it: Input) -> tuple[str | None, int]:
    """What is wrong with the answer, None: nothing; and its status, 0 without one."""
    secret = world.settings.admin_key.get_secret_value() if world.settings.admin_key else ""
    statuses, gone = list[int](), asyncio.Event()
    parts = [{"type": "http.request", "body": it.body.replace(b"CSRF", world.csrf_token.encode()), "more_body": it.cut}]
    headers = [
        (name.encode(), value.replace("KEY", secret).replace("COOKIE", world.cookie).encode("latin-1", "replace"))
        for name, value in it.headers
    ]
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": it.method,
        "scheme": "http", "path": it.path, "raw_path": quoted(it.path), "query_string": it.query.encode(), "root_path": "",
        "headers": headers, "client": (next(_ADDRESSES), 1), "server": ("127.0.0.1", 80), "state": {}, "extensions": {},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        if not it.cut:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            stream = any(b"event-stream" in value for _, value in message["headers"])
            if stream:
                gone.set()
        elif not message.get("more_body"):
            gone.set()

    seconds_max = SECONDS_MAX_OF.get(scope["path"], SECONDS_MAX)
    try:
        async with asyncio.timeout(seconds_max):
            await world.app(scope, receive, send)
    except TimeoutError:
        return f"no answer within {seconds_max:g} s", 0
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return repr(error), 0
    status = statuses[0] if statuses else 0
    if status == 0 and not it.cut:
        return "no answer", status
    wrong = status >= 500 and not (status == 503 and world.catalog.full)
    return (str(status) if wrong else None), status


# -- the smallest input that still fails -------------------------------------------------------------------------------


async def smallest(world: FuzzWorld, it: Input, what: str) -> Input:
    """Take parts away for as long as it fails in the same way."""
    again = True
    while again:
        again = False
        for candidate in _smaller(it):
            if (await answered(world, candidate))[0] == what:
                it, again = candidate, True
                break
    return it


def _smaller(it: Input) -> Iterator[Input]:
    for at in range(len(it.headers)):
        yield replace(it, headers=it.headers[:at] + it.headers[at + 1 :])
    pairs = parse_qsl(it.query, keep_blank_values=True)
    for at in range(len(pairs)):
        yield replace(it, query=urlencode(pairs[:at] + pairs[at + 1 :]))
    for parts, joint in ((it.body.split(b"&"), b"&"), (it.body.split(b","), b",")):
        if 1 < len(parts) < 60:
            for at in range(len(parts)):
                yield replace(it, body=joint.join(parts[:at] + parts[at + 1 :]))
    half = len(it.body) // 2
    if half:
        yield replace(it, body=it.body[:half])
        yield replace(it, body=it.body[half:])


def failing(outcomes: Sequence[Outcome]) -> bool:
    return any(outcome.failures or outcome.growth_bytes > GROWTH_BYTES_MAX for outcome in outcomes)
