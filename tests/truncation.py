"""A stopped broker's data → without its end: what a power cut leaves where the page cache was not written."""

from __future__ import annotations

from pathlib import Path


def cut_log(broker_dir: Path, topic: str, partition: int, offset: int) -> int:
    """Remove the batches of a partition from the one that holds `offset` on; the log's new end.

    broker_dir: of a KafkaBroker that is not running. What the broker can derive from the log it derives again.
    """
    directory = broker_dir / "logs" / f"{topic}-{partition}"
    end = None
    for segment in sorted(directory.glob("*.log")):
        if end is not None:
            segment.unlink()
            continue
        data, at = segment.read_bytes(), 0
        while at + 61 <= len(data):
            base = int.from_bytes(data[at : at + 8], "big")
            last = base + int.from_bytes(data[at + 23 : at + 27], "big")
            if last >= offset:
                end = base
                with segment.open("r+b") as file:
                    file.truncate(at)
                break
            at += 12 + int.from_bytes(data[at + 8 : at + 12], "big")
    for derived in ("*.index", "*.timeindex", "*.txnindex", "*.snapshot"):
        for file in directory.glob(derived):
            file.unlink()
    assert end is not None, f"{topic} {partition} ends before {offset}"
    return end
