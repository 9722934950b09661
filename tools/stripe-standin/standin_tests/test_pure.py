"""The Stripe stand-in's pure parts: forms, parameters, totals, test cards, search, keys, faults."""

from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode  # pyright: ignore
from stripe_standin import cards, form, paging, params, search
from stripe_standin.errors import ApiError, InvalidParameter
from stripe_standin.faults import Fault, Faults
from stripe_standin.form import FormError
from stripe_standin.idempotency import Keys
from stripe_standin.money import minimum_charge
from stripe_standin.store import Reply, Store
from stripe_standin.totals import Rate, Settlement, settle, sum_up, tax

EUR = 50

# Forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=1&a=2", {"a": "2"}),
        ("a=", {"a": ""}),
        ("a[b]=1&a[c][d]=2", {"a": {"b": "1", "c": {"d": "2"}}}),
        ("a[]=x&a[]=y", {"a": {"0": "x", "1": "y"}}),
        ("a[1]=y&a[0]=x", {"a": {"1": "y", "0": "x"}}),
        ("a%5Bb%5D=%C3%A9+%26", {"a": {"b": "é &"}}),
        ("a[0][b]=1&a[0][c]=2", {"a": {"0": {"b": "1", "c": "2"}}}),
    ],
)
def test_decode(text: str, expected: form.Form) -> None:
    assert form.decode(text) == expected


@pytest.mark.parametrize(
    "text", ["a[b=1", "a]=1", "[a]=1", "a[b]c=1", "a=1&a[b]=2", "a[b]=2&a=1", "a=%FF", "a[b]=1&a[b][c]=2"]
)
def test_bad_forms(text: str) -> None:
    with pytest.raises(FormError):
        form.decode(text)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="[]"), min_size=1).filter(lambda n: not n.isdigit())
TREES = st.recursive(
    st.text(), lambda inner: st.dictionaries(NAMES, inner, min_size=1) | st.lists(inner, min_size=1), max_leaves=12
)


def _as_form(value: Any) -> Any:
    if isinstance(value, list):
        return {str(i): _as_form(child) for i, child in enumerate(value)}
    return {key: _as_form(child) for key, child in value.items()} if isinstance(value, dict) else value


@given(st.dictionaries(NAMES, TREES, min_size=1))
def test_what_the_sdk_encodes_is_decoded(values: dict[str, Any]) -> None:
    text = urlencode(list(_api_encode(values)))
    assert form.decode(text) == _as_form(values)
    assert form.canonical(form.decode(text)) == form.canonical(dict(reversed(_as_form(values).items())))


# Parameters


INVOICE = params.schema("InvoiceCreateParams")


def checked(text: str, supported: str = "", kind: params.Fields = INVOICE) -> dict[str, Any]:
    decoded = form.decode(text)
    return params.check(kind, decoded, frozenset(supported.split()) | decoded.keys())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto_advance=false", {"auto_advance": False}),
        ("days_until_due=30", {"days_until_due": 30}),
        ("discounts=", {"discounts": None}),
        ("description=", {"description": None}),
        ("metadata=", {"metadata": None}),
        ("metadata[a]=", {"metadata": {"a": ""}}),
        ("metadata[0]=x", {"metadata": {"0": "x"}}),
        ("default_tax_rates[1]=b&default_tax_rates[0]=a", {"default_tax_rates": ["a", "b"]}),
        ("automatic_tax[enabled]=true", {"automatic_tax": {"enabled": True}}),
        ("discounts[0][coupon]=c", {"discounts": [{"coupon": "c"}]}),
    ],
)
def test_check(text: str, expected: dict[str, Any]) -> None:
    assert checked(text) == expected


@pytest.mark.parametrize(
    ("text", "param", "code"),
    [
        ("nothing=1", "nothing", "parameter_unknown"),
        ("discounts[0][cupon]=c", "discounts[0][cupon]", "parameter_unknown"),
        ("auto_advance=1", "auto_advance", None),
        ("auto_advance=", "auto_advance", "parameter_invalid_empty"),
        ("days_until_due=3.0", "days_until_due", "parameter_invalid_integer"),
        ("days_until_due=99999999999999999999", "days_until_due", "parameter_invalid_integer"),
        ("days_until_due=²", "days_until_due", "parameter_invalid_integer"),
        ("collection_method=cash", "collection_method", None),
        ("customer[a]=b", "customer", None),
        ("metadata=x", "metadata", None),
        ("metadata[a][b]=x", "metadata[a]", None),
        ("metadata[" + "k" * 41 + "]=x", "metadata", None),
        ("default_tax_rates=txr_1", "default_tax_rates", None),
        ("default_tax_rates[a]=txr_1", "default_tax_rates", None),
        ("automatic_tax=true", "automatic_tax", None),
        ("automatic_tax[liability][type]=self", "automatic_tax[enabled]", "parameter_missing"),
        ("description=" + "x" * 5001, "description", "parameter_invalid_string_too_long"),
    ],
)
def test_check_refuses(text: str, param: str, code: str | None) -> None:
    with pytest.raises(InvalidParameter) as refused:
        checked(text)
    assert (refused.value.fields.get("param"), refused.value.fields.get("code")) == (param, code)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e", "0x1", ""])
