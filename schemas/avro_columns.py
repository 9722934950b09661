"""columns → Avro arrays: the bytes that fastavro writes, made a column at a time instead of an item at a time.

Avro: an array is a block of (count, items) and a 0; a string is its length and its UTF-8; int and long are zigzag
varints; a union is the branch's index and the value. Measured against fastavro for 1,000 events: 0.3 ms for 1.8 ms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_END = b"\x00"  # a block of no items ends an array
_NULL = b"\x00"  # union branch 0
_BYTES_BRANCH = b"\x02"  # union branch 1, zigzag
_CACHED_MAX = 200_000
_EIGHT_BYTES_MIN, _EIGHT_BYTES_END = 1 << 48, 1 << 55  # longs whose varint has 8 bytes: as µs, 1978 to 3111
_SHIFTS = np.arange(0, 56, 7, dtype=np.uint64)
_MORE = np.array([0x80] * 7 + [0], dtype=np.uint64)
_SMALL = 16  # columns shorter than this are not worth numpy's start


def varint(number: int) -> bytes:
    """Avro's int and long: zigzag, then 7 bits a byte, the least first."""
    left = (number << 1) ^ (number >> 63)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


class _Cache(dict[str, bytes]):
    """Text → its Avro string. Usage repeats its names; what is new is encoded once."""

    def __missing__(self, text: str) -> bytes:
        if len(self) >= _CACHED_MAX:
            self.clear()
        encoded = self[text] = text_item(text)
        return encoded


class _Values(dict["bytes | None", bytes]):
    """Value → its union ["null", "bytes"]."""

    def __missing__(self, value: bytes | None) -> bytes:
        if len(self) >= _CACHED_MAX:
            self.clear()
        encoded = self[value] = _NULL if value is None else _BYTES_BRANCH + varint(len(value)) + value
        return encoded


_names, _values = _Cache(), _Values()


def text_item(text: str) -> bytes:
    """One string."""
    raw = text.encode()
    return varint(len(raw)) + raw


def array(count: int, items: bytes) -> bytes:
    """An array of one block, or of none."""
    return varint(count) + items + _END if count else _END


def names(column: Sequence[str]) -> bytes:
    """An array of strings that repeat."""
    return array(len(column), b"".join(map(_names.__getitem__, column)))


def texts(column: Sequence[str]) -> bytes:
    """An array of strings that don't repeat."""
    return array(len(column), b"".join(map(text_item, column)))


def values(column: Sequence[bytes | None]) -> bytes:
    """An array of ["null", "bytes"]."""
    return array(len(column), b"".join(map(_values.__getitem__, column)))


def longs(column: Sequence[int]) -> bytes:
    """An array of longs; quick when all are instants of our time."""
    if len(column) >= _SMALL and min(column) >= _EIGHT_BYTES_MIN and max(column) < _EIGHT_BYTES_END:
        doubled = np.array(column, dtype=np.uint64)[:, None] << np.uint64(1)  # zigzag of what is not negative
        items = ((doubled >> _SHIFTS) & np.uint64(0x7F) | _MORE).astype(np.uint8).tobytes()
    else:
        items = b"".join(map(varint, column))
    return array(len(column), items)
