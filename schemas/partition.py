"""(organization, customer) → partition: the one function that gateway, aggregator, sink, ledger and tests share."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest


def customer_key(organization_id: str, customer_id: str) -> str:
    """The bytes that are hashed, and the key of ledger and totals records.

    NUL is refused in both IDs, so two pairs never have the same key.
    """
    return f"{organization_id}\0{customer_id}"


def partition_of(organization_id: str, customer_id: str, partitions: int) -> int:
    """The partition, 0 ≤ p < partitions, that holds everything of a customer."""
    return xxh3_64_intdigest(customer_key(organization_id, customer_id).encode()) % partitions
