"""What a range of places may look like."""

import pytest

from stream_processors.refill import InvalidRange, Range, parse_range


@pytest.mark.parametrize(("text", "found"), [
    ("1/3/1871",             Range(1, 3, 1871, 1871)),
    ("1/3/1871/0",           Range(1, 3, 1871, 1871)),  # an event, as the audit names it
    ("1/3/1871..1900",       Range(1, 3, 1871, 1900)),
    ("1/3/1871..1/3/1900",   Range(1, 3, 1871, 1900)),
    ("1/3/1871/5..1/3/1900/9", Range(1, 3, 1871, 1900)),
    ("1/3/0..0",             Range(1, 3, 0, 0)),
])  # fmt: skip
def test_places_and_ranges(text: str, found: Range) -> None:
    assert parse_range(text) == found


@pytest.mark.parametrize("text", [
    "", "3/1871", "1/3/x", "1/3/5..", "1/3/5..4", "1/3/5..2/3/6", "1/3/5..1/4/6", "-1/3/5", "1/3/5-6", "1/3/5..6..7",
])  # fmt: skip
def test_no_ranges(text: str) -> None:
    with pytest.raises(InvalidRange):
        parse_range(text)
