"""The invoice, an independent count, Stripe's subtotal → where they differ. Pure.

An invoice is finalized only when there is no difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from billing_job.invoice.late import Counted
from ledger.snapshot import InvoiceFixed
from schemas.currency import amount_text, from_minor, maximum_minor
from schemas.decimals import decimal_text


@dataclass(frozen=True, slots=True)
class Difference:
    """what: a meter's id, or Stripe's subtotal. invoiced: what the invoice says. found: what was found instead."""

    what: str
    invoiced: Decimal
    found: Decimal

    def __str__(self) -> str:
        apart = self.found - self.invoiced
        sign = "+" if apart > 0 else ""
        return (
            f"{self.what}: {decimal_text(self.invoiced)} invoiced, {decimal_text(self.found)} found"
            f" ({sign}{decimal_text(apart)})"
        )


def quantity_differences(check: Counted, counted: Mapping[str, Decimal]) -> tuple[Difference, ...]:
    """Meters of which the independent count (meter id → quantity) is not what the invoice says."""
    return tuple(
        Difference(f"{check.of}{meter_id}", Decimal(quantity), counted[meter_id])
        for meter_id, quantity in check.quantities.items()
        if Decimal(quantity) != counted[meter_id]
    )


def subtotal_differences(fixed: InvoiceFixed, subtotal_minor: int) -> tuple[Difference, ...]:
    """Stripe's sum before tax and discount, in minor units, against ours."""
    if subtotal_minor == fixed.total_minor:
        return ()
    return (Difference("Stripe's subtotal in minor units", Decimal(fixed.total_minor), Decimal(subtotal_minor)),)


def above_maximum(fixed: InvoiceFixed, digits: int, with_tax_minor: int | None = None) -> str | None:
    """Why the invoice's total is more than Stripe charges, and what to do; None: it is not. digits: as in settings.

    with_tax_minor: the total of its draft; None: there is none yet, and the total before tax is what is known.
    """
    most = maximum_minor(fixed.currency, digits)
    total_minor = fixed.total_minor if with_tax_minor is None else with_tax_minor
    if total_minor <= most:
        return None
    total, limit = (amount_text(from_minor(each, fixed.currency), fixed.currency) for each in (total_minor, most))
    what, done = ("total", "sent") if with_tax_minor is None else ("total with tax", "charged")
    return (
        f"the {what} {total} {fixed.currency} is above {limit}, the most that Stripe charges at once; nothing was"
        f" {done}: void the invoice and bill the amount in parts, or have Stripe raise your limit, set"
        " USAGE_STRIPE_AMOUNT_DIGITS_MAX, and retry"
    )


def explain_differences(differences: Sequence[Difference]) -> str:
    """The reason of a `mismatch`."""
    return "; ".join(map(str, differences))
