"""product, quantities → lines and total: a row a case, the total last."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.invoice_lines import MissingMeter, price_lines
from pricing.proration import prorated_share
from pricing.quantity import NegativeQuantity
from schemas.decimals import EXACT
from schemas.period import Cycle, calendar_month_containing, parse_rfc3339
from schemas.product import ProductSpec

D = Decimal


@dataclass(frozen=True)
class Named:
    name: str
    unit: str


METERS = {"api": Named("API requests", "requests"), "gb": Named("Storage", "GB"), "sms": Named("SMS", "messages")}


def rows(*tiers):
    return [{"up_to": up_to, "unit_amount": amount} for up_to, amount in tiers]


API_TIERS = rows(("10000", "0.002"), ("100000", "0.001"), (None, "0.0005"))
GRADUATED = {"meter_id": "api", "model": "graduated", "tiers": API_TIERS}
GRADUATED_1000_INCLUDED = {**GRADUATED, "included_units": "1000"}
VOLUME = {"meter_id": "api", "model": "volume", "tiers": API_TIERS}
PER_GB = {"meter_id": "gb", "model": "per_unit", "unit_amount": "0.1"}
SMS_PACKAGE = {"meter_id": "sms", "model": "package", "unit_amount": "5", "package_size": "100", "included_units": "50"}
FEE = {"model": "flat_fee", "amount": "49.00"}
MINIMUM = {"model": "minimum", "amount": "100.00"}


def product(currency, *prices):
    return ProductSpec.model_validate({"name": "Product", "currency": currency, "prices": prices})


def compute(currency, prices, quantities, share=None):
    numbers = {meter: D(quantity) for meter, quantity in quantities.items()}
    return price_lines(product(currency, *prices), numbers, meters=METERS, proration=share)


THIRD = Fraction(1, 3)
# fmt: off
TOTALS = [
    # currency prices                               quantities                  share  amounts by line            total
    ("eur", [GRADUATED],                            {"api": "150000"},          None,  ["135.00"],                "135.00"),
    ("eur", [GRADUATED_1000_INCLUDED],              {"api": "12000"},           None,  ["21.00"],                 "21.00"),
    ("eur", [GRADUATED_1000_INCLUDED],              {"api": "1000"},            None,  ["0.00"],                  "0.00"),
    ("eur", [GRADUATED],                            {"api": "0"},               None,  ["0.00"],                  "0.00"),
    ("eur", [GRADUATED],                            {"api": "10000"},           None,  ["20.00"],                 "20.00"),
    ("eur", [GRADUATED],                            {"api": "100000"},          None,  ["110.00"],                "110.00"),
    ("eur", [GRADUATED],                            {"api": "-7"},              None,  ["0.00"],                  "0.00"),
    ("eur", [VOLUME],                               {"api": "150000"},          None,  ["75.00"],                 "75.00"),
    ("eur", [PER_GB],                               {"gb": D("0.1") + D("0.2")}, None, ["0.03"],                  "0.03"),
    ("eur", [PER_GB],                               {"gb": "0.05"},             None,  ["0.01"],                  "0.01"),
    ("eur", [PER_GB],                               {"gb": "0.049999999"},      None,  ["0.00"],                  "0.00"),
    ("eur", [SMS_PACKAGE],                          {"sms": "151"},             None,  ["10.00"],                 "10.00"),
    ("eur", [SMS_PACKAGE],                          {"sms": "150"},             None,  ["5.00"],                  "5.00"),
    # One rounding a line, and the total is what the lines say: 0.005 + 0.005 is 0.01 + 0.01.
    ("eur", [{**PER_GB, "unit_amount": "0.005"}, {**PER_GB, "meter_id": "sms", "unit_amount": "0.005"}],
                                                    {"gb": "1", "sms": "1"},    None,  ["0.01", "0.01"],          "0.02"),
    # Usage in the order of the prices, the top-up, flat fees: wherever they stand in the product.
    ("eur", [FEE, MINIMUM, PER_GB, GRADUATED],      {"gb": "10", "api": "10000"}, None, ["1.00", "20.00", "79.00", "49.00"], "149.00"),
    ("eur", [MINIMUM, FEE],                         {},                         None,  ["100.00", "49.00"],       "149.00"),
    ("eur", [GRADUATED, MINIMUM],                   {"api": "150000"},          None,  ["135.00"],                "135.00"),
    ("eur", [{**PER_GB, "unit_amount": "1"}, MINIMUM], {"gb": "100"},           None,  ["100.00"],                "100.00"),
    ("eur", [{**PER_GB, "unit_amount": "1"}, MINIMUM], {"gb": "99.99"},         None,  ["99.99", "0.01"],         "100.00"),
    # Flat fee and minimum by elapsed time, usage and included units in full.
    ("eur", [FEE],                                  {},                         THIRD, ["16.33"],                 "16.33"),
    ("eur", [FEE],                                  {},                         D("0.5"), ["24.50"],              "24.50"),
    ("eur", [FEE],                                  {},                         Fraction(0), ["0.00"],            "0.00"),
    ("eur", [GRADUATED_1000_INCLUDED, MINIMUM, FEE], {"api": "12000"},          THIRD, ["21.00", "12.33", "16.33"], "49.66"),
    # Stripe's chargeable steps.
    ("jpy", [{**PER_GB, "unit_amount": "0.15"}],    {"gb": "10"},               None,  ["2"],                     "2"),
    ("jpy", [{**PER_GB, "unit_amount": "0.149"}],   {"gb": "10"},               None,  ["1"],                     "1"),
    ("kwd", [{**PER_GB, "unit_amount": "0.5124"}],  {"gb": "10"},               None,  ["5.120"],                 "5.120"),
    ("kwd", [{**PER_GB, "unit_amount": "0.5125"}],  {"gb": "10"},               None,  ["5.130"],                 "5.130"),
    ("isk", [{**PER_GB, "unit_amount": "0.55"}],    {"gb": "10"},               None,  ["6.00"],                  "6.00"),
    ("isk", [FEE],                                  {},                         None,  ["49.00"],                 "49.00"),
    ("isk", [{"model": "flat_fee", "amount": "49.5"}], {},                      None,  ["50.00"],                 "50.00"),
    ("eur", [],                                     {},                         None,  [],                        "0.00"),
]
# fmt: on


@pytest.mark.parametrize(("currency", "prices", "quantities", "share", "amounts", "total"), TOTALS)
def test_totals(currency, prices, quantities, share, amounts, total):
    computed = compute(currency, prices, quantities, share)
    assert [str(line.amount) for line in computed.lines] == amounts
    assert str(computed.total) == total
    assert computed.total_minor == sum(line.amount_minor for line in computed.lines)


def test_a_line_says_how_it_came_about():
    [line, top_up, fee] = compute("eur", [FEE, GRADUATED_1000_INCLUDED, MINIMUM], {"api": "12000.50"}).lines
    assert (line.meter_id, line.price_index, line.model, line.currency) == ("api", 1, "graduated", "eur")
    assert (line.quantity, line.included, line.priced_quantity) == (D("12000.5"), D(1000), D("11000.5"))
    assert line.description == "API requests: 12,000.5 requests, 1,000 included"
    assert (line.amount, line.amount_minor) == (D("21.00"), 2100)  # 21.0005 unrounded
    assert [(t.from_exclusive, t.up_to_inclusive, t.quantity, t.unit_amount, t.amount) for t in line.tiers] == [
        (D(0), D(10000), D(10000), D("0.002"), D(20)),
        (D(10000), D(100000), D("1000.5"), D("0.001"), D("1.0005")),
    ]
    assert (top_up.meter_id, top_up.price_index, top_up.model) == (None, 2, "minimum")
    assert (top_up.description, top_up.amount_minor, top_up.tiers) == ("Top-up to the minimum", 7900, ())
    assert (fee.meter_id, fee.price_index, fee.model, fee.quantity) == (None, 0, "flat_fee", 1)
    assert fee.description == "Flat fee"


def test_a_negative_total_stays_visible():
    [line] = compute("eur", [GRADUATED_1000_INCLUDED], {"api": "-7"}).lines
    assert (line.quantity, line.priced_quantity, line.tiers) == (D(-7), 0, ())


def test_a_prorated_fee_says_so():
    assert [line.description for line in compute("eur", [FEE], {}, THIRD).lines] == ["Flat fee, prorated"]
    assert [line.description for line in compute("eur", [FEE], {}, Fraction(1)).lines] == ["Flat fee"]


def test_a_missing_quantity_or_name_is_no_zero():
    with pytest.raises(MissingMeter, match="meter api of price 0"):
        compute("eur", [GRADUATED], {"gb": "1"})
    with pytest.raises(MissingMeter, match="meter api of price 0"):
        price_lines(product("eur", GRADUATED), {"api": D(1)}, meters={})


@pytest.mark.parametrize("share", [Fraction(-1, 2), Fraction(3, 2), D("1.000001")])
def test_a_share_is_part_of_a_cycle(share):
    with pytest.raises(ValueError, match="proration must be from 0 to 1"):
        compute("eur", [FEE], {}, share)


def test_a_quantity_must_be_a_number():
    with pytest.raises(NegativeQuantity):
        compute("eur", [GRADUATED], {"api": "NaN"})


def test_the_callers_context_changes_nothing():
    with localcontext(Context(prec=2)):
        assert str(compute("eur", [GRADUATED, FEE], {"api": "150001"}).total) == "184.00"


@given(
    st.decimals(-(10**28), 10**28, places=9),
    st.sampled_from(
        [GRADUATED_1000_INCLUDED, VOLUME, {**PER_GB, "meter_id": "api"}, {**SMS_PACKAGE, "meter_id": "api"}]
    ),
    st.sampled_from(["eur", "jpy", "kwd", "isk"]),
    st.fractions(0, 1),
)
def test_a_total_is_the_sum_of_chargeable_lines_and_never_below_the_minimum(quantity, price, currency, share):
    computed = compute(currency, [price, MINIMUM, FEE], {"api": quantity}, share)
    step = {"eur": 1, "jpy": 1, "kwd": 10, "isk": 100}[currency]
    assert all(line.amount_minor % step == 0 and line.amount_minor >= 0 for line in computed.lines)
    assert Fraction(computed.total) == sum(Fraction(line.amount) for line in computed.lines)
    [minimum] = compute(currency, [MINIMUM], {}, share).lines or [None]
    usage = [line.amount_minor for line in computed.lines if line.model != "flat_fee"]
    assert sum(usage) >= (minimum.amount_minor if minimum else 0)


# fmt: off
us = parse_rfc3339
APRIL = Cycle(us("2024-04-01T00:00:00Z"), us("2024-05-01T00:00:00Z"))
MARCH_IN_BERLIN = calendar_month_containing("Europe/Berlin", us("2024-03-15T00:00:00Z"))
SHARES = [
    (APRIL,           "2024-04-01T00:00:00Z",      "2024-05-01T00:00:00Z", Fraction(1)),
    (APRIL,           "2024-04-01T00:00:00Z",      "2024-04-16T00:00:00Z", Fraction(1, 2)),
    (APRIL,           "2024-04-01T00:00:00Z",      "2024-04-01T00:00:01Z", Fraction(1, 30 * 86_400)),
    (APRIL,           "2024-04-21T00:00:00Z",      "2024-09-01T00:00:00Z", Fraction(1, 3)),
    (APRIL,           "2024-05-01T00:00:00Z",      "2024-05-02T00:00:00Z", Fraction(0)),
    (APRIL,           "2024-06-01T00:00:00Z",      "2024-07-01T00:00:00Z", Fraction(0)),
    # March of 2024 has 743 hours in Berlin.
    (MARCH_IN_BERLIN, "2024-03-31T00:00:00+01:00", "2024-04-01T00:00:00+02:00", Fraction(23, 743)),
]
# fmt: on


@pytest.mark.parametrize(("cycle", "start", "until", "share"), SHARES)
def test_prorated_share(cycle, start, until, share):
    assert prorated_share(cycle, us(start), us(until)) == share


def test_a_flat_fee_is_prorated_by_seconds():
    # Cancelled 10 days, 6 hours and 1 second into April: 49.00 × 885601 / 2592000 = 16.7416...
    share = prorated_share(APRIL, APRIL.start_us, us("2024-04-11T06:00:01Z"))
    assert share == Fraction(885_601, 2_592_000)
    assert str(compute("eur", [FEE], {}, share).total) == "16.74"


VALUES = st.lists(st.decimals(-(10**9), 10**12, places=9), max_size=30)


@given(VALUES, st.randoms(use_true_random=False), st.integers(1, 7))
def test_an_invoice_does_not_depend_on_the_order_or_the_batches_of_its_events(values, chance, size):
    def billed(events):
        batches = [events[start : start + size] for start in range(0, len(events), size)]
        with localcontext(EXACT):
            total = sum((sum(batch, D(0)) for batch in batches), D(0))
        greatest = max((max(batch) for batch in batches), default=D(0))
        return compute("eur", [GRADUATED_1000_INCLUDED, PER_GB, MINIMUM, FEE], {"api": total, "gb": greatest})

    shuffled = list(values)
    chance.shuffle(shuffled)
    assert billed(shuffled) == billed(values)


# A year's invoices by hand: the same product in a long, a short and a partial month.
YEAR = [
    # active until              api          lines                                total
    ("2024-05-01T00:00:00Z",    "12000",     ["21.00", "79.00", "49.00"],         "149.00"),
    ("2024-04-16T00:00:00Z",    "12000",     ["21.00", "29.00", "24.50"],         "74.50"),
    ("2024-04-16T00:00:00Z",    "150000",    ["134.50", "24.50"],                 "159.00"),
    ("2024-04-01T00:00:00.000001Z", "12000", ["21.00", "0.00"],                   "21.00"),
]  # fmt: skip


@pytest.mark.parametrize(("until", "quantity", "amounts", "total"), YEAR)
def test_a_partial_cycle_prorates_fee_and_minimum_and_nothing_else(until, quantity, amounts, total):
    share = prorated_share(APRIL, APRIL.start_us, us(until))
    computed = compute("eur", [GRADUATED_1000_INCLUDED, MINIMUM, FEE], {"api": quantity}, share)
    assert ([str(line.amount) for line in computed.lines], str(computed.total)) == (amounts, total)


def test_amounts_are_exact_to_twelve_decimals():
    price = {**PER_GB, "unit_amount": "0.000000000001"}
    assert str(compute("eur", [price], {"gb": "4999999999.999999999"}).total) == "0.00"
    assert str(compute("eur", [price], {"gb": "5000000000"}).total) == "0.01"
    assert str(compute("jpy", [price], {"gb": "499999999999.999999999"}).total) == "0"
    assert str(compute("jpy", [price], {"gb": "500000000000"}).total) == "1"
