"""A letter is never too large to be sent: it would hold everything behind it."""

from __future__ import annotations

from schemas import dead_letter as codec
from stream_processors.dead_letters import PAYLOAD_BYTES_MAX, dead_letter

BROKER_MESSAGE_BYTES_MAX = 1_048_588


def test_the_message_and_its_place_are_kept() -> None:
    letter = dead_letter("t", (1, 2, 3), b"k", b"\0\xff", "refused", "why", 4)
    read = codec.decode(codec.encode(letter))
    assert read == letter
    assert (read.epoch, read.partition, read.offset, read.message, read.key) == (1, 2, 3, b"\0\xff", "aw==")


def test_a_very_long_message_is_cut_and_says_so() -> None:
    letter = dead_letter("t" * 249, (1, 2, 3), b"k" * 10**6, b"x" * 10**7, "refused", "y" * 10**6, 4)
    assert letter.message == b"x" * PAYLOAD_BYTES_MAX
    assert letter.detail.startswith(f"(the first {PAYLOAD_BYTES_MAX} of {10**7} bytes are kept)")
    assert len(codec.encode(letter)) < BROKER_MESSAGE_BYTES_MAX


def test_no_message_is_an_empty_one() -> None:
    assert dead_letter("t", (1, 2, 3), None, None, "framing", "", 4).message == b""