def test_decimals_are_finite(number: str) -> None:
    with pytest.raises(InvalidParameter):
        checked(f"unit_amount_decimal={number}", kind=params.schema("InvoiceItemCreateParams"))


def test_what_is_not_implemented_is_refused_by_name() -> None:
    decoded = form.decode("automatic_tax[enabled]=true&automatic_tax[liability][type]=self")
    with pytest.raises(InvalidParameter, match="does not implement") as refused:
        params.check(INVOICE, decoded, frozenset({"automatic_tax.enabled"}))
    assert refused.value.fields["param"] == "automatic_tax[liability][type]"


def test_merged_metadata() -> None:
    assert params.merged({"a": "1", "b": "2"}, {"a": "", "c": "3"}) == {"b": "2", "c": "3"}
    assert params.merged({"a": "1"}, None) == {}
    with pytest.raises(InvalidParameter, match="51"):
        params.merged({str(i): "x" for i in range(50)}, {"y": "z"})


# Totals

VAT = Rate("txr_1", Decimal("19"), False, "standard_rated")
REDUCED = Rate("txr_2", Decimal("7"), True, "standard_rated")


@pytest.mark.parametrize(
    ("amount", "rate", "expected"),
    [
        (1000, VAT, 190),
        (1, VAT, 0),
        (50, Rate("x", Decimal("1"), False, ""), 1),  # 0.5 rounds up
        (-1000, VAT, -190),
        (1070, REDUCED, 70),
        (100, REDUCED, 7),  # 6.54
        (0, VAT, 0),
    ],
)
def test_tax(amount: int, rate: Rate, expected: int) -> None:
    computed = tax(amount, rate)
    assert computed.amount == expected
    assert computed.taxable_amount == (amount - expected if rate.inclusive else amount)


def test_sum_up() -> None:
    summed = sum_up([(1000, [VAT]), (1070, [REDUCED]), (500, [])])
    assert (summed.subtotal, summed.total, summed.total_excluding_tax) == (2570, 2760, 2500)
    assert summed.subtotal_excluding_tax == 2500
    assert [t.amount for t in summed.taxes] == [190, 70]
    assert sum_up([]).total == 0


@pytest.mark.parametrize(
    #  total, balance, minimum, due, ending balance, carried on as too small
    ("total", "balance", "due", "ending", "small"),
    [
        (0, 0, 0, 0, False),
        (49, 0, 0, 49, True),
        (50, 0, 50, 0, False),
        (1000, -300, 700, 0, False),
        (1000, -1000, 0, 0, False),
        (1000, -1500, 0, -500, False),
        (1000, 200, 1200, 0, False),
        (-500, 0, 0, -500, False),
        (-500, 700, 200, 0, False),
    ],
)
def test_settle(total: int, balance: int, due: int, ending: int, small: bool) -> None:
    assert settle(total, balance, EUR) == Settlement(due, ending, small)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.integers(1, 1000))
def test_settling_loses_nothing(total: int, balance: int, minimum: int) -> None:
    done = settle(total, balance, minimum)
    assert done.amount_due + done.ending_balance == total + balance
    assert done.amount_due == 0 or done.amount_due >= minimum


def test_minimum_charge() -> None:
    assert [minimum_charge(c) for c in ("eur", "usd", "gbp", "jpy", "xyz")] == [50, 50, 30, 50, 1]


# Cards


