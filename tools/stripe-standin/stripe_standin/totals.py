"""lines, tax rates, balance → what an invoice sums up to. Pure.

Source: Stripe API reference, "Invoices" (subtotal, total, amount_due, starting_balance, ending_balance);
"Tax rates" (inclusive and exclusive); "Customer invoice balance"; "Minimum and maximum charge amounts".
Not verified: how Stripe rounds tax when several lines share a rate; here each line's tax is rounded, half up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from stripe_standin.records import Tax


@dataclass(frozen=True, slots=True)
class Rate:
    """percentage: 19 for 19 %. reason: Stripe's taxability_reason."""

    id: str
    percentage: Decimal
    inclusive: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Amounts in minor units; taxes one per rate; line_taxes as the lines given."""

    subtotal: int
    taxes: list[Tax]
    line_taxes: list[list[Tax]]
    total: int

    @property
    def total_excluding_tax(self) -> int:
        return self.total - sum(t.amount for t in self.taxes)

    @property
    def subtotal_excluding_tax(self) -> int:
        return self.subtotal - sum(t.amount for t in self.taxes if t.inclusive)


@dataclass(frozen=True, slots=True)
class Settlement:
    """The amount to be paid, and the customer's balance afterwards. small: below what can be charged, carried on."""

    amount_due: int
    ending_balance: int
    small: bool


def whole(amount: Decimal) -> int:
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def tax(amount: int, rate: Rate) -> Tax:
    """The tax of one rate on one line's amount."""
    if rate.inclusive:
        part = whole(amount * rate.percentage / (100 + rate.percentage))
        return Tax(part, amount - part, True, rate.id, rate.reason)
    return Tax(whole(amount * rate.percentage / 100), amount, False, rate.id, rate.reason)


def sum_up(lines: Sequence[tuple[int, Sequence[Rate]]]) -> Totals:
    """Sum up an invoice. lines: amount in minor units and the rates that apply to it."""
    line_taxes = [[tax(amount, rate) for rate in rates] for amount, rates in lines]
    taxes: dict[tuple[str, bool], Tax] = {}
    for each in (t for taxes_of_line in line_taxes for t in taxes_of_line):
        key = (each.tax_rate, each.inclusive)
        so_far = taxes.setdefault(key, Tax(0, 0, each.inclusive, each.tax_rate, each.reason))
        so_far.amount += each.amount
        so_far.taxable_amount += each.taxable_amount
    subtotal = sum(amount for amount, _ in lines)
    total = subtotal + sum(t.amount for t in taxes.values() if not t.inclusive)
    return Totals(subtotal, list(taxes.values()), line_taxes, total)


def settle(total: int, balance: int, minimum: int) -> Settlement:
    """Bring the customer's balance into an invoice.

    total: may be negative. balance: negative is a credit, positive is owed. minimum: the least that can be charged.
    """
    owed = total + balance
    if owed <= 0:
        return Settlement(0, owed, False)
    if owed < minimum:
        return Settlement(0, owed, True)
    return Settlement(owed, 0, False)
