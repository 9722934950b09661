"""Ids of Stripe's as they are entered, and as older records have them."""

import pytest
from pydantic import ValidationError

from catalog.record import CatalogRecord, decode, encode
from schemas.customer import Customer, CustomerSpec
from schemas.organization import Organization, OrganizationSpec
from schemas.stripe_ids import holds_card_number, is_account_id

# fmt: off
CARD_NUMBERS = [
    ("4242424242424242",                True),
    ("4242 4242 4242 4242",             True),
    ("4242-4242-4242-4242",             True),
    ("378282246310005",                 True),   # 15 digits
    ("pm_4242424242424242",             True),
    ("4242424242424241",                False),  # the check digit is wrong
    ("pm_1PqRsT2eZvKYlo2C",             False),
    ("pm_card_visa",                    False),
]
PAYMENT_METHODS = [
    ("pm_1PqRsT2eZvKYlo2C8k3ZQq4b",     None),
    ("pm_card_visa",                    None),
    ("pm_usBankAccount_success",        None),
    ("tok_visa",                        None),
    ("4242424242424242",                "card_number"),
    ("4242 4242 4242 4242",             "card_number"),
    ("pm_4242424242424242",             "card_number"),
    ("card_1PqRsT",                     "payment_method_id"),
    ("visa",                            "payment_method_id"),
    ("pm_",                             "payment_method_id"),
    ("../invoices/in_1/void#",          "payment_method_id"),
    ("pm_1/../../invoices/in_1/void#",  "payment_method_id"),
    ("pm_1\n",                          "payment_method_id"),
    ("pm_é",                            "payment_method_id"),
]
# fmt: on


@pytest.mark.parametrize(("text", "holds"), CARD_NUMBERS)
def test_a_cards_number_is_known_by_its_check_digit(text: str, holds: bool) -> None:
    assert holds_card_number(text) is holds


@pytest.mark.parametrize(("payment_method", "code"), PAYMENT_METHODS)
def test_what_is_no_payment_method_is_refused(payment_method: str, code: str | None) -> None:
    assert _refusal(payment_method) == code


def _refusal(payment_method: str) -> str | None:
    try:
        CustomerSpec(name="N", payment_method=payment_method)
    except ValidationError as error:
        return error.errors()[0]["type"]
    return None


@pytest.mark.parametrize("suffix", ["", "1 ", "1\u200b", "1/../x", "1?a", "1#", "1\n", "é", "1-2"])
def test_ids_are_letters_and_digits(suffix: str) -> None:
    assert OrganizationSpec(stripe_account_id="acct_1AbC").stripe_account_id == "acct_1AbC"
    assert CustomerSpec(name="N", stripe_customer_id="cus_1AbC").stripe_customer_id == "cus_1AbC"
    with pytest.raises(ValidationError):
        OrganizationSpec(stripe_account_id=f"acct_{suffix}")
    with pytest.raises(ValidationError):
        CustomerSpec(name="N", stripe_customer_id=f"cus_{suffix}")
    assert is_account_id("acct_1AbC")
    assert not is_account_id(f"acct_{suffix}")


def test_records_stored_before_ids_were_checked_still_load() -> None:
    """An old bad value is that customer's problem: it takes neither the customer nor a service away."""
    customer = Customer(
        id="c",
        organization_id="o",
        created_at=0,
        name="N",
        stripe_customer_id="cus_a_b",
        payment_method="../invoices/in_1/void#",
    )
    organization = Organization(
        id="o", organization_id="o", created_at=0, stripe_account_id="acct_1\u200b", tax_rates=("rate one",)
    )
    for state in (customer, organization):
        assert decode(encode(CatalogRecord(state, 0, 1))).state == state
    with pytest.raises(ValidationError):
        OrganizationSpec(stripe_account_id="acct_1\u200b")
