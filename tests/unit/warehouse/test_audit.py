"""What an audit says: exact sums, faults with their places, a balance that is one."""

from __future__ import annotations

from decimal import Decimal

import pytest

from schemas.watermark import Watermark
from warehouse.audit import Audit, Conservation, Fault, Tally, document
from warehouse.audit_windows import EventClass

MOST = Decimal("99999999999999999999999999999.999999999")  # 38 digits, as the engine's sums have


def test_sums_are_exact_beyond_the_usual_precision() -> None:
    assert Tally(1, MOST) + Tally(2, MOST.copy_negate()) == Tally(3, Decimal(0))
    assert (Tally(1, MOST) + Tally(1, Decimal("0.000000001"))).text == "100000000000000000000000000000"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("-2.000000000", "-2"),
        ("0E-9", "0"),
        ("1000", "1000"),
        ("0.500000000", "0.5"),
        ("12000.000000001", "12000.000000001"),
    ],
)
def test_values_have_no_trailing_zeros(value: str, text: str) -> None:
    assert Tally(1, Decimal(value)).text == text


def test_a_fault_names_whose_how_much_and_where() -> None:
    fault = Fault("row lost", "default", Tally(2, Decimal("-5.500000000")), ((1, 3, 1871, 0), (1, 3, 1871, 7)))
    assert str(fault) == "row lost of default: 2 events, value -5.5, at 1/3/1871/0, 1/3/1871/7"


def test_it_is_well_only_if_it_balances_and_nothing_is_wrong() -> None:
    classes = {EventClass.BILLED: Tally(2, Decimal(5)), EventClass.DUPLICATE: Tally(1, Decimal(1))}
    good = Conservation("o", Tally(3, Decimal(6)), classes)
    fault = Fault("row lost", "o", Tally(1, Decimal(0)), ((1, 0, 0, 0),))
    end = Watermark(1, {0: 3})
    assert Audit(end, (good,), ()).ok
    assert not Audit(end, (good,), (fault,)).ok
    for accepted in (Tally(4, Decimal(6)), Tally(3, Decimal(7))):
        assert not Audit(end, (Conservation("o", accepted, classes),), ()).ok
    (told,) = document(Audit(end, (good,), (fault,)))["organizations"]
    assert (told["accepted"], told["balances"]) == ({"events": 3, "value": "6"}, True)
    assert told["classes"]["billed"] == {"events": 2, "value": "5"}
    assert told["classes"]["held"] == {"events": 0, "value": "0"}
