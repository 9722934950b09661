"""Price models: quantity → unrounded amount, a row a case; and the laws that hold for every quantity."""

from __future__ import annotations

from decimal import ROUND_DOWN, Context, Decimal, FloatOperation, getcontext, localcontext, setcontext
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.graduated import graduated, graduated_charges
from pricing.package import package, packages
from pricing.per_unit import per_unit
from pricing.quantity import NegativeQuantity, priced_quantity
from pricing.tier_charge import TierCharge
from pricing.volume import volume, volume_charges
from schemas.decimals import EXACT
from schemas.product import Tier

D = Decimal


def tiers(*rows):
    return tuple(Tier(up_to=None if up_to is None else D(up_to), unit_amount=D(amount)) for up_to, amount in rows)


API = tiers(("10000", "0.002"), ("100000", "0.001"), (None, "0.0005"))
FONTS = tiers(("5", "7"), ("10", "6.5"), (None, "6"))  # Stripe, "Set up tiered pricing"
FREE_FIRST = tiers(("100", "0"), (None, "0.5"))
ONE = tiers((None, "0.25"))

# fmt: off
GRADUATED = [
    # tiers      quantity          amount
    (API,        "0",              "0"),
    (API,        "1",              "0.002"),
    (API,        "9999",           "19.998"),
    (API,        "10000",          "20"),
    (API,        "10000.000000001", "20.000000000001"),
    (API,        "10001",          "20.001"),
    (API,        "11000",          "21"),
    (API,        "100000",         "110"),
    (API,        "100001",         "110.0005"),
    (API,        "150000",         "135"),
    (FONTS,      "1",              "7"),
    (FONTS,      "5",              "35"),
    (FONTS,      "6",              "41.5"),
    (FONTS,      "20",             "127.5"),
    (FONTS,      "25",             "157.5"),
    (FREE_FIRST, "100",            "0"),
    (FREE_FIRST, "101",            "0.5"),
    (ONE,        "0.5",            "0.125"),
    (ONE,        "1e29",           "2.5e28"),
]
VOLUME = [
    (API,        "0",              "0"),
    (API,        "10000",          "20"),
    (API,        "10001",          "10.001"),
    (API,        "100000",         "100"),
    (API,        "150000",         "75"),
    (FONTS,      "1",              "7"),
    (FONTS,      "5",              "35"),
    (FONTS,      "6",              "39"),
    (FONTS,      "20",             "120"),
    (FONTS,      "25",             "150"),
]
PER_UNIT = [
    # unit amount     quantity       amount
    ("0.001",         "0",           "0"),
    ("5",             "25",          "125"),  # Stripe, "per unit"
    ("0.1",           "0.3",         "0.03"),
    ("0.000000000001", "0.000000001", "0.000000000000000000001"),
    ("999999999999999999.999999999999", "99999999999999999999999999999.999999999", "99999999999999999999999999999899999999000000000.000000000000000000001"),
]
PACKAGE = [
    # amount  size    quantity       amount
    ("10",    "60",   "150",         "30"),  # Stripe, "Transform quantities": 150 minutes are three begun hours
    ("5",     "100",  "0",           "0"),
    ("5",     "100",  "1",           "5"),
    ("5",     "100",  "100",         "5"),
    ("5",     "100",  "100.000000001", "10"),
    ("5",     "100",  "101",         "10"),
    ("5",     "0.5",  "1.25",        "15"),
    ("1",     "1e-9", "1e29",        "1e38"),
]
PRICED = [
    # quantity  included  priced
    ("12000",   "1000",   "11000"),
    ("1000",    "1000",   "0"),
    ("999",     "1000",   "0"),
    ("0",       "0",      "0"),
    ("-5",      "0",      "0"),
    ("-5",      "1000",   "0"),
    ("0.3",     "0.1",    "0.2"),
]
# fmt: on


@pytest.mark.parametrize(("tiers", "quantity", "amount"), GRADUATED)
def test_graduated(tiers, quantity, amount):
    assert graduated(D(quantity), tiers) == D(amount)


@pytest.mark.parametrize(("tiers", "quantity", "amount"), VOLUME)
def test_volume(tiers, quantity, amount):
    assert volume(D(quantity), tiers) == D(amount)


@pytest.mark.parametrize(("unit_amount", "quantity", "amount"), PER_UNIT)
def test_per_unit(unit_amount, quantity, amount):
    assert per_unit(D(quantity), D(unit_amount)) == D(amount)


@pytest.mark.parametrize(("unit_amount", "size", "quantity", "amount"), PACKAGE)
def test_package(unit_amount, size, quantity, amount):
    assert package(D(quantity), D(unit_amount), D(size)) == D(amount)


@pytest.mark.parametrize(("quantity", "included", "priced"), PRICED)
def test_priced_quantity(quantity, included, priced):
    assert priced_quantity(D(quantity), D(included)) == D(priced)


