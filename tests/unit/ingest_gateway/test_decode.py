"""What a batch may be: one verdict from both readers, every error named, values exact."""

import json
import re
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_gateway import decode
from ingest_gateway.decode import InvalidBatch, NotJson, decode_events
from schemas.period import InvalidTimestamp, parse_rfc3339
from schemas.usage_batch import decimal_of

GOOD: dict[str, Any] = {"customer_id": "cus_1", "event_name": "api_request", "timestamp": "2026-03-30T12:00:00Z"}
MARCH_30 = 1_774_872_000_000_000


def body(*events: object) -> bytes:
    return json.dumps({"events": list(events)}).encode()


def spelled(value: str) -> bytes:
    """A batch of one event whose value is spelled just so."""
    return body(GOOD)[:-3] + b', "value": ' + value.encode() + b"}]}"


def errors(batch: bytes) -> list[tuple[int | None, str | None, str]]:
    with pytest.raises(InvalidBatch) as refused:
        decode_events(batch)
    return [(error.index, error.field, error.code) for error in refused.value.errors]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", "1"),
        ("0", "0"),
        ("-0", "0"),
        ("-1.5", "-1.5"),
        ("0.1", "0.1"),
        ('"0.1"', "0.1"),
        ("1e3", "1000"),
        ("1E-9", "0.000000001"),
        ("1.500000000000", "1.5"),
        ("999999999999999999.999999999", "999999999999999999.999999999"),
        ('"-999999999999999999.999999999"', "-999999999999999999.999999999"),
        ("0e999999", "0"),
    ],
)
def test_value_is_the_decimal_that_is_spelled(value: str, expected: str) -> None:
    (read,) = decode_events(spelled(value)).value
    assert read is not None
    assert decimal_of(read) == Decimal(expected)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("true", "value_type"),
        ("{}", "value_type"),
        ("[1]", "value_type"),
        ('""', "value_invalid"),
        ('"1_000"', "value_invalid"),
        ('" 1"', "value_invalid"),
        ('"abc"', "value_invalid"),
        ('"٣"', "value_invalid"),
        ("NaN", "value_not_finite"),
        ('"NaN"', "value_not_finite"),
        ("Infinity", "value_not_finite"),
        ("-Infinity", "value_not_finite"),
        ('"inf"', "value_not_finite"),
        ("1e400", "value_out_of_range"),
        ("1e18", "value_out_of_range"),
        ("-1000000000000000000", "value_out_of_range"),
        ("1e-10", "value_too_many_decimals"),
        ("0.12345678901234567890", "value_too_many_decimals"),
        ("1" * 5000, "value_too_long"),
    ],
)
def test_value_refused(value: str, code: str) -> None:
    assert errors(spelled(value)) == [(0, "value", code)]


@pytest.mark.parametrize("value", ["null", None])
def test_value_may_be_absent(value: str | None) -> None:
    assert decode_events(body(GOOD) if value is None else spelled(value)).value == [None]


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2026-03-30T12:00:00Z", MARCH_30),
        ("2026-03-30T12:00:00.25Z", MARCH_30 + 250_000),
        ("2026-03-30T14:00:00+02:00", MARCH_30),
        ("2026-03-30t12:00:00z", MARCH_30),
        ("2026-03-30T12:00:00.0000004Z", MARCH_30),
    ],
)
def test_timestamp(timestamp: str, expected: int) -> None:
    assert decode_events(body({**GOOD, "timestamp": timestamp})).timestamp == [expected]


