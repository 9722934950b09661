"""Tax ids and e-mails: what can be known when they are entered."""

import pytest
from pydantic import ValidationError
from stripe_standin import params

from schemas.customer import CustomerSpec
from schemas.tax_ids import TYPES

# fmt: off
TAX_IDS = [
    # type       value                code
    ("eu_vat",   "DE123456789",       None),
    ("eu_vat",   "de 123 456 789",    None),
    ("eu_vat",   "ATU12345678",       None),
    ("eu_vat",   "FR12345678901",     None),
    ("eu_vat",   "NL123456789B01",    None),
    ("gb_vat",   "GB123456789",       None),
    ("us_ein",   "12-3456789",        None),
    ("eu_vat",   "DE1",               "tax_id_invalid"),
    ("eu_vat",   "DE1234567890",      "tax_id_invalid"),
    ("eu_vat",   "XX123456789",       "tax_id_invalid"),
    ("eu_vat",   "123456789",         "tax_id_invalid"),
    ("us_ein",   " ",                 "tax_id_invalid"),
    ("vat",      "DE123456789",       "tax_id_type"),
    ("EU_VAT",   "DE123456789",       "tax_id_type"),
]
EMAILS = [
    ("someone@example.com",           True),
    ("a.b+c@mail.example.co",         True),
    ("a@b..c",                        False),
    ("a@.b",                          False),
    ("a@b.",                          False),
    (".a@b.c",                        False),
    ("a..b@c.d",                      False),
    ("a@b@c",                         False),
    ("a b@c.d",                       False),
    ("@b.c",                          False),
    ("none",                          False),
]
# fmt: on


def refusal(**fields: object) -> str | None:
    try:
        CustomerSpec.model_validate({"name": "N", **fields})
    except ValidationError as error:
        return error.errors()[0]["type"]
    return None


@pytest.mark.parametrize(("type_", "value", "code"), TAX_IDS)
def test_a_tax_id_that_can_be_none_is_refused(type_: str, value: str, code: str | None) -> None:
    assert refusal(tax_ids=[{"type": type_, "value": value}]) == code


def test_the_types_are_those_of_stripes_api_version() -> None:
    known = params.schema("CustomerCreateTaxIdParams").fields["type"]
    assert isinstance(known, params.Text)
    assert frozenset(known.choices) == TYPES


@pytest.mark.parametrize(("email", "right"), EMAILS)
def test_an_address_that_can_be_nobodys_is_refused(email: str, right: bool) -> None:
    assert refusal(email=email) == (None if right else "string_pattern_mismatch")
