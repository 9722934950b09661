"""A stopped broker's data → without its end: what a power cut leaves where the page cache was not written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aiokafka.record.memory_records import MemoryRecords

_HEADER_BYTES = 61


def cut_log(broker_dir: Path, topic: str, partition: int, offset: int) -> int:
    """Remove the batches of a partition from the one that holds `offset` on; the log's new end.

    broker_dir: of a KafkaBroker that is not running. What the broker can derive from the log it derives again.
    """
    directory = _directory(broker_dir, topic, partition)
    end = None
    for segment in sorted(directory.glob("*.log")):
        if end is not None:
            segment.unlink()
            continue
        for at, base, batch in _batches(segment):
            if base + int.from_bytes(batch[23:27], "big") >= offset:
                end = base
                with segment.open("r+b") as file:
                    file.truncate(at)
                break
    for derived in ("*.index", "*.timeindex", "*.txnindex", "*.snapshot"):
        for file in directory.glob(derived):
            file.unlink()
    assert end is not None, f"{topic} {partition} ends before {offset}"
    return end


def read_log_files(broker_dir: Path, topic: str, partition: int) -> Iterator[tuple[int, bytes]]:
    """(offset, value) of every whole message of a partition, in its order; an empty value is b""."""
    for segment in sorted(_directory(broker_dir, topic, partition).glob("*.log")):
        for _, _, data in _batches(segment):
            batch = MemoryRecords(data).next_batch()
            assert batch is not None
            if not getattr(batch, "is_control_batch", False):
                yield from ((record.offset, record.value or b"") for record in batch)


def _directory(broker_dir: Path, topic: str, partition: int) -> Path:
    return broker_dir / "logs" / f"{topic}-{partition}"


def _batches(segment: Path) -> Iterator[tuple[int, int, bytes]]:
    """(place in the file, first offset, bytes) of each batch that was written whole."""
    data, at = segment.read_bytes(), 0
    while at + _HEADER_BYTES <= len(data):
        after = at + 12 + int.from_bytes(data[at + 8 : at + 12], "big")
        if after > len(data) or after == at + 12:
            return
        yield at, int.from_bytes(data[at : at + 8], "big"), data[at:after]
        at = after