def test_tier_charges_name_their_bounds():
    assert graduated_charges(D(150000), API) == (
        TierCharge(D(0), D(10000), D(10000), D("0.002"), D(20)),
        TierCharge(D(10000), D(100000), D(90000), D("0.001"), D(90)),
        TierCharge(D(100000), None, D(50000), D("0.0005"), D(25)),
    )
    assert graduated_charges(D(10000), API) == (TierCharge(D(0), D(10000), D(10000), D("0.002"), D(20)),)
    assert volume_charges(D(10001), API) == (TierCharge(D(10000), D(100000), D(10001), D("0.001"), D("10.001")),)
    assert graduated_charges(D(0), API) == volume_charges(D(0), API) == ()


@pytest.mark.parametrize("quantity", ["-0.000000001", "NaN", "sNaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    "price",
    [
        lambda quantity: per_unit(quantity, D(1)),
        lambda quantity: package(quantity, D(1), D(1)),
        lambda quantity: graduated(quantity, API),
        lambda quantity: volume(quantity, API),
    ],
    ids=["per_unit", "package", "graduated", "volume"],
)
def test_what_has_no_price(price, quantity):
    with pytest.raises(NegativeQuantity, match="finite and not negative"):
        price(D(quantity))


@pytest.mark.parametrize("quantity", ["NaN", "Infinity", "-Infinity"])
def test_a_quantity_is_a_number(quantity):
    with pytest.raises(NegativeQuantity, match="must be finite"):
        priced_quantity(D(quantity), D(0))


def test_a_float_is_refused():
    with pytest.raises(AttributeError):
        per_unit(0.1, D(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        priced_quantity(D(1), 0.1)  # type: ignore[arg-type]
    with localcontext(EXACT), pytest.raises(FloatOperation):
        assert D(1) < 1.5


def test_the_callers_context_changes_nothing():
    before = getcontext().copy()
    try:
        setcontext(Context(prec=2, rounding=ROUND_DOWN))
        assert per_unit(D("12345.678"), D("0.001")) == D("12.345678")
        assert graduated(D(150001), API) == D("135.0005")
        assert volume(D(150001), API) == D("75.0005")
        assert package(D(12345), D("1.111"), D(10)) == D("1372.085")
        assert packages(D(12345), D(10)) == D(1235)
        assert priced_quantity(D("12345.678"), D("0.001")) == D("12345.677")
        assert graduated_charges(D(12345), API)[1] == TierCharge(D(10000), D(100000), D(2345), D("0.001"), D("2.345"))
        assert volume_charges(D(12345), API)[0].amount == D("12.345")
        assert getcontext().prec == 2
    finally:
        setcontext(before)


QUANTITIES = st.decimals(0, 10**29, places=9, allow_nan=False, allow_infinity=False)
AMOUNTS = st.decimals(0, 10**12, places=12, allow_nan=False, allow_infinity=False)


@st.composite
def tier_tables(draw):
    bounds = sorted(draw(st.sets(st.decimals(D("1e-9"), 10**12, places=9), max_size=5)))
    return tuple(Tier(up_to=bound, unit_amount=draw(AMOUNTS)) for bound in [*bounds, None])


@given(tier_tables(), QUANTITIES)
def test_graduated_is_the_sum_over_its_tiers(table, quantity):
    charges = graduated_charges(quantity, table)
    with localcontext(Context(prec=200)):
        assert sum((charge.quantity for charge in charges), D(0)) == quantity
        assert sum((charge.quantity * charge.unit_amount for charge in charges), D(0)) == graduated(quantity, table)
    assert [(charge.up_to_inclusive, charge.unit_amount) for charge in charges] == [
        (tier.up_to, tier.unit_amount) for tier in table[: len(charges)]
    ]


@given(tier_tables(), QUANTITIES, QUANTITIES)
def test_graduated_never_falls_and_is_never_negative(table, one, other):
    less, more = sorted((one, other))
    assert 0 <= graduated(less, table) <= graduated(more, table)


@given(tier_tables())
def test_graduated_is_continuous_at_every_edge(table):
    grain = D("1e-9")
    for tier, following in pairwise(table):
        with localcontext(Context(prec=200)):
            at = graduated(tier.up_to, table)
            assert at - graduated(tier.up_to - grain, table) == grain * tier.unit_amount
            assert graduated(tier.up_to + grain, table) - at == grain * following.unit_amount


@given(AMOUNTS, QUANTITIES)
def test_one_tier_is_per_unit_in_either_mode(unit_amount, quantity):
    table = (Tier(up_to=None, unit_amount=unit_amount),)
    assert graduated(quantity, table) == volume(quantity, table) == per_unit(quantity, unit_amount)


@given(QUANTITIES, st.decimals(D("1e-9"), 10**12, places=9))
def test_packages_hold_the_quantity_and_none_is_empty(quantity, size):
    count = package(quantity, D(1), size)
    with localcontext(Context(prec=200)):
        assert count == count.to_integral_value()
        assert (count - 1) * size < quantity <= count * size or count == quantity == 0
