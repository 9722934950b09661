"""Whatever stands where an id should be, no call reaches another place at Stripe than the one that it is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from stripe_standin.process import StripeStandin

from billing_job.stripe.api import StripeApi
from billing_job.stripe.errors import StripeRefused
from schemas.settings import Settings
from tests.standin import stripe_standin


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandin]:
    directory: Path = tmp_path_factory.mktemp("stripe")
    with stripe_standin(directory) as running:
        yield running


@pytest.fixture(scope="module")
def api(standin: StripeStandin) -> Iterator[StripeApi]:
    made = Settings(
        stripe_api_base=standin.address,
        stripe_api_key=standin.api_key,  # pyright: ignore[reportArgumentType]
        stripe_retry_seconds=1.0,
    )
    with StripeApi(made) as opened:
        yield opened


def post(standin: StripeStandin, path: str, **fields: str) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {standin.api_key}"}
    answer = httpx.post(standin.address + path, headers=headers, data=fields, trust_env=False)
    assert answer.is_success, answer.text
    return answer.json()


def test_a_payment_method_reaches_no_other_call(standin: StripeStandin, api: StripeApi) -> None:
    """`../invoices/in_1/void#` was a void with the operator's key."""
    customer = post(standin, "/v1/customers", name="victim")["id"]
    invoice = post(standin, "/v1/invoices", customer=customer, currency="eur")["id"]
    post(standin, "/v1/invoiceitems", customer=customer, invoice=invoice, amount="1000", currency="eur")
    post(standin, f"/v1/invoices/{invoice}/finalize")
    for wrong in (
        f"../invoices/{invoice}/void#",
        f"..%2finvoices%2f{invoice}%2fvoid%23",
        "..",
        ".",
        "",
        "a/b",
        "a?b=c",
    ):
        with pytest.raises(StripeRefused):
            api.attach_payment_method(wrong, customer, None, f"key {wrong}")
    assert api.invoice(invoice, None)["status"] == "open"
    paths = {each["path"] for each in standin.requests("POST")}
    assert not [path for path in paths if path.endswith("/void")]


@pytest.mark.parametrize("account", ["acct_1\u200b", "acct_", "acct_1\r\nX: y", "acct_1 "])
def test_an_account_that_is_none_is_refused_and_never_sent(
    standin: StripeStandin, api: StripeApi, account: str
) -> None:
    """A zero-width space ended the whole service by an exception of the HTTP client's."""
    before = len(standin.requests())
    with pytest.raises(StripeRefused) as refused:
        api.invoice("in_1", account)
    assert (refused.value.status, refused.value.code) == (403, "account_invalid")
    assert len(standin.requests()) == before


def test_text_that_can_not_be_sent_is_refused(api: StripeApi) -> None:
    with pytest.raises(StripeRefused):
        api.create_customer({"name": "half \ud800"}, None, "half", may_have_run=False)