@pytest.mark.parametrize(
    ("token", "attach", "charge"),
    [
        ("tok_visa", None, None),
        ("pm_card_mastercard_debit", None, None),
        ("tok_chargeDeclined", "generic_decline", "generic_decline"),
        ("tok_visa_chargeDeclinedInsufficientFunds", "insufficient_funds", "insufficient_funds"),
        ("tok_visa_debit_chargeDeclinedInsufficientFunds", "insufficient_funds", "insufficient_funds"),
        ("pm_card_chargeCustomerFail", None, "generic_decline"),
        ("tok_visa_chargeCustomerFailLostCard", None, "lost_card"),
    ],
)
def test_cards(token: str, attach: str | None, charge: str | None) -> None:
    card = cards.CARDS[cards.named(token) or ""]
    assert (card.attach and card.attach.decline_code, card.charge and card.charge.decline_code) == (attach, charge)


@pytest.mark.parametrize("token", ["tok_", "visa", "tok_visa_visa", "pm_card_visa_mastercard", "pm_visa", ""])
def test_unknown_cards(token: str) -> None:
    assert cards.named(token) is None


# Search, lists

OBJECT = {"status": "open", "total": 1234, "metadata": {"invoice": "inv_1"}, "customer": None, "name": "Ada Lovelace"}


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ('status:"open"', True),
        ("status:'paid'", False),
        ('-status:"paid"', True),
        ('metadata["invoice"]:"inv_1" AND total>1000', True),
        ('metadata["invoice"]:"inv_1" AND total>=1235', False),
        ('status:"paid" OR total<2000', True),
        ('metadata["other"]:"x"', False),
        ("customer:null", True),
        ('name~"love"', True),
    ],
)
def test_search(query: str, holds: bool) -> None:
    clauses, conjunction = search.parse(query)
    assert (all if conjunction else any)(c.holds(OBJECT) for c in clauses) is holds


@pytest.mark.parametrize(
    "query", ["", "status", 'status:"open', 'a:"1" AND', 'a:"1" b:"2"', 'a:"1" AND b:"2" OR c:"3"', "total>x"]
)
def test_bad_queries(query: str) -> None:
    with pytest.raises(InvalidParameter):
        search.parse(query)


@pytest.mark.parametrize(
    ("value", "wanted", "inside"),
    [
        (5, None, True),
        (None, None, True),
        (None, 5, False),
        (5, 5, True),
        (5, {"gt": 5}, False),
        (5, {"gte": 5, "lt": 6}, True),
        (5, {"lte": 4}, False),
    ],
)
def test_in_range(value: int | None, wanted: Any, inside: bool) -> None:
    assert paging.in_range(value, wanted) is inside


# Idempotency keys, faults


def test_keys(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    keys = Keys(store)
    kept = Reply(100, "/v1/a", "x", 200, "req_1", b"{}")
    assert keys.begin("", "k", "/v1/a", "x", 100) is None
    with pytest.raises(ApiError) as busy:
        keys.begin("", "k", "/v1/a", "x", 100)
    assert busy.value.status == 409
    assert keys.begin("acct_1", "k", "/v1/a", "x", 100) is None  # keys are an account's own
    keys.keep("", "k", kept)
    keys.end("", "k")
    assert keys.begin("", "k", "/v1/a", "x", 101) == kept
    for target, fingerprint in (("/v1/a", "y"), ("/v1/b", "x")):
        with pytest.raises(ApiError) as misused:
            keys.begin("", "k", target, fingerprint, 101)
        assert (misused.value.status, misused.value.fields["type"]) == (400, "idempotency_error")
    assert keys.begin("", "k", "/v1/b", "y", 100 + 86_400) is None
    with pytest.raises(InvalidParameter):
        keys.begin("", "k" * 256, "/v1/a", "x", 100)
    store.close()


def test_faults_match_by_method_path_account_and_count() -> None:
    faults = Faults()
    faults.order(Fault(kind="429", method="POST", path="/v1/invoices/*/pay", times=2, skip=1, account="acct_1"))
    faults.order(Fault(kind="500_before", times=0))
    hits = [
        faults.hit(method, path, account)
        for method, path, account in [
            ("POST", "/v1/invoices/in_1/pay", "acct_2"),
            ("POST", "/v1/invoices/in_1/pay", "acct_1"),
            ("POST", "/v1/invoices/in_1/pay", "acct_1"),
            ("GET", "/v1/invoices/in_1/pay", "acct_1"),
            ("POST", "/v1/invoices/in_2/pay", "acct_1"),
            ("POST", "/v1/invoices/in_2/pay", "acct_1"),
        ]
    ]
    kinds = ["500_before", "500_before", "429", "500_before", "429", "500_before"]
    assert [hit and hit.kind for hit in hits] == kinds
    assert [f.keeps for f in faults.listed] == [False, True]