# What is wrong with one event → field, code
EVENT_ERRORS: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("no customer", {"customer_id": ...}, "customer_id", "customer_id_missing"),
    ("no event_name", {"event_name": ...}, "event_name", "event_name_missing"),
    ("no timestamp", {"timestamp": ...}, "timestamp", "timestamp_missing"),
    ("empty customer", {"customer_id": ""}, "customer_id", "customer_id_empty"),
    ("empty event_name", {"event_name": ""}, "event_name", "event_name_empty"),
    ("empty event_id", {"event_id": ""}, "event_id", "event_id_empty"),
    ("long customer", {"customer_id": "é" * 257}, "customer_id", "customer_id_too_long"),
    ("long event_id", {"event_id": "x" * 257}, "event_id", "event_id_too_long"),
    ("customer is a number", {"customer_id": 7}, "customer_id", "customer_id_type"),
    ("customer is null", {"customer_id": None}, "customer_id", "customer_id_type"),
    ("NUL in customer", {"customer_id": "a\0b"}, "customer_id", "customer_id_nul_character"),
    ("half a surrogate pair", {"customer_id": "\ud800"}, "customer_id", "customer_id_unicode"),
    ("timestamp is a number", {"timestamp": 1774872000}, "timestamp", "timestamp_type"),
    ("timestamp without offset", {"timestamp": "2026-03-30T12:00:00"}, "timestamp", "timestamp_missing_offset"),
    ("no such day", {"timestamp": "2026-02-30T12:00:00Z"}, "timestamp", "timestamp_invalid"),
    ("no timestamp at all", {"timestamp": "yesterday"}, "timestamp", "timestamp_invalid"),
    ("unknown field", {"event_ID": "a"}, "event_ID", "unknown_field"),
    ("properties are a list", {"properties": []}, "properties", "properties_type"),
    ("property is a number", {"properties": {"a": 1}}, "properties.a", "properties_type"),
    ("long property", {"properties": {"a": "x" * 257}}, "properties.a", "properties_too_long"),
    ("long property key", {"properties": {"k" * 65: "x"}}, "properties." + "k" * 65, "properties_too_long"),
    ("21 properties", {"properties": {str(i): "" for i in range(21)}}, "properties", "properties_too_many"),
]


@pytest.mark.parametrize(
    ("change", "field", "code"), [row[1:] for row in EVENT_ERRORS], ids=[row[0] for row in EVENT_ERRORS]
)
def test_event_refused(change: dict[str, Any], field: str | None, code: str) -> None:
    event = {name: value for name, value in {**GOOD, **change}.items() if value is not ...}
    assert errors(body(GOOD, event, GOOD)) == [(1, field, code)]


def test_every_error_of_every_event_is_named() -> None:
    batch = body({"customer_id": "", "value": True}, GOOD, 7)
    assert errors(batch) == [
        (0, "customer_id", "customer_id_empty"),
        (0, "event_name", "event_name_missing"),
        (0, "timestamp", "timestamp_missing"),
        (0, "value", "value_type"),
        (2, None, "event_type"),
    ]


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (b"{}", "events_missing"),
        (b"[]", "events_missing"),
        (b"7", "events_missing"),
        (b'{"events": {}}', "events_type"),
        (b'{"events": []}', "events_count"),
        (body(*[GOOD] * 1001), "events_count"),
        (body(GOOD)[:-1] + b', "more": 1}', "unknown_field"),
    ],
)
def test_batch_refused(batch: bytes, code: str) -> None:
    ((index, _, found),) = errors(batch)
    assert (index, found) == (None, code)


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"{",
        b"\xff\xfe",
        body(GOOD) + b"x",
        b'{"events":[],"\xed":1}',
        b'{"events":["\xed"]}',
        b"[" * 100_000,
        b'{"events":' + b"[" * 100_000,
        spelled("[" * 100_000),
        spelled("01"),
    ],
)
def test_not_json(batch: bytes) -> None:
    with pytest.raises(NotJson):
        decode_events(batch)


def test_a_thousand_events_are_a_batch() -> None:
    assert len(decode_events(body(*[GOOD] * 1000))) == 1000


# -- one verdict -------------------------------------------------------------------------------------------------------

_DIGITS = st.text("0123456789", max_size=9)
INSTANTS = st.builds(
    "{}{}{:02}:{:02}:{}{}{}".format,
    st.sampled_from(["2026-03-31", "2016-12-31", "1970-01-01", "1969-12-31", "0001-01-01", "9999-12-31", "2026-02-29"]),
    st.sampled_from("Tt _"),
    st.integers(0, 24),
    st.integers(0, 60),
    st.sampled_from(["00", "59", "60", "61", "5"]),
    st.one_of(st.just(""), _DIGITS.map(lambda digits: f".{digits}"), st.just(".9999999"), st.just(".0000001")),
    st.sampled_from(["Z", "z", "", "+00:00", "-00:00", "+14:00", "-23:59", "+24:00", "+0530", "+00", "+01:60"]),
)


