"""Patterns of Stripe's IDs. Pure.

A merchant's text becomes part of an address or a header of calls with the operator's key, so an id is checked where it
is entered, and again where it is used: records stored before the check have whatever was typed then.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

_LENGTH_MAX = 255
_ACCOUNT = re.compile(r"acct_[A-Za-z0-9]+", re.ASCII)
_DIGITS = re.compile(r"[0-9]{12,19}")


def is_account_id(text: str) -> bool:
    """Whether it may be sent as `Stripe-Account`."""
    return _ACCOUNT.fullmatch(text) is not None


def holds_card_number(text: str) -> bool:
    """Whether digits in it, blanks and hyphens left out, are a card's number: 12 to 19 with a right check digit."""
    return any(_checks(run) for run in _DIGITS.findall(re.sub(r"[\s-]", "", text)))


def _checks(digits: str) -> bool:
    """Luhn's check digit. Source: ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _no_card_number(text: str) -> str:
    """The catalog's log is never rewritten: a card's number that reached it would stay there."""
    if holds_card_number(text):
        raise PydanticCustomError("card_number", "That is a card number. Enter a payment method ID (pm_…).")
    return text


def _payment_method(text: str) -> str:
    if not re.fullmatch(r"(pm|tok)_[A-Za-z0-9_]+", text, re.ASCII):
        raise PydanticCustomError("payment_method_id", "enter the id of a Stripe payment method, such as pm_1AbC…")
    return text


StripeAccountId = Annotated[str, StringConstraints(pattern=r"^acct_[A-Za-z0-9]+$", max_length=_LENGTH_MAX)]
StripeCustomerId = Annotated[str, StringConstraints(pattern=r"^cus_[A-Za-z0-9]+$", max_length=_LENGTH_MAX)]
TaxRateId = Annotated[str, StringConstraints(pattern=r"^txr_[A-Za-z0-9]+$", max_length=_LENGTH_MAX)]
PaymentMethodId = Annotated[
    str, StringConstraints(max_length=_LENGTH_MAX), AfterValidator(_no_card_number), AfterValidator(_payment_method)
]
"""`pm_…`; also Stripe's test tokens `pm_card_visa` and `tok_visa`, which only test mode and the stand-in know."""
