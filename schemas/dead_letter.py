"""usage.dead_letters record ⇄ bytes: a message that could not be read, why, and where it is in the log."""

from __future__ import annotations

import base64

import msgspec


class DeadLetter(msgspec.Struct, frozen=True):
    """reason: machine-readable; detail: for people. key, payload: base64 of the message's. found_at: µs since 1970."""

    topic: str
    epoch: int
    partition: int
    offset: int
    reason: str
    detail: str
    key: str
    payload: str
    found_at: int

    @property
    def message(self) -> bytes:
        """The message's own bytes."""
        return base64.b64decode(self.payload)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(DeadLetter)


def base64_text(data: bytes | None) -> str:
    return base64.b64encode(data or b"").decode()


def encode(letter: DeadLetter) -> bytes:
    return _encoder.encode(letter)


def decode(message: bytes) -> DeadLetter:
    """Raises ValueError for bytes that are not a dead letter."""
    return _decoder.decode(message)
