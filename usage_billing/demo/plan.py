"""What the demo configures, and what it must cost: computed from the definitions alone, without the pricing package."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

from usage_billing.demo.data import DELAY, FLIGHT, MonthlyUsage

CURRENCY = "usd"
CENT = Decimal("0.01")

METERS: dict[str, dict[str, str]] = {
    "flights": {"name": "Flights", "event_name": FLIGHT, "unit": "flight", "aggregation": "count"},
    "miles": {"name": "Miles flown", "event_name": FLIGHT, "unit": "mile", "aggregation": "sum"},
    "worst_delay": {"name": "Worst delay", "event_name": DELAY, "unit": "minute", "aggregation": "max"},
}

# product → meter → price as the API takes it, without the meter's id
PRODUCTS: dict[str, dict[str, dict[str, Any]]] = {
    "Pay as you fly": {
        "flights": {"model": "per_unit", "unit_amount": "0.85"},
        "miles": {"model": "per_unit", "unit_amount": "0.0021"},
        "worst_delay": {"model": "per_unit", "unit_amount": "0.05"},
    },
    "Network": {
        "flights": {
            "model": "graduated",
            "tiers": [
                {"up_to": "1000", "unit_amount": "1.20"},
                {"up_to": "4000", "unit_amount": "0.90"},
                {"up_to": None, "unit_amount": "0.60"},
            ],
        },
        "miles": {
            "model": "graduated",
            "tiers": [
                {"up_to": "10000", "unit_amount": "0.002"},
                {"up_to": "100000", "unit_amount": "0.001"},
                {"up_to": None, "unit_amount": "0.0005"},
            ],
        },
        "worst_delay": {"model": "per_unit", "unit_amount": "0.05"},
    },
    "Allowance": {
        "flights": {"model": "per_unit", "unit_amount": "1.00", "included_units": "100"},
        "miles": {
            "model": "graduated",
            "included_units": "50000",
            "tiers": [{"up_to": "500000", "unit_amount": "0.0015"}, {"up_to": None, "unit_amount": "0.00075"}],
        },
        "worst_delay": {"model": "per_unit", "unit_amount": "0.10", "included_units": "60"},
    },
}

# meter, threshold of a quantity alert for every carrier
ALERTS: list[tuple[str, int]] = [("miles", 2_000_000), ("worst_delay", 600)]


def product_of(position: int) -> str:
    """The product of the n-th carrier."""
    return list(PRODUCTS)[position % len(PRODUCTS)]


def quantity(usage: MonthlyUsage, meter: str) -> int:
    return int(getattr(usage, meter))


def expected_amount(price: dict[str, Any], used: int) -> Decimal:
    """What `used` units cost, to the cent: unit by unit through the brackets of the definition."""
    left = max(Fraction(0), Fraction(used) - Fraction(price.get("included_units", "0")))
    if price["model"] == "per_unit":
        return _cents(left * Fraction(price["unit_amount"]))
    amount, below = Fraction(0), Fraction(0)
    for tier in price["tiers"]:
        room = left if tier["up_to"] is None else min(left, Fraction(tier["up_to"]) - below)
        amount += room * Fraction(tier["unit_amount"])
        left -= room
        below = Fraction(tier["up_to"] or 0)
    return _cents(amount)


def expected_alerts(usage: dict[tuple[str, int], MonthlyUsage]) -> set[tuple[str, str, int]]:
    """(meter, carrier, month) of every alert that must fire, once."""
    return {
        (meter, carrier, month)
        for (carrier, month), used in usage.items()
        for meter, threshold in ALERTS
        if quantity(used, meter) >= threshold
    }


def _cents(amount: Fraction) -> Decimal:
    return (Decimal(amount.numerator) / Decimal(amount.denominator)).quantize(CENT, ROUND_HALF_UP)
