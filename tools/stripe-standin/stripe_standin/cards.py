"""Stripe's test tokens and test payment methods → what such a card or bank debit does.

Source: Stripe, "Testing", tables "Cards by brand", "Declined payments" (the ones that "can't be attached to a
Customer object", and "Decline after attaching"), "3D Secure authentication" and "Disputes". Older spellings
without the brand (`tok_chargeDeclined`, `pm_card_chargeDeclinedInsufficientFunds`) are those of the same page
before 2024 and still work there. Bank debits: the same page, "SEPA Direct Debit" (tokens of every country, as in
pm_sepaDebit_failed_de) and "ACH Direct Debit". Not verified: the tokens of Bacs and BECS, for which the page lists
account numbers, and the failure codes of debits.
"""

from dataclasses import dataclass

DEBIT_CURRENCIES = {"sepa_debit": "eur", "us_bank_account": "usd", "bacs_debit": "gbp", "au_becs_debit": "aud"}
"""Bank debits by Stripe's type → the one currency that each takes."""

MESSAGES = {
    "generic_decline": "Your card was declined.",
    "insufficient_funds": "Your card has insufficient funds.",
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
}


@dataclass(frozen=True, slots=True)
class Decline:
    """code: the error's; decline_code: the bank's reason, None where Stripe gives none."""

    code: str
    decline_code: str | None

    @property
    def message(self) -> str:
        return MESSAGES.get(self.decline_code or self.code, MESSAGES["generic_decline"])


@dataclass(frozen=True, slots=True)
class Card:
    """attach, charge: the decline that each of the two steps meets, None when it succeeds.

    type: Stripe's; of anything but `card` the bank answers days after the charge.
    """

    brand: str = "visa"
    last4: str = "4242"
    funding: str = "credit"
    attach: Decline | None = None
    charge: Decline | None = None
    authenticate: bool = False
    """Every charge without the customer at hand needs 3D Secure."""
    dispute: str | None = None
    """The charge succeeds and is disputed for this reason."""
    type: str = "card"
    answers: bool = True
    """False: the debit stays under way until it is given up."""

    @property
    def is_debit(self) -> bool:
        return self.type != "card"


def _declined(last4: str, code: str, decline_code: str | None) -> Card:
    decline = Decline(code, decline_code)
    return Card(last4=last4, attach=decline, charge=decline)


def _fails_later(last4: str, decline_code: str) -> Card:
    return Card(last4=last4, charge=Decline("card_declined", decline_code))


_BRANDS = {
    "visa": Card(),
    "visa_debit": Card(last4="5556", funding="debit"),
    "mastercard": Card("mastercard", "4444"),
    "mastercard_debit": Card("mastercard", "8210", "debit"),
    "mastercard_prepaid": Card("mastercard", "5100", "prepaid"),
    "amex": Card("amex", "8431"),
    "discover": Card("discover", "9424"),
    "diners": Card("diners", "0004"),
    "jcb": Card("jcb", "0505"),
    "unionpay": Card("unionpay", "0005"),
}

_CASES = {
    "chargeDeclined": _declined("0002", "card_declined", "generic_decline"),
    "chargeDeclinedInsufficientFunds": _declined("9995", "card_declined", "insufficient_funds"),
    "chargeDeclinedLostCard": _declined("9987", "card_declined", "lost_card"),
    "chargeDeclinedStolenCard": _declined("9979", "card_declined", "stolen_card"),
    "chargeDeclinedFraudulent": _declined("0019", "card_declined", "fraudulent"),
    "chargeDeclinedVelocityLimitExceeded": _declined("6975", "card_declined", "card_velocity_exceeded"),
    "chargeDeclinedExpiredCard": _declined("0069", "expired_card", None),
    "chargeDeclinedIncorrectCvc": _declined("0127", "incorrect_cvc", None),
    "chargeDeclinedProcessingError": _declined("0119", "processing_error", None),
    "chargeCustomerFail": _fails_later("0341", "generic_decline"),
    "chargeCustomerFailLostCard": _fails_later("0341", "lost_card"),
    "chargeCustomerFailStolenCard": _fails_later("0341", "stolen_card"),
    "authenticationRequired": Card(last4="3184", authenticate=True),
    "threeDSecure2Required": Card(last4="3220", authenticate=True),
    "createDispute": Card(last4="0259", dispute="fraudulent"),
    "createDisputeProductNotReceived": Card(last4="2685", dispute="product_not_received"),
}


def _debit(
    type_: str, last4: str, code: str | None = None, *, dispute: str | None = None, answers: bool = True
) -> Card:
    decline = None if code is None else Decline(code, None)
    return Card("", last4, "", charge=decline, dispute=dispute, type=type_, answers=answers)


_SEPA = {
    "success": _debit("sepa_debit", "3000"),
    "successDelayed": _debit("sepa_debit", "3003"),
    "failed": _debit("sepa_debit", "3001", "payment_intent_payment_attempt_failed"),
    "failedDelayed": _debit("sepa_debit", "3004", "payment_intent_payment_attempt_failed"),
    "disputed": _debit("sepa_debit", "3002", dispute="debit_not_authorized"),
    "exceedsWeeklyVolumeLimit": _debit("sepa_debit", "3434", "charge_exceeds_source_limit"),
    "exceedsWeeklyTransactionLimit": _debit("sepa_debit", "1212", "charge_exceeds_weekly_limit"),
    "insufficientFunds": _debit("sepa_debit", "2227", "insufficient_funds"),
}
_ACH = {
    "success": _debit("us_bank_account", "6789"),
    "accountClosed": _debit("us_bank_account", "1113", "account_closed"),
    "noAccount": _debit("us_bank_account", "1116", "no_account"),
    "insufficientFunds": _debit("us_bank_account", "2227", "insufficient_funds"),
    "debitNotAuthorized": _debit("us_bank_account", "3335", "debit_not_authorized"),
    "invalidCurrency": _debit("us_bank_account", "4440", "invalid_currency"),
    "dispute": _debit("us_bank_account", "5559", dispute="debit_not_authorized"),
    "processing": _debit("us_bank_account", "0009", answers=False),
    "weeklyLimitExceeded": _debit("us_bank_account", "7771", "charge_exceeds_weekly_limit"),
}
_DEBITS = {
    **{f"sepaDebit_{name}": debit for name, debit in _SEPA.items()},
    **{f"usBankAccount_{name}": debit for name, debit in _ACH.items()},
    **{
        f"{prefix}_{name}": _debit(type_, last4, code)
        for prefix, type_ in (("bacsDebit", "bacs_debit"), ("auBecsDebit", "au_becs_debit"))
        for name, last4, code in (
            ("success", "2345", None),
            ("insufficientFunds", "2227", "insufficient_funds"),
            ("debitNotAuthorized", "3335", "debit_not_authorized"),
        )
    },
}

CARDS: dict[str, Card] = _BRANDS | _CASES | _DEBITS
"""By name: of a card what follows `tok_` or `pm_card_`, of a bank debit what follows `pm_`, without a country."""


def named(token: str) -> str | None:
    """The card's name in CARDS for `tok_…` or `pm_card_…`, with or without the brand; None for an unknown one."""
    for prefix in ("tok_", "pm_card_"):
        if token.startswith(prefix):
            name = token.removeprefix(prefix)
            if name in CARDS:
                return name
            case = name.removeprefix("visa_debit_").removeprefix("visa_")
            return case if case in _CASES else None
    debit = "_".join(token.removeprefix("pm_").split("_")[:2])
    return debit if token.startswith("pm_") and debit in _DEBITS else None
