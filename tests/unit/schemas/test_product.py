"""Products as JSON: what is accepted, what it becomes, what is refused and how that is called."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.decimals import Amount, DecimalString, Quantity, loads_exact
from schemas.product import (
    FlatFeePrice,
    GraduatedPrice,
    MinimumPrice,
    PackagePrice,
    PerUnitPrice,
    Product,
    ProductSpec,
    Tier,
    VolumePrice,
)

TIERS = [{"up_to": "10000", "unit_amount": "0.002"}, {"up_to": None, "unit_amount": "0.001"}]
EVERY_PRICE = [
    {"meter_id": "mtr_1", "model": "per_unit", "unit_amount": "0.001", "included_units": "1000"},
    {"meter_id": "mtr_2", "model": "graduated", "tiers": TIERS},
    {"meter_id": "mtr_3", "model": "volume", "tiers": TIERS, "included_units": "0.5"},
    {"meter_id": "mtr_4", "model": "package", "unit_amount": "5.00", "package_size": "100"},
    {"model": "flat_fee", "amount": "49.00"},
    {"model": "minimum", "amount": "100.00"},
]


def spec(prices=EVERY_PRICE, **fields):
    return {"name": "API", "currency": "eur", "prices": prices, **fields}


def refusals(model, document):
    with pytest.raises(ValidationError) as refused:
        model.model_validate(document)
    return [(".".join(map(str, error["loc"])), error["type"], error["msg"]) for error in refused.value.errors()]


def test_every_price_model_from_json():
    product = ProductSpec.model_validate_json(json.dumps(spec(benefits=["priority-support"])))
    tiers = (
        Tier(up_to=Decimal(10000), unit_amount=Decimal("0.002")),
        Tier(up_to=None, unit_amount=Decimal("0.001")),
    )
    assert product.prices == (
        PerUnitPrice(meter_id="mtr_1", unit_amount=Decimal("0.001"), included_units=Decimal(1000)),
        GraduatedPrice(meter_id="mtr_2", tiers=tiers),
        VolumePrice(meter_id="mtr_3", tiers=tiers, included_units=Decimal("0.5")),
        PackagePrice(meter_id="mtr_4", unit_amount=Decimal(5), package_size=Decimal(100)),
        FlatFeePrice(amount=Decimal(49)),
        MinimumPrice(amount=Decimal(100)),
    )
    assert product.meter_ids == ("mtr_1", "mtr_2", "mtr_3", "mtr_4")
    assert product.benefits == ("priority-support",)
    assert len({*product.prices, *product.prices}) == 6  # hashable, equal ones are one


def test_json_round_trip_keeps_decimals_as_written():
    product = Product.model_validate({**spec(), "id": "prod_1", "organization_id": "default", "created_at": 1})
    document = json.loads(product.model_dump_json())
    assert document["prices"][0] == {**EVERY_PRICE[0]}
    assert document["prices"][1] == {**EVERY_PRICE[1], "included_units": "0"}
    assert document["prices"][4] == {"model": "flat_fee", "amount": "49.00"}
    assert (document["archived"], document["benefits"]) == (False, [])
    assert Product.model_validate(document) == product


def test_is_frozen():
    product = ProductSpec.model_validate(spec())
    with pytest.raises(ValidationError, match="frozen"):
        setattr(product.prices[0], "unit_amount", Decimal(0))  # noqa: B010  # a plain assignment is a type error
    with pytest.raises(ValidationError, match="frozen"):
        setattr(product, "name", "other")  # noqa: B010


def tiered(*tiers):
    return [{"meter_id": "m", "model": "graduated", "tiers": [{"up_to": u, "unit_amount": a} for u, a in tiers]}]


def per_unit(**fields):
    return [{"meter_id": "m", "model": "per_unit", "unit_amount": "1", **fields}]


def package(**fields):
    return [{"meter_id": "m", "model": "package", "unit_amount": "1", "package_size": "1", **fields}]


# fmt: off
REFUSED = [
    (spec(currency="EUR"),                                        "currency",                            "currencies are written in lower case: eur"),
    (spec(currency="xyz"),                                        "currency",                            "no currency that Stripe can charge is called xyz"),
    (spec(colour="red"),                                          "colour",                              "Extra inputs are not permitted"),
    (spec(name=""),                                               "name",                                "String should have at least 1 character"),
    (spec(per_unit() + per_unit()),                               "",                                    "meter m has more than one price"),
    (spec(per_unit() + package()),                                "",                                    "meter m has more than one price"),
    (spec([EVERY_PRICE[5]] * 2),                                  "",                                    "a product has at most one minimum"),
    (spec(benefits=["a", "a"]),                                   "",                                    "a benefit is named twice"),
    (spec([{"model": "per_unit", "unit_amount": "1"}]),           "prices.0.per_unit.meter_id",          "Field required"),
    (spec([{**EVERY_PRICE[4], "meter_id": "m"}]),                 "prices.0.flat_fee.meter_id",          "Extra inputs are not permitted"),
    (spec(per_unit(unit_amount="-1")),                            "prices.0.per_unit.unit_amount",       "the number must not be negative"),
    (spec(per_unit(unit_amount="0.0000000000001")),               "prices.0.per_unit.unit_amount",       "at most 12 decimals are allowed"),
    (spec(per_unit(unit_amount=0.1)),                             "prices.0.per_unit.unit_amount",       'write the decimal as a string, like "0.002"'),
    (spec(per_unit(included_units="0.0000000001")),               "prices.0.per_unit.included_units",    "at most 9 decimals are allowed"),
    (spec(package(package_size="0")),                             "prices.0.package.package_size",       "Input should be greater than 0"),
    (spec(tiered()),                                              "prices.0.graduated.tiers",            "Tuple should have at least 1 item after validation, not 0"),
    (spec(tiered(("10", "1"))),                                   "prices.0.graduated.tiers",            "the last tier must have up_to null"),
    (spec(tiered((None, "1"), (None, "1"))),                      "prices.0.graduated.tiers",            "tier 1: only the last tier has up_to null"),
    (spec(tiered(("10", "1"), ("10", "1"), (None, "1"))),         "prices.0.graduated.tiers",            "tier 2: up_to must be above 10"),
    (spec(tiered(("0", "1"), (None, "1"))),                       "prices.0.graduated.tiers",            "tier 1: up_to must be above 0"),
]
# fmt: on


@pytest.mark.parametrize(("document", "field", "message"), REFUSED)
def test_refused(document, field, message):
    assert [(at, text) for at, _, text in refusals(ProductSpec, document)] == [(field, message)]


def test_unknown_model_is_named():
    [(field, kind, message)] = refusals(ProductSpec, spec([{"model": "surge"}]))
    assert (field, kind) == ("prices.0", "union_tag_invalid")
    assert "'surge'" in message


# fmt: off
DECIMALS = [
    ("0.002",              "0.002"),
    ("49.00",              "49.00"),
    ("1e3",                "1000"),
    ("25e-1",              "2.5"),
    ("-0",                 "0"),
    ("0e99",               "0"),
    (7,                    "7"),
    (Decimal("1E+2"),      "100"),
    ("0.000000000001",     "0.000000000001"),
    ("999999999999999999", "999999999999999999"),
]
NOT_DECIMALS = [
    "", " 1", "1 ", "+1", ".5", "5.", "1_000", "1,000", "0x1", "１", "NaN", "Infinity", "-Infinity", "1e400", "1e9999",
    "1e18", "0.0000000000001", "1e-400", "0e-99", "1" * 65, 10**18, 10**5000, 1.5, float("nan"), Decimal("NaN"),
    Decimal("sNaN"), Decimal("Infinity"), True, None, [], {},
]
# fmt: on


@pytest.mark.parametrize(("written", "kept"), DECIMALS)
def test_decimals(written, kept):
    adapter = TypeAdapter(DecimalString)
    assert json.loads(adapter.dump_json(adapter.validate_python(written))) == kept


@pytest.mark.parametrize("written", NOT_DECIMALS, ids=range(len(NOT_DECIMALS)))  # 10^5000 has no str
@pytest.mark.parametrize("kind", [DecimalString, Amount, Quantity])
def test_not_decimals(written, kind):
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(written)


def test_json_numbers_reach_the_model_without_a_float():
    body = b'{"meter_id": "m", "model": "per_unit", "unit_amount": 0.100000000001, "included_units": 1000}'
    assert PerUnitPrice.model_validate(loads_exact(body)).unit_amount == Decimal("0.100000000001")
    with pytest.raises(ValidationError, match="write the decimal as a string"):
        PerUnitPrice.model_validate_json(body)
    with pytest.raises(ValueError, match="NaN is not JSON"):
        loads_exact(b"[NaN]")


def test_openapi_shows_strings():
    schema = PerUnitPrice.model_json_schema()
    assert {schema["properties"][name]["type"] for name in ("unit_amount", "included_units")} == {"string"}
