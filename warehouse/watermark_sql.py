"""Watermark → the condition that a stored event is below it. Pure."""

from __future__ import annotations

from schemas.watermark import Watermark


def below(watermark: Watermark | None) -> tuple[str, dict[str, object]]:
    """SQL over kafka_epoch, kafka_partition and kafka_offset, and its parameters; None: everything is below.

    A partition that the watermark does not name has nothing below it in its epoch.
    """
    if watermark is None:
        return "1", {}
    partitions = max(watermark.offsets, default=-1) + 1
    # Arrays count from 1, and what is beyond their end is 0.
    offsets = [watermark.offsets.get(partition, 0) for partition in range(partitions)]
    condition = (
        "(kafka_epoch < {below_epoch:UInt16} OR (kafka_epoch = {below_epoch:UInt16}"
        " AND kafka_offset < {below_offsets:Array(Int64)}[kafka_partition + 1]))"
    )
    return condition, {"below_epoch": watermark.epoch, "below_offsets": offsets}
