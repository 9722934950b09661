"""The catalog's fold: who wins, who is refused and why, and what the indexes say."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.record import CatalogObject, CatalogRecord, UnreadableRecord, decode, encode
from catalog.view import CatalogView
from schemas.alert_rule import AlertKind, AlertRule
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.organization import ApiKey, Organization, Scope
from schemas.product import PerUnitPrice, Product
from schemas.subscription import ProductChange, Subscription

ORG = "org"


def meter(word: str = "calls", **changes: Any) -> Meter:
    fields: dict[str, Any] = {"name": word, "event_name": word, "aggregation": Aggregation.SUM, "created_at": 0}
    return Meter(id=f"mtr_{word}", organization_id=ORG, unit="call", **{**fields, **changes})


def product(word: str, *meters: str, **changes: Any) -> Product:
    prices = tuple(PerUnitPrice(meter_id=meter_id, unit_amount=Decimal(1)) for meter_id in meters)
    fields: dict[str, Any] = {"name": word, "currency": "eur", "prices": prices, "created_at": 0}
    return Product(id=f"prod_{word}", organization_id=ORG, **{**fields, **changes})


def customer(name: str = "cus") -> Customer:
    return Customer(id=name, organization_id=ORG, name=name, created_at=0)


def subscription(name: str, product_name: str, start: int = 0, end: int | None = None, **changes: Any) -> Subscription:
    fields: dict[str, Any] = {
        "customer_id": "cus",
        "product_id": f"prod_{product_name}",
        "billing_interval": "month",
        "collection_method": "charge_automatically",
        "time_zone": "UTC",
        "created_at": 0,
    }
    return Subscription(id=f"sub_{name}", organization_id=ORG, started_at=start, ends_at=end, **{**fields, **changes})


def view_of(*states: CatalogObject) -> CatalogView:
    """A view after each state was written once, all of them accepted."""
    view = CatalogView()
    for state in states:
        version = view.version(type(state), state.organization_id, state.id)
        assert view.apply(CatalogRecord(state, version, 0)) is None
    return view


def code(view: CatalogView, state: CatalogObject, expected_version: int = 0) -> str | None:
    """Code of the refusal if the record came next; None when it would be applied."""
    refusal = view.refusal(CatalogRecord(state, expected_version, 0))
    return refusal.code if refusal else None


BASE = (meter("calls"), meter("seats"), product("calls", "mtr_calls"), product("seats", "mtr_seats"), customer())


@pytest.mark.parametrize(
    ("state", "expected_version", "refused"),
    [
        (meter("new"), 0, None),
        (meter("calls"), 0, "version_conflict"),  # exists
        (meter("calls", name="renamed"), 1, None),
        (meter("calls", name="renamed"), 2, "version_conflict"),  # another version than the one in force
        (meter("gone"), 1, "version_conflict"),  # does not exist
        (meter("calls", event_name="other"), 1, "immutable_field"),
        (meter("calls", aggregation=Aggregation.MAX), 1, "immutable_field"),
        (product("calls", "mtr_calls", name="renamed"), 1, None),
        (product("calls", "mtr_seats"), 1, "immutable_field"),
        (product("calls", "mtr_calls", currency="usd"), 1, "immutable_field"),
        (product("new", "mtr_unknown"), 0, "unknown_reference"),
        (subscription("a", "calls"), 0, None),
        (subscription("a", "unknown"), 0, "unknown_reference"),
        (subscription("a", "calls", customer_id="nobody"), 0, "unknown_reference"),
    ],
)
def test_verdict(state: CatalogObject, expected_version: int, refused: str | None) -> None:
    assert code(view_of(*BASE), state, expected_version) == refused


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (("calls", 0, None), ("calls", 0, None), "meter_priced_twice"),
        (("calls", 0, None), ("seats", 0, None), None),  # other meters
        (("calls", 0, 10), ("calls", 10, None), None),  # one after the other
        (("calls", 0, 11), ("calls", 10, None), "meter_priced_twice"),
        (("calls", 10, None), ("calls", 0, 10), None),
        (("calls", 10, None), ("calls", 0, None), "meter_priced_twice"),
    ],
)
def test_a_meter_is_priced_once_at_any_time(
    first: tuple[str, int, int | None], second: tuple[str, int, int | None], refused: str | None
) -> None:
    view = view_of(*BASE, subscription("first", *first))
    assert code(view, subscription("second", *second)) == refused


def test_a_later_product_counts_too() -> None:
    view = view_of(*BASE, subscription("first", "calls"))
    change = ProductChange(product_id="prod_calls", from_us=50)
    assert code(view, subscription("second", "seats", changes=(change,))) == "meter_priced_twice"


def test_a_refused_record_changes_nothing() -> None:
    view = view_of(*BASE)
    assert view.apply(CatalogRecord(meter("calls", name="loser"), 0, 0)) is not None
    found = view.get(Meter, ORG, "mtr_calls")
    assert found is not None
    assert (found.name, view.version(Meter, ORG, "mtr_calls")) == ("calls", 1)


def test_of_two_writers_the_first_in_the_log_wins() -> None:
    view = view_of(*BASE)
    one, other = meter("calls", name="one"), meter("calls", name="other")
    assert view.apply(CatalogRecord(one, 1, 0)) is None
    refusal = view.apply(CatalogRecord(other, 1, 0))
    assert refusal is not None
    assert refusal.code == "version_conflict"
    assert view.get(Meter, ORG, "mtr_calls") == one


def test_indexes_follow_archiving() -> None:
    key = ApiKey(id="key", organization_id=ORG, scopes=(Scope.READ,), sha256="d", hint="", created_at=0)
    rule = AlertRule(
        id="rule",
        organization_id=ORG,
        meter_id="mtr_calls",
        kind=AlertKind.QUANTITY,
        threshold=Decimal(5),
        created_at=0,
    )
    view = view_of(Organization(id=ORG, organization_id=ORG, created_at=0), *BASE, key, rule)
    assert view.key_by_digest("d") == key
    assert view.needs_value(ORG, "calls")
    assert [found.id for found in view.meters_reading(ORG, "calls")] == ["mtr_calls"]
    assert view.rules_on(ORG, "mtr_calls") == (rule,)
    assert view.has_customer(ORG, "cus")
    assert not view.has_customer("other", "cus")
    for state in (key, rule, meter("calls"), customer()):
        assert view.apply(CatalogRecord(state.model_copy(update={"archived": True}), 1, 0)) is None
    assert view.key_by_digest("d") is None
    assert not view.needs_value(ORG, "calls")
    assert view.rules_on(ORG, "mtr_calls") == ()
    assert not view.has_customer(ORG, "cus")


def test_every_object_survives_the_log() -> None:
    key = ApiKey(id="key", organization_id=ORG, scopes=(Scope.READ,), sha256="d", hint="", created_at=0)
    for state in (*BASE, subscription("a", "calls", start=5, end=9), key):
        record = CatalogRecord(state, 3, 7)
        assert decode(encode(record)) == record


@given(st.binary(max_size=80))
def test_garbage_is_unreadable_and_nothing_else(message: bytes) -> None:
    with pytest.raises(UnreadableRecord):
        decode(message)


# -- zones and currencies ----------------------------------------------------------------------------------------------


def test_a_zone_that_changes_reaches_the_subscriptions_that_are_there() -> None:
    organization = Organization(id=ORG, organization_id=ORG, created_at=0)
    before = (organization, meter(), product("a", "mtr_calls"), customer(), subscription("1", "a"))
    view = view_of(*before)
    moved = organization.model_copy(update={"time_zone": "Asia/Tokyo"})
    assert view.apply(CatalogRecord(moved, 1, 77)) is None
    assert view.apply(CatalogRecord(moved.model_copy(update={"name": "other"}), 2, 88)) is None
    found = view.get(Subscription, ORG, "sub_1")
    assert found is not None
    assert (found.zone_changes, found.calendar.later_zones) == (((77, "Asia/Tokyo"),), ((77, "Asia/Tokyo"),))
    assert view.subscriptions_of(ORG, "cus") == (found,)
    assert view.version(Subscription, ORG, "sub_1") == 1
    # Who wrote it anew had not heard of the change; the log had. And no record says it.
    ended = subscription("1", "a", end=10**16)
    assert view.apply(CatalogRecord(ended, 1, 100)) is None
    again = view.get(Subscription, ORG, "sub_1")
    assert again is not None
    assert (again.ends_at, again.zone_changes) == (10**16, ((77, "Asia/Tokyo"),))
    assert b"zone_changes" not in encode(CatalogRecord(again, 2, 0))


def test_a_subscription_keeps_its_currency() -> None:
    view = view_of(meter(), product("a", "mtr_calls"), product("b", currency="usd"), customer(), subscription("1", "a"))
    changed = subscription("1", "a", changes=(ProductChange(product_id="prod_b", from_us=5),))
    assert code(view, changed, 1) == "currency_differs"
