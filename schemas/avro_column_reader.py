"""Avro arrays → columns: what fastavro reads, a column at a time instead of a byte at a time.

For the layout that encoders write: an array in one block, lengths that are not negative. Anything else, be it valid or
broken, raises Irregular, and fastavro has the word. Positions are byte offsets; each function returns its column and
the position after it. One that lies beyond the message is found out at the array's end, as there is no byte there.
"""

from __future__ import annotations

from itertools import repeat

import numpy as np

_SMALL = 16  # columns shorter than this are not worth numpy's start
_LONG_BYTES_MAX = 9  # 63 bits; ten bytes may overflow, and no instant has them
_NULL, _BYTES = 0, 2  # branches of ["null", "bytes"], zigzag
# Of a one-byte length: set in one that goes on, or that is negative.
_NOT_PLAIN = 0x81


class Irregular(ValueError):
    """Not for this reader."""


def varint(message: bytes, at: int) -> tuple[int, int]:
    """Avro's int and long."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
        if shift >= 7 * _LONG_BYTES_MAX:
            raise Irregular("a long of ten bytes")


def texts(message: bytes, latin: str, at: int) -> tuple[list[str], int]:
    """An array of strings. latin: the message as Latin-1, of which ASCII strings are cut without decoding each."""
    count, at = _count(message, at)
    if not count:
        return [], at
    first = message[at : at + 1 + (message[at] >> 1)]
    if not message[at] & _NOT_PLAIN and message.startswith(first * count, at):  # all alike, as organizations mostly are
        return [first[1:].decode()] * count, _end(message, at + len(first) * count)
    column: list[str] = []
    start, append = at, column.append
    for _ in repeat(None, count):
        size = message[at]
        if size & _NOT_PLAIN:
            return _long_texts(message, start, count)
        at += 1
        append(latin[at : (at := at + (size >> 1))])
    if not message[start:at].isascii():
        return _long_texts(message, start, count)
    return column, _end(message, at)


def longs(message: bytes, at: int) -> tuple[list[int], int]:
    """An array of longs; quick when all have as many bytes, as instants of our time have."""
    count, at = _count(message, at)
    if count >= _SMALL:
        size = varint(message, at)[1] - at
        items = np.frombuffer(message[at : at + count * size], np.uint8)
        if len(items) == count * size:
            items = items.reshape(count, size)
            if (items[:, -1] < 0x80).all() and (items[:, :-1] >= 0x80).all():
                shifts = np.arange(0, 7 * size, 7, dtype=np.uint64)
                coded = ((items & np.uint8(0x7F)).astype(np.uint64) << shifts).sum(axis=1, dtype=np.uint64)
                column = (coded >> np.uint64(1)).astype(np.int64) ^ -(coded & np.uint64(1)).astype(np.int64)
                return column.tolist(), _end(message, at + count * size)
    some: list[int] = []
    for _ in repeat(None, count):
        number, at = varint(message, at)
        some.append(number)
    return some, _end(message, at) if count else at


def values(message: bytes, at: int) -> tuple[list[bytes | None], int]:
    """An array of ["null", "bytes"]."""
    count, at = _count(message, at)
    column: list[bytes | None] = []
    append = column.append
    for _ in repeat(None, count):
        branch = message[at]
        if branch == _BYTES:
            size = message[at + 1]
            if size & _NOT_PLAIN:
                raise Irregular("more bytes than a decimal has")
            at += 2
            append(message[at : (at := at + (size >> 1))])
        elif branch == _NULL:
            append(None)
            at += 1
        else:
            raise Irregular(f"branch {branch}")
    return column, _end(message, at) if count else at


def _count(message: bytes, at: int) -> tuple[int, int]:
    """Of an array's first block; 0: the array is empty and has ended."""
    count, at = varint(message, at)
    if not 0 <= count <= len(message):
        raise Irregular(f"a block of {count}")
    return count, at


def _end(message: bytes, at: int) -> int:
    if message[at]:
        raise Irregular("a second block")
    return at + 1


def _long_texts(message: bytes, at: int, count: int) -> tuple[list[str], int]:
    """Strings of any length in any script."""
    column: list[str] = []
    for _ in repeat(None, count):
        size, at = varint(message, at)
        if size < 0:
            raise Irregular("a negative length")
        column.append(message[at : at + size].decode())
        at += size
    return column, _end(message, at)
