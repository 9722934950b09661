"""The least and the most that Stripe charges in a currency, in minor units.

Source: Stripe, "Supported currencies", "Minimum and maximum charge amounts" (by settlement currency; the stand-in
takes the invoice's currency for it). A currency outside the table has no minimum of its own there: the one of the
account's settlement currency applies after conversion, which the stand-in does not do; it charges from 1 upwards.
"""

DEFAULT_CURRENCY = "usd"
"""The account's."""

MINIMUM_CHARGE: dict[str, int] = {
    "usd": 50,
    "aed": 200,
    "aud": 50,
    "brl": 50,
    "cad": 50,
    "chf": 50,
    "czk": 1500,
    "dkk": 250,
    "eur": 50,
    "gbp": 30,
    "hkd": 400,
    "huf": 17500,
    "inr": 50,
    "jpy": 50,
    "mxn": 1000,
    "myr": 200,
    "nok": 300,
    "nzd": 50,
    "pln": 200,
    "ron": 200,
    "sek": 300,
    "sgd": 50,
    "thb": 1000,
}


def minimum_charge(currency: str) -> int:
    """The smallest amount that can be charged."""
    return MINIMUM_CHARGE.get(currency, 1)


_DIGITS = {"idr": 12, "cop": 10, "inr": 9}
_CARD_DIGITS, _AMEX_DIGITS, _OTHER_DIGITS = 12, 9, 8


def maximum_charge(currency: str, type_: str, brand: str) -> int:
    """The greatest amount that can be charged: the number of digits limits it.

    Source: Stripe, "Supported currencies", "Maximum charge amounts": cards 12 digits, American Express 9; any other
    payment method 12 for IDR, 10 for COP, 9 for INR, else 8.
    """
    if type_ == "card":
        digits = _AMEX_DIGITS if brand == "amex" else _CARD_DIGITS
    else:
        digits = _DIGITS.get(currency, _OTHER_DIGITS)
    return 10**digits - 1