_YEAR_1, _YEAR_9999 = parse_rfc3339("0001-01-01T00:00:00Z"), parse_rfc3339("9999-12-31T23:59:59.999999Z")


def _query_instant(text: str) -> int | None:
    try:
        return parse_rfc3339(text)
    except InvalidTimestamp:
        return None


@given(st.lists(INSTANTS, min_size=1, max_size=3), st.booleans())
def test_both_readers_and_the_query_parser_read_one_instant(texts: list[str], escaped: bool) -> None:
    """Hot path, naming path and queries: one verdict and, where it is yes, one µs."""
    instants = [_query_instant(text) for text in texts]
    batch = body(*({**GOOD, "timestamp": text} for text in texts))
    if escaped:
        batch = re.sub(rb"\.(?=[0-9])", rb"\\u002e", batch)
    try:
        slow = decode.decode_naming_errors(batch).timestamp
    except InvalidBatch as refused:
        slow = None
        wrong = [error.index for error in refused.errors]
        assert wrong == [index for index, instant in enumerate(instants) if instant is None]
    assert slow == (None if None in instants else instants)
    try:
        fast = decode._decode_fast(batch).timestamp
    except (ValueError, decode._Unfit):
        assert slow is None or any(":60" in text for text in texts)  # a leap second takes the slow way
    else:
        # Instants outside the years 1 to 9999 in UTC are no instants; those that pass here are refused by check_batch.
        assert fast == slow or not _YEAR_1 <= min(fast) <= max(fast) <= _YEAR_9999


TEXTS = st.one_of(st.text(max_size=4), st.sampled_from(["", "a\0", "x" * 256, "x" * 257, "é" * 256]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.floats(allow_nan=False))
VALUES = st.one_of(SCALARS, st.sampled_from(["1e5", "0.0000000001", "-12.5", "1e18", 10**18, "NaN", [], {}]))
TIMESTAMPS = st.one_of(
    SCALARS,
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from(["2026-03-30 12:00:00+02:00", "2026-03-30T23:59:60Z", "2026-03-30T12:00:00", "2026-03-30T12:00Z"]),
)
EVENTS = st.fixed_dictionaries(
    {"customer_id": TEXTS, "event_name": TEXTS, "timestamp": TIMESTAMPS},
    optional={
        "value": VALUES,
        "event_id": st.one_of(TEXTS, st.none()),
        "properties": st.one_of(st.none(), st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers()), max_size=3)),
        "extra": st.just(1),
    },
)


@pytest.mark.parametrize(
    ("batch", "index", "field"),
    [
        (b'{"events":[{}],"\\ud800":1}', None, "\\ud800"),
        (b'{"events":[{"\\udc00x":1}]}', 0, "\\udc00x"),
        (b'{"events":[{"properties":{"\\ud800":1}}]}', 0, "properties.\\ud800"),
    ],
)
def test_half_of_a_surrogate_pair_in_a_name_is_named(batch: bytes, index: int | None, field: str) -> None:
    assert (index, field) in [error[:2] for error in errors(batch)]


