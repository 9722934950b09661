"""A point in the log of usage.events: everything before it counts, nothing after it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

NO_EPOCHS: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Watermark:
    """epoch: number of the topic's incarnation, from 1. offsets: partition → next offset, so half-open.

    epochs: partition → its epoch, where its log has lost its end and goes on in one of its own, a later one.
    An event at (e, p, o) is below it when e < its partition's epoch, or e is that epoch and o < offsets[p].
    """

    epoch: int
    offsets: Mapping[int, int]
    epochs: Mapping[int, int] = field(default_factory=lambda: NO_EPOCHS)

    def __hash__(self) -> int:
        return hash((self.epoch, frozenset(self.offsets.items()), frozenset(self.epochs.items())))

    def place(self, partition: int) -> tuple[int, int]:
        """(epoch, next offset) of a partition."""
        return self.epochs.get(partition, self.epoch), self.offsets.get(partition, 0)

    def covers(self, epoch: int, partition: int, offset: int) -> bool:
        return (epoch, offset) < self.place(partition)

    def reached_by(self, other: Watermark) -> bool:
        """Whether someone who has everything below the other has everything below this one."""
        return other.epoch >= self.epoch and all(other.place(p) >= self.place(p) for p in self.offsets)

    def as_json(self) -> dict[str, object]:
        """The form in invoices: {"epoch": 1, "offsets": {"0": 1871}}, with "epochs": {"0": 2} where there are any."""
        document: dict[str, object] = {
            "epoch": self.epoch,
            "offsets": {str(p): o for p, o in sorted(self.offsets.items())},
        }
        if self.epochs:
            document["epochs"] = {str(p): e for p, e in sorted(self.epochs.items())}
        return document


@lru_cache(maxsize=1024)
def _shared(epoch: int, offsets: tuple[tuple[str, int], ...], epochs: tuple[tuple[str, int], ...]) -> Watermark:
    def by_partition(pairs: tuple[tuple[str, int], ...]) -> Mapping[int, int]:
        return MappingProxyType({int(partition): int(number) for partition, number in pairs})

    return Watermark(epoch, by_partition(offsets), by_partition(epochs) if epochs else NO_EPOCHS)


def from_json(document: Mapping[str, Any]) -> Watermark:
    """The watermark of `as_json`; the same object for the same one, as many invoices have one."""
    epochs = tuple(document.get("epochs", {}).items())
    return _shared(int(document["epoch"]), tuple(document["offsets"].items()), epochs)


def lowest(watermarks: Iterable[Watermark]) -> Watermark:
    """The offsets below all of them. At least one."""
    found = list(watermarks)
    if all(each is found[0] for each in found):
        return found[0]
    epoch = min(each.epoch for each in found)
    partitions = sorted({partition for each in found for partition in each.offsets})
    places = {partition: min(each.place(partition) for each in found) for partition in partitions}
    return Watermark(
        epoch,
        {partition: offset for partition, (_, offset) in places.items()},
        {partition: of_partition for partition, (of_partition, _) in places.items() if of_partition != epoch},
    )
