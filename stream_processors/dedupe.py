"""identities, in log order → which of them come first. Pure.

An identity is known by a 64-bit hash of (organization, customer, event_name, identity); events without one by the hash
of the message that they are in, one for all of them. Two of n ids meet with odds of
n²/2⁶⁵; then a live total is one short until it is reconciled, and nothing else: billing does not read live totals.

Hashes are kept for a horizon of log time in generations; a forgotten one is forgotten whole. Each holds sorted arrays,
merged in doubling levels, so that a whole batch is looked up by bisection in a few of them; before them stands a bitmap
of the hashes' first bits, which most new ids miss: it saves nine tenths of the bisections, and with them the time.
A few hashes, of a run of small messages, are looked up one by one, and wait in a set until they make an array.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]

GENERATIONS = 8  # the horizon is kept to an eighth of itself
FEW = 64  # up to here Python's own loop is faster than starting numpy twenty times
_WAITING_MAX = 1024
_BITMAP_BITS_MIN = 10
_NONE: Hashes = np.empty(0, np.uint64)


def series_seed(organization_id: str, customer_id: str, event_name: str) -> int:
    """Seed of the hashes of a series. NUL is in none of the three, so no two series share one by their spelling."""
    return xxh3_64_intdigest(f"{organization_id}\0{customer_id}\0{event_name}".encode())


def identity_hash(identity: str, seed: int) -> int:
    """64 bits for an identity of the series with that seed."""
    return xxh3_64_intdigest(identity.encode(), seed)


class _Bitmap:
    """A set of the first `bits` bits of hashes: says of a hash that it may be there, or certainly is not."""

    __slots__ = ("_bits", "_map", "bytes", "shift")

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self.shift = 64 - bits
        self.bytes = bytearray(1 << (bits - 3))
        self._map = np.frombuffer(self.bytes, np.uint8)

    @property
    def nbytes(self) -> int:
        return self._map.nbytes

    @property
    def room(self) -> int:
        """Hashes that it takes with one false alarm in eight at most."""
        return len(self._map)

    def add(self, hashes: Hashes) -> None:
        at, bit = self._places(hashes)
        np.bitwise_or.at(self._map, at, bit)

    def may_have(self, hashes: Hashes) -> Mask:
        at, bit = self._places(hashes)
        return (self._map[at] & bit) != 0

    def _places(self, hashes: Hashes) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        place = hashes >> np.uint64(64 - self._bits)
        return (place >> np.uint64(3)).astype(np.intp), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)


@dataclass(slots=True)
class _Generation:
    """Hashes of a stretch of log time, µs. levels: sorted arrays without repeats, the longest first.

    waiting: those that are not in levels yet. count: with them.
    """

    from_us: int
    until_us: int
    levels: list[Hashes] = field(default_factory=list[Hashes])
    waiting: set[int] = field(default_factory=set[int])
    count: int = 0
    bitmap: _Bitmap = field(default_factory=lambda: _Bitmap(_BITMAP_BITS_MIN))

    def add(self, hashes: Hashes) -> None:
        """hashes: sorted, none of them known."""
        self.count += len(hashes)
        self._settle(hashes)

    def add_few(self, hashes: Sequence[int]) -> None:
        """hashes: none of them known."""
        self.count += len(hashes)
        self.waiting.update(hashes)
        if len(self.waiting) >= _WAITING_MAX:
            self.settle()

    def settle(self) -> None:
        """Let none wait."""
        if self.waiting:
            hashes = np.array(sorted(self.waiting), np.uint64)
            self.waiting.clear()
            self._settle(hashes)

    def _settle(self, hashes: Hashes) -> None:
        self.levels.append(hashes)
        while len(self.levels) > 1 and len(self.levels[-2]) < 2 * len(self.levels[-1]):
            self.levels[-2:] = [_merged(self.levels[-2:])]
        self._note(hashes)

    def replace(self, levels: list[Hashes]) -> None:
        """Hold exactly these instead."""
        self.levels = levels
        self.count = sum(map(len, levels))
        self.bitmap = _Bitmap(_BITMAP_BITS_MIN)
        for level in levels:
            self._note(level)

    def known(self, hashes: Hashes) -> Mask:
        """hashes: sorted, which keeps what a bisection reads near to what the one before read."""
        known = self.bitmap.may_have(hashes)
        maybe = hashes[known]
        if len(maybe):
            found = np.zeros(len(maybe), np.bool_)
            for level in self.levels:
                at = np.searchsorted(level, maybe)
                at[at == len(level)] = 0
                found |= level[at] == maybe
            known[known] = found
        return known

    def known_few(self, hashes: Sequence[int]) -> list[int]:
        """Those of them that it has."""
        waiting, bits, shift = self.waiting, self.bitmap.bytes, self.bitmap.shift
        maybe = [each for each in hashes if bits[each >> shift + 3] >> (each >> shift & 7) & 1]
        known = [each for each in maybe if any(_holds(level, each) for level in self.levels)]
        return [*known, *waiting.intersection(hashes)] if waiting else known

    def _note(self, hashes: Hashes) -> None:
        if self.count <= self.bitmap.room:
            self.bitmap.add(hashes)
            return
        self.bitmap = _Bitmap(max(_BITMAP_BITS_MIN, self.count.bit_length() + 4))
        for level in self.levels:
            self.bitmap.add(level)

    def close(self) -> None:
        """Nothing is added any more: one array is looked up faster than several."""
        self.settle()
        if len(self.levels) > 1:
            self.levels = [_merged(self.levels)]


class Dedupe:
    """The identities of one partition over a horizon.

    horizon_us: log time for which an id is known at least. ids_max: the most that are held, whatever the horizon.
    Memory: 10 to 12 bytes an id, 8 more while a level is merged.
    """

    def __init__(self, horizon_us: int, ids_max: int) -> None:
        self._horizon_us = horizon_us
        self._ids_max = ids_max
        self._generations: deque[_Generation] = deque()

    def __len__(self) -> int:
        return sum(generation.count for generation in self._generations)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        levels = sum(level.nbytes for generation in self._generations for level in generation.levels)
        return levels + sum(generation.bitmap.nbytes for generation in self._generations)

    def known_since(self, log_time: int) -> int:
        """Log time, µs, from which on every id is known; log_time itself when none is."""
        return self._generations[0].from_us if self._generations else log_time

    def first_seen(self, hashes: Hashes, log_time: int) -> Mask:
        """For each hash, in log order: whether it is new here and earlier in the same array. The new ones are kept.

        log_time: µs, of the newest of them; never below that of an earlier call.
        """
        if len(hashes) <= FEW:
            return self._first_of_few(hashes.tolist(), log_time)
        if self._generations:
            self._generations[-1].settle()
        unique, first = np.unique(hashes, return_index=True)
        fresh = np.ones(len(unique), np.bool_)
        for generation in self._generations:
            fresh &= ~generation.known(unique)
        mask = np.zeros(len(hashes), np.bool_)
        mask[first[fresh]] = True
        if fresh.any():
            self._open(log_time).add(unique if fresh.all() else unique[fresh])
        return mask

    def _first_of_few(self, hashes: Sequence[int], log_time: int) -> Mask:
        known: set[int] = set()
        for generation in self._generations:
            known.update(generation.known_few(hashes))
        fresh: dict[int, int] = {}  # hash → its first place
        for at, each in enumerate(hashes):
            if each not in known and each not in fresh:
                fresh[each] = at
        mask = np.zeros(len(hashes), np.bool_)
        if fresh:
            mask[list(fresh.values())] = True
            self._open(log_time).add_few(list(fresh))
        return mask

    def restore(self, packs: Iterable[tuple[int, Hashes]]) -> None:
        """Take over what was kept before: (log time, hashes), in any order, repeats allowed."""
        for log_time, hashes in sorted(packs, key=lambda pack: pack[0]):
            generation = self._open(log_time)
            generation.levels.append(hashes)
            generation.count += len(hashes)
        for generation in self._generations:
            # Repeats are dropped within a generation; across generations they do no harm.
            generation.replace([np.unique(np.concatenate(generation.levels))])

    def forget(self, log_time: int) -> int:
        """Drop what is beyond the horizon or too much; the log time, µs, up to which (exclusive) all is forgotten."""
        held = len(self)
        while self._generations:
            oldest = self._generations[0]
            too_old = oldest.until_us < log_time - self._horizon_us
            if not too_old and held <= self._ids_max:
                return oldest.from_us
            held -= oldest.count
            self._generations.popleft()
        return log_time

    def _open(self, log_time: int) -> _Generation:
        """The generation that takes ids of that time."""
        newest = self._generations[-1] if self._generations else None
        if (
            newest is None
            or log_time - newest.from_us >= self._horizon_us // GENERATIONS
            or newest.count >= max(1, self._ids_max // GENERATIONS)
        ):
            if newest is not None:
                newest.close()
            newest = _Generation(log_time, log_time)
            self._generations.append(newest)
        newest.until_us = max(newest.until_us, log_time)
        return newest


def _holds(level: Hashes, number: int) -> bool:
    items = level.data  # its items are Python's ints, compared three times as fast as numpy's
    at = bisect_left(items, number)
    return at < len(items) and items[at] == number


def _merged(levels: list[Hashes]) -> Hashes:
    merged = np.concatenate(levels)
    merged.sort(kind="stable")  # runs that are sorted already are merged, not sorted again
    return merged


def as_hashes(values: list[int]) -> Hashes:
    return np.array(values, np.uint64) if values else _NONE
