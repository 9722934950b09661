"""A point in the log of usage.events: everything before it counts, nothing after it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Watermark:
    """epoch: number of the topic's incarnation, from 1. offsets: partition → next offset, so half-open.

    An event at (e, p, o) is below it when e < epoch, or e = epoch and o < offsets[p].
    """

    epoch: int
    offsets: Mapping[int, int]

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
