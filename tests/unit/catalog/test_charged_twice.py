"""What two subscriptions of one customer may charge: nothing twice, whatever the price; decided by the log's order."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from catalog.record import RULES, CatalogObject, CatalogRecord, decode, encode
from catalog.view import CatalogView
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.period import parse_rfc3339
from schemas.product import FlatFeePrice, MinimumPrice, PerUnitPrice, Price, Product
from schemas.subscription import ProductChange, Subscription

ORG = "org"
JAN, FEB, MARCH, APRIL = (parse_rfc3339(f"2026-0{month}-01T00:00:00Z") for month in (1, 2, 3, 4))
CALLS = Meter(
    id="mtr_calls", organization_id=ORG, name="c", event_name="c", unit="c", aggregation=Aggregation.SUM, created_at=0
)


def product(word: str, *prices: Price) -> Product:
    return Product(id=f"prod_{word}", organization_id=ORG, name=word, currency="eur", prices=prices, created_at=0)


BASE: tuple[CatalogObject, ...] = (
    CALLS,
    Customer(id="cus", organization_id=ORG, name="c", created_at=0),
    product("flat", FlatFeePrice(amount=Decimal(49))),
    product("minimum", MinimumPrice(amount=Decimal(100))),
    product("calls", PerUnitPrice(meter_id=CALLS.id, unit_amount=Decimal(1))),
    product("calls2", PerUnitPrice(meter_id=CALLS.id, unit_amount=Decimal(2))),
)


def subscription(name: str, product_name: str, start: int, end: int | None = None, **changes: Any) -> Subscription:
    fields: dict[str, Any] = {
        "organization_id": ORG, "customer_id": "cus", "product_id": f"prod_{product_name}",
        "billing_interval": "month", "collection_method": "charge_automatically", "time_zone": "UTC", "created_at": 0,
    }  # fmt: skip
    return Subscription(id=f"sub_{name}", started_at=start, ends_at=end, **{**fields, **changes})


def change(product_name: str, from_us: int) -> tuple[ProductChange, ...]:
    return (ProductChange(product_id=f"prod_{product_name}", from_us=from_us),)


def view_of(*states: CatalogObject, rules: int = RULES) -> CatalogView:
    view = CatalogView()
    for state in (*BASE, *states):
        version = view.version(type(state), state.organization_id, state.id)
        assert view.apply(CatalogRecord(state, version, 0, rules)) is None
    return view


def code(view: CatalogView, state: CatalogObject, expected_version: int = 0, rules: int = RULES) -> str | None:
    refusal = view.refusal(CatalogRecord(state, expected_version, 0, rules))
    return refusal.code if refusal else None


TWICE = "product_subscribed_twice"


@pytest.mark.parametrize("of", ["flat", "minimum"])
@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ((JAN, MARCH), (JAN, None), TWICE),  # cancelled, and subscribed again from the same start
        ((JAN, None), (JAN, None), TWICE),  # two at once
        ((JAN, MARCH), (FEB, None), TWICE),
        ((JAN, MARCH), (MARCH, None), None),  # begins where the first ended
        ((MARCH, None), (JAN, MARCH), None),
        ((JAN, JAN), (JAN, None), None),  # the first never began
    ],
)
def test_a_flat_fee_subscribed_again_charges_no_past_period_twice(
    of: str, first: tuple[int, int | None], second: tuple[int, int | None], refused: str | None
) -> None:
    assert code(view_of(subscription("1", of, *first)), subscription("2", of, *second)) == refused


def test_periods_that_are_not_billed_are_charged_by_none() -> None:
    view = view_of(subscription("1", "flat", JAN, MARCH))
    assert code(view, subscription("2", "flat", JAN, billed_from=MARCH)) is None
    assert code(view, subscription("2", "flat", JAN, billed_from=FEB)) == TWICE
    view = view_of(subscription("1", "calls", JAN, billed_from=MARCH))
    assert code(view, subscription("2", "calls2", JAN, MARCH)) is None
    assert code(view, subscription("2", "calls2", JAN, APRIL)) == "meter_priced_twice"


def test_meters_of_a_product_that_was_left_are_free_again() -> None:
    view = view_of(subscription("1", "calls", JAN, changes=change("flat", MARCH)))
    assert code(view, subscription("2", "calls2", MARCH)) is None
    assert code(view, subscription("2", "calls2", FEB)) == "meter_priced_twice"
    assert code(view, subscription("2", "flat", APRIL)) == TWICE
    assert view.meters_priced(subscription("1", "calls", JAN, changes=change("flat", MARCH)), MARCH) == frozenset()


def test_a_change_of_product_is_held_to_the_same_rule() -> None:
    view = view_of(subscription("1", "flat", JAN), subscription("2", "minimum", JAN))
    assert code(view, subscription("2", "minimum", JAN, changes=change("flat", MARCH)), 1) == TWICE
    assert code(view, subscription("2", "minimum", JAN, changes=change("calls", MARCH)), 1) is None


# -- what the log says of before ---------------------------------------------------------------------------------------


def test_records_of_before_mean_the_same() -> None:
    """Under the rules of their time a pair of flat fees came into force, and a meter stayed taken for ever."""
    twice = view_of(subscription("1", "flat", JAN), subscription("2", "flat", JAN), rules=1)
    assert twice.get(Subscription, ORG, "sub_2") is not None
    left = view_of(subscription("1", "calls", JAN, changes=change("flat", MARCH)), rules=1)
    assert code(left, subscription("2", "calls2", APRIL), rules=1) == "meter_priced_twice"


def test_a_record_without_rules_is_of_the_first_ones() -> None:
    record = CatalogRecord(subscription("1", "flat", JAN), 0, 0)
    assert decode(encode(record)) == record
    fields = msgspec.json.decode(encode(record))
    del fields["rules"], fields["state"]["billed_from"]
    assert decode(msgspec.json.encode(fields)).rules == 1


def test_a_pair_of_before_can_be_ended_and_changed() -> None:
    pair = subscription("1", "flat", JAN), subscription("2", "flat", JAN)
    view = view_of(*pair, rules=1)
    assert code(view, pair[1].model_copy(update={"ends_at": MARCH}), 1) is None
    assert code(view, pair[1].model_copy(update={"collection_method": "send_invoice"}), 1) is None
    assert code(view, pair[1].model_copy(update={"changes": change("calls", MARCH)}), 1) is None
