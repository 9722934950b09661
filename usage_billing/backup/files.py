"""lines ⇄ a compressed file whose size and checksum are known. Written and read front to back."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import zstandard

_PIECE_BYTES = 1 << 20


class DamagedBackup(ValueError):
    """A file is missing, is not as it was written, or is of a format that this version does not read."""


class FileSummary:
    """What a manifest says of a file. size: bytes on disk. sha256: hex, of the same bytes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def add(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)


class CompressedFile:
    """A zstd file that is written front to back; `summary` is whole after `finish`."""

    def __init__(self, file: IO[bytes]) -> None:
        self.summary = FileSummary()
        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=3).compressobj()

    def write(self, data: bytes) -> None:
        self._put(self._compressor.compress(data))

    def finish(self) -> None:
        self._put(self._compressor.flush())

    def _put(self, data: bytes) -> None:
        self.summary.add(data)
        self._file.write(data)


@contextmanager
def compressed(path: Path) -> Generator[CompressedFile]:
    """A new file for its owner's eyes only, finished after the block. Raises FileExistsError, OSError."""
    with path.open("xb") as raw:
        path.chmod(0o600)
        file = CompressedFile(raw)
        yield file
        file.finish()


def check_file(path: Path, size: int, sha256: str) -> None:
    """Raises DamagedBackup unless the file is what was written."""
    found = FileSummary()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                found.add(piece)
    except OSError as error:
        raise DamagedBackup(f"{path}: {error.strerror}") from error
    if (found.size, found.sha256) != (size, sha256):
        raise DamagedBackup(f"{path}: {found.size} bytes with SHA-256 {found.sha256}, not {size} with {sha256}")


def lines(path: Path) -> Iterator[bytes]:
    """Each line of a zstd file without its end. Raises DamagedBackup."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as stream:
            rest = b""
            while piece := stream.read(_PIECE_BYTES):
                *whole, rest = (rest + piece).split(b"\n")
                yield from whole
    except (OSError, zstandard.ZstdError) as error:
        raise DamagedBackup(f"{path}: {error}") from error
    if rest:
        raise DamagedBackup(f"{path}: its last line has no end")
