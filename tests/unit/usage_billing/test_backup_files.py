"""The files of a backup say exactly what was saved, and damage anywhere is found before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_billing.backup import tables
from usage_billing.backup.files import DamagedBackup, check_file, compressed, lines
from usage_billing.backup.manifest import Manifest, SavedPartition, SavedTopic, read_manifest, write_manifest
from usage_billing.backup.records import Record, decode, encode
from usage_billing.backup.run import check_backup
from usage_billing.backup.topics import READ_ORDER, WRITE_ORDER, saved_records

data = st.none() | st.binary(max_size=40) | st.text(max_size=20).map(str.encode)


@given(
    st.builds(
        Record,
        st.integers(0, 100),
        st.integers(0, 2**60),
        st.none() | st.integers(1, 2**42),
        data,
        data,
        st.lists(st.tuples(st.text(max_size=8), data), max_size=3).map(tuple),
    )
)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    line = encode(record)
    assert b"\n" not in line
    assert decode(line) == record


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b'{"partition":0,"offset":0,"timestamp":1,"key":{"base64":"?"},"headers":[],"value":""}'],
)
def test_a_line_that_is_no_record(line: bytes) -> None:
    with pytest.raises(DamagedBackup):
        decode(line)


def saved(directory: Path, *records: Record, **claims: int) -> Manifest:
    """A backup of these records of one partition; claims: what the manifest says otherwise than the file."""
    with compressed(directory / "catalog.jsonl.zst") as out:
        for record in records:
            out.write(encode(record) + b"\n")
    partition = SavedPartition(0, 0, claims.get("next_offset", len(records)), claims.get("records", len(records)))
    topic = SavedTopic("catalog", "catalog.jsonl.zst", out.summary.size, out.summary.sha256, [partition])
    manifest = Manifest(created_at="2026-01-01T00:00:00Z", software="0", watermark=None, topics=[topic], tables=[])
    write_manifest(directory, manifest)
    return manifest


def records(*offsets: int, partition: int = 0) -> list[Record]:
    return [Record(partition, offset, 1, b"k", b"v") for offset in offsets]


def test_a_backup_that_is_whole(tmp_path: Path) -> None:
    made = saved(tmp_path, *records(0, 1, 2))
    assert check_backup(tmp_path) == made
    assert list(saved_records(tmp_path, made.topics[0])) == records(0, 1, 2)


@pytest.mark.parametrize(
    ("found", "claims", "reason"),
    [
        (records(0, 1), {"records": 3, "next_offset": 3}, "2 records of partition 0, not 3"),
        (records(0, 1, 2), {"records": 2}, "3 records of partition 0, not 2"),
        (records(1, 0), {}, "offset 0 of partition 0 is out of order"),
        (records(0, 0), {}, "offset 0 of partition 0 is out of order"),
        (records(0, 7), {}, "offset 7 of partition 0 is out of order"),
        (records(0, partition=4), {}, "partition 4 is unknown"),
        ([], {"records": 1, "next_offset": 1}, "no record of partition 0, not 1"),
    ],
)
def test_records_that_the_manifest_does_not_say(
    tmp_path: Path, found: list[Record], claims: dict[str, int], reason: str
) -> None:
    saved(tmp_path, *found, **claims)
    with pytest.raises(DamagedBackup, match=reason):
        check_backup(tmp_path)


def test_each_changed_byte_and_each_cut_is_found(tmp_path: Path) -> None:
    topic = saved(tmp_path, *records(*range(50))).topics[0]
    file = tmp_path / topic.file
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedBackup):
            check_file(file, topic.size, topic.sha256)
        file.write_bytes(whole[:at])
        with pytest.raises(DamagedBackup):
            check_file(file, topic.size, topic.sha256)
    file.unlink()
    with pytest.raises(DamagedBackup, match="No such file"):
        check_file(file, topic.size, topic.sha256)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedBackup, match="not whole"):
        read_manifest(tmp_path)
    saved(tmp_path)
    path = tmp_path / "manifest.json"
    fields = json.loads(path.read_text())
    for changed, reason in (
        ({"version": 2}, "format version 2"),
        ({"format": "zip"}, "no backup"),
        ({"topics": None}, "topics"),
    ):
        path.write_text(json.dumps(fields | changed))
        with pytest.raises(DamagedBackup, match=reason):
            read_manifest(tmp_path)
    path.write_text("{")
    with pytest.raises(DamagedBackup):
        read_manifest(tmp_path)


def test_lines_longer_than_a_piece(tmp_path: Path) -> None:
    long = [b"x" * 3_000_000, b"", b"y"]
    with compressed(tmp_path / "file") as out:
        out.write(b"\n".join(long) + b"\n")
    assert list(lines(tmp_path / "file")) == long
    with compressed(tmp_path / "cut") as out:
        out.write(b"a\nb")
    with pytest.raises(DamagedBackup):
        list(lines(tmp_path / "cut"))


def test_topics_are_saved_and_restored_alike() -> None:
    assert sorted(READ_ORDER) == sorted(WRITE_ORDER)
    assert WRITE_ORDER[-1] == "catalog"  # without one nothing is billed
    assert not set(tables.SAVED) & {*tables.PROJECTED, *tables.PASSING}
