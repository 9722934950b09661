"""A point in the log of usage.events: everything before it counts, nothing after it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Watermark:
    """epoch: number of the topic's incarnation, from 1. offsets: partition → next offset, so half-open.

    An event at (e, p, o) is below it when e < epoch, or e = epoch and o < offsets[p].
    """

    epoch: int
    offsets: Mapping[int, int]

    def __hash__(self) -> int:
        return hash((self.epoch, frozenset(self.offsets.items())))

    def covers(self, epoch: int, partition: int, offset: int) -> bool:
        return epoch < self.epoch or (epoch == self.epoch and offset < self.offsets.get(partition, 0))

    def reached_by(self, epoch: int, next_offsets: Mapping[int, int]) -> bool:
        """Whether someone who has everything below next_offsets has everything below this watermark."""
        return epoch > self.epoch or (
            epoch == self.epoch and all(next_offsets.get(p, 0) >= offset for p, offset in self.offsets.items())
        )

    def as_json(self) -> dict[str, object]:
        """The form in invoices: {"epoch": 1, "offsets": {"0": 1871}}."""
        return {"epoch": self.epoch, "offsets": {str(p): o for p, o in sorted(self.offsets.items())}}


@lru_cache(maxsize=1024)
def _shared(epoch: int, offsets: tuple[tuple[str, int], ...]) -> Watermark:
    return Watermark(epoch, MappingProxyType({int(partition): int(offset) for partition, offset in offsets}))


def from_json(document: Mapping[str, Any]) -> Watermark:
    """The watermark of `as_json`; the same object for the same one, as many invoices have one."""
    return _shared(document["epoch"], tuple(document["offsets"].items()))


def lowest(watermarks: Iterable[Watermark]) -> Watermark:
    """What is below all of them. At least one."""
    found = list(watermarks)
    if all(each is found[0] for each in found):
        return found[0]
    epoch = min(each.epoch for each in found)
    offsets = [each.offsets for each in found if each.epoch == epoch]
    partitions = {partition for each in offsets for partition in each}
    return Watermark(epoch, {p: min(each.get(p, 0) for each in offsets) for p in sorted(partitions)})
