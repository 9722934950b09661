"""The least that Stripe charges in a currency, in minor units.

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
