"""Watermark → the conditions that a stored event is below it, and not voided below it. Pure."""

from __future__ import annotations

from schemas.watermark import Watermark


def below(watermark: Watermark | None, *, name: str = "below") -> tuple[str, dict[str, object]]:
    """SQL over kafka_epoch, kafka_partition and kafka_offset, and its parameters; None: everything is below.

    A partition that the watermark does not name has nothing below it in its epoch. name: of the parameters, where one
    query asks for two.
    """
    if watermark is None:
        return "1", {}
    partitions = max((*watermark.offsets, *watermark.epochs), default=-1) + 1
    # Arrays count from 1, and what is beyond their end is 0.
    offsets = [watermark.offsets.get(partition, 0) for partition in range(partitions)]
    parameters: dict[str, object] = {f"{name}_epoch": watermark.epoch, f"{name}_offsets": offsets}
    epoch = f"{{{name}_epoch:UInt16}}"
    if watermark.epochs:  # of partitions whose log has lost its end: later than the topic's
        epoch = f"greatest({epoch}, {{{name}_epochs:Array(UInt16)}}[kafka_partition + 1])"
        parameters[f"{name}_epochs"] = [watermark.epochs.get(partition, 0) for partition in range(partitions)]
    condition = (
        f"(kafka_epoch < {epoch} OR (kafka_epoch = {epoch}"
        f" AND kafka_offset < {{{name}_offsets:Array(Int64)}}[kafka_partition + 1]))"
    )
    return condition, parameters


def not_voided(below_condition: str) -> str:
    """SQL over the identity of a row of usage_events: no tombstone that meets the condition names it."""
    identity = "organization_id, customer_id, event_name, identity"
    return f"({identity}) NOT IN (SELECT {identity} FROM usage_voids WHERE {below_condition})"
