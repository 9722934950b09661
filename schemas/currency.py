"""currency → Stripe's minor unit and the step in which it can be charged; the only module that rounds money.

Source: Stripe, "Supported currencies" (docs.stripe.com/currencies), sections "Zero-decimal currencies", "Three-decimal
currencies" and "Special cases". Amounts are Decimals in major units here; ints are minor units, as Stripe's API has
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from math import floor
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from schemas.decimals import EXACT, decimal_text

_POWER = {1: 0, 10: 1, 100: 2}


@dataclass(frozen=True, slots=True)
class CurrencyUnits:
    """How Stripe counts a currency.

    exponent: decimals of the minor unit (eur 2: 1 EUR is 100). step_minor: what a charge must be a multiple of.
    """

    exponent: int
    step_minor: int

    @property
    def shift(self) -> int:
        """Powers of ten from a major unit to a step."""
        return self.exponent - _POWER[self.step_minor]


_TWO_DECIMAL = """
    aed afn all amd ang aoa ars aud awg azn bam bbd bdt bmd bnd bob brl bsd bwp byn bzd cad cdf chf cny cop crc cve czk
    dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gtq gyd hkd hnl htg huf idr ils inr jmd kes kgs khr kyd kzt lak lbp
    lkr lrd lsl mad mdl mkd mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln qar ron
    rsd rub sar sbd scr sek sgd shp sle sos srd szl thb tjs top try ttd twd tzs uah usd uyu uzs wst xcd xcg yer zar zmw
"""
_ZERO_DECIMAL = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
# Stripe takes three decimals of these, but the last digit must be 0.
_THREE_DECIMAL = "bhd jod kwd omr tnd"
# Became zero-decimal and are still sent with two, which must be 00: 5 ISK is 500. (UGX also stands in Stripe's list of
# zero-decimal currencies; the API follows the special case.) HUF and TWD are special for payouts only.
_WHOLE_UNITS_OF_TWO_DECIMAL = "isk ugx"

CURRENCIES: MappingProxyType[str, CurrencyUnits] = MappingProxyType(
    {
        **dict.fromkeys(_TWO_DECIMAL.split(), CurrencyUnits(exponent=2, step_minor=1)),
        **dict.fromkeys(_ZERO_DECIMAL.split(), CurrencyUnits(exponent=0, step_minor=1)),
        **dict.fromkeys(_THREE_DECIMAL.split(), CurrencyUnits(exponent=3, step_minor=10)),
        **dict.fromkeys(_WHOLE_UNITS_OF_TWO_DECIMAL.split(), CurrencyUnits(exponent=2, step_minor=100)),
    }
)

# Source: Stripe, "Supported currencies", "Maximum charge amounts": digits of an amount in minor units, whatever the
# payment method. (Some cards are charged up to 12 digits; a merchant whom Stripe allows more says so by a setting.)
AMOUNT_DIGITS_MAX = 8
_AMOUNT_DIGITS_MAX_OF = MappingProxyType({"idr": 12, "cop": 10, "inr": 9})


class UnknownCurrency(ValueError):
    """The currency is not in the table."""


class NotMinorUnits(ValueError):
    """The amount is not a whole number of the currency's minor units: it should have been rounded before."""


def _known_currency(code: str) -> str:
    if code in CURRENCIES:
        return code
    if code.lower() in CURRENCIES:
        raise PydanticCustomError(
            "currency_case", "currencies are written in lower case: {code}", {"code": code.lower()}
        )
    raise PydanticCustomError("currency_unknown", "no currency that Stripe can charge is called {code}", {"code": code})


Currency = Annotated[str, AfterValidator(_known_currency)]
"""Lower-case ISO 4217 code of a currency in the table."""


def currency_units(currency: str) -> CurrencyUnits:
    """Exponent and step of a currency. Raises UnknownCurrency."""
    try:
        return CURRENCIES[currency]
    except KeyError:
        raise UnknownCurrency(f"unknown currency {currency!r}") from None


def maximum_minor(currency: str, digits: int = AMOUNT_DIGITS_MAX) -> int:
    """The greatest amount that Stripe charges with any payment method: 99999999 eur. Raises UnknownCurrency.

    digits: of an amount in minor units, for the merchant; currencies with more keep theirs.
    """
    currency_units(currency)
    return 10 ** max(digits, _AMOUNT_DIGITS_MAX_OF.get(currency, 0)) - 1


def half_up(number: Fraction) -> int:
    """The nearest integer, a half away from zero. The rounding mode of all money."""
    nearest = floor(abs(number) + Fraction(1, 2))
    return nearest if number >= 0 else -nearest


def round_to_minor(amount: Decimal | Fraction, currency: str) -> int:
    """Minor units of `amount`, rounded half up to the currency's chargeable step. 1.005 eur → 101, 5.5 isk → 600."""
    units = currency_units(currency)
    if isinstance(amount, Decimal):
        # A step is a power of ten, so it is a shift, which is exact; ROUND_HALF_UP is half_up.
        steps = amount.scaleb(units.shift, EXACT).to_integral_value(ROUND_HALF_UP, EXACT)
        return int(steps) * units.step_minor
    return half_up(amount * 10**units.exponent / units.step_minor) * units.step_minor


def round_to_step(amount: Decimal | Fraction, currency: str) -> Decimal:
    """`amount` rounded half up to the currency's chargeable step, with the decimals of its minor unit."""
    return from_minor(round_to_minor(amount, currency), currency)


def to_minor(amount: Decimal, currency: str) -> int:
    """Minor units of an amount that needs no rounding. Raises NotMinorUnits where it does."""
    minor = Fraction(amount) * 10 ** currency_units(currency).exponent
    if minor.denominator != 1:
        raise NotMinorUnits(f"{amount} {currency} has too many decimals")
    return minor.numerator


def amount_text(amount: Decimal, currency: str) -> str:
    """Major units with the currency's decimals, or more where the amount has them: 21 eur → 21.00, 0.005 → 0.005."""
    text = decimal_text(amount)
    decimals = len(text.partition(".")[2])
    missing = currency_units(currency).exponent - decimals
    return text if missing <= 0 else f"{text}{'' if decimals else '.'}{'0' * missing}"


def from_minor(amount_minor: int, currency: str) -> Decimal:
    """Major units of Stripe's integer: 13500 eur → 135.00, 500 jpy → 500."""
    # From text: exact for any length and in any context.
    return Decimal(f"{amount_minor}e-{currency_units(currency).exponent}")