MEGABYTES_4 = 4 * 1024 * 1024


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (b'{"events":[' + b"1," * (MEGABYTES_4 // 2) + b"1]}", "events_count"),
        (b'{"events":[{"value":[' + b"1," * (MEGABYTES_4 // 2) + b"1]}]}", "event_too_long"),
        (b'{"events":[{' + b",".join(b'"%d":1' % n for n in range(9000)) + b"}]}", "unknown_field"),
    ],
    ids=["numbers", "one event", "fields"],
)
def test_a_large_batch_that_is_wrong_is_named_up_to_the_limits(batch: bytes, code: str) -> None:
    found = errors(batch)
    assert len(found) < 30
    assert code in {error[2] for error in found}


@pytest.mark.parametrize(
    ("spelled", "microseconds"),
    [
        ("2026-03-31T23:59:59.9999999Z",      1_775_001_599_999_999),
        ("2026-03-31T23:59:59.9999994Z",      1_775_001_599_999_999),
        ("2026-03-31T23:59:59.999999999+00:00", 1_775_001_599_999_999),
        ("2016-12-31T23:59:60Z",              1_483_228_799_000_000),
    ],
)  # fmt: skip
def test_the_last_instant_of_a_month_stays_in_it(spelled: str, microseconds: int) -> None:
    """.NET and Azure write seven digits, Go nine: what is finer than a microsecond is cut."""
    batch = body({**GOOD, "timestamp": spelled}, GOOD)
    assert decode_events(batch).timestamp == [microseconds, MARCH_30]
    assert decode.decode_naming_errors(batch).timestamp == [microseconds, MARCH_30]


@pytest.mark.parametrize("at", [0, 40, 99])
def test_seven_decimals_are_found_anywhere_in_a_long_batch(at: int) -> None:
    events = [GOOD] * 100
    events[at] = {**GOOD, "timestamp": "2026-03-31T23:59:59.9999999Z"}
    batch = body(*events)
    assert len(batch) > decode._SCANNED_BYTES_MAX  # pyright: ignore[reportPrivateUsage]
    assert decode_events(batch).timestamp[at] == 1_775_001_599_999_999


@pytest.mark.parametrize(
    "spelled", [r"59\u002e9999999Z", r"59\u002E9999999Z", r"59.999\u00399999Z", r"59.999999\u0039Z"]
)
def test_decimals_may_be_spelled_as_escapes(spelled: str) -> None:
    batch = body({**GOOD, "timestamp": "?"}).replace(b"?", b"2026-03-31T23:59:" + spelled.encode())
    assert decode_events(batch).timestamp == [1_775_001_599_999_999]


def test_a_nul_behind_another_escape_is_refused() -> None:
    batch = body({**GOOD, "event_name": "?", "customer_id": "a\0b"}).replace(b"?", rb"\u0030")
    assert decode.decode_valid(batch) is None


@given(st.lists(st.one_of(EVENTS, SCALARS), max_size=3))
def test_both_readers_agree(events: list[object]) -> None:
    batch = json.dumps({"events": events}).encode()
    try:
        fast = decode._decode_fast(batch)  # pyright: ignore[reportPrivateUsage]
    except (msgspec.MsgspecError, UnicodeDecodeError, decode._Unfit):  # pyright: ignore[reportPrivateUsage]
        fast = None
    try:
        slow = decode.decode_naming_errors(batch)  # pyright: ignore[reportPrivateUsage]
    except (InvalidBatch, NotJson):
        slow = None
    # A leap second is the slow reader's alone.
    assert fast == slow or (fast is None and b":60Z" in batch)


VOID = {"customer_id": "cus_1", "event_name": "calls", "event_id": "e1", "reason": "a load test"}


def test_a_void_names_its_event() -> None:
    assert decode.decode_void(json.dumps(VOID).encode()).model_dump() == VOID


@pytest.mark.parametrize(
    ("posted", "expected"),
    [
        pytest.param({**VOID, "event_id": ""}, [("event_id", "event_id_empty")], id="empty"),
        pytest.param(
            {"event_id": "e1"}, [(n, f"{n}_missing") for n in ("customer_id", "event_name", "reason")], id="missing"
        ),
        pytest.param({**VOID, "more": 1}, [("more", "unknown_field")], id="unknown"),
        pytest.param({**VOID, "reason": "x" * 257}, [("reason", "reason_too_long")], id="too long"),
        pytest.param([VOID], [(None, "body_type")], id="a list"),
    ],
)
def test_every_error_of_a_void_is_named(posted: object, expected: list[tuple[str | None, str]]) -> None:
    with pytest.raises(InvalidBatch) as refused:
        decode.decode_void(json.dumps(posted).encode())
    assert [(error.field, error.code) for error in refused.value.errors] == expected
    assert {error.index for error in refused.value.errors} == {None}


def test_a_void_that_is_no_json_is_refused() -> None:
    with pytest.raises(NotJson):
        decode.decode_void(b"{")
