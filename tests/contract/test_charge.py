"""Who is charged, on the stand-in: ids that it knows, does not know, or may not be asked about; the ledger in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import httpx
import msgspec
import pytest
from stripe_standin.process import StripeStandin

from billing_job.collect.charge import settle
from billing_job.collect.customers import ensure_stripe_customer, forget_stripe_customer, is_gone
from billing_job.collect.steps import Billing
from billing_job.stripe.api import StripeApi
from billing_job.stripe.errors import StripeRefused
from ledger.invoice import Invoice
from ledger.records import LedgerRecord
from ledger.snapshot import InvoiceFixed
from ledger.store import LedgerLog
from ledger.view import InvoiceLedger
from schemas.customer import Customer
from schemas.settings import Settings
from tests.contract.test_stripe_api import fixed
from tests.standin import stripe_standin


class MemoryLog:
    """The fold without its log."""

    writer = "test"

    def __init__(self) -> None:
        self.state = InvoiceLedger()

    def append(self, record: LedgerRecord) -> bool:
        return self.state.apply(record)

    def append_all(self, records: Sequence[LedgerRecord]) -> list[bool]:
        return [self.state.apply(record) for record in records]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandin]:
    with stripe_standin(tmp_path_factory.mktemp("stripe")) as standin:
        yield standin


@pytest.fixture
def standin(running: StripeStandin) -> Iterator[StripeStandin]:
    yield running
    running.control("DELETE", "faults")


@pytest.fixture
def billing(standin: StripeStandin) -> Iterator[Billing]:
    made = Settings(
        stripe_api_base=standin.address,
        stripe_api_key=standin.api_key,  # pyright: ignore[reportArgumentType]
        stripe_retry_seconds=1.0,
    )
    with StripeApi(made) as api:
        yield Billing(cast(LedgerLog, MemoryLog()), api)


@pytest.fixture
def invoice(billing: Billing, request: pytest.FixtureRequest) -> InvoiceFixed:
    made = msgspec.structs.replace(fixed(), invoice_id=f"inv_{request.node.name}")
    billing.log.append(made)
    return made


def at_stripe(standin: StripeStandin, method: str, path: str, **fields: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {standin.api_key}"}
    given = {"data": fields} if method == "POST" else {}
    answer = httpx.request(method, standin.address + path, headers=headers, trust_env=False, **given)  # pyright: ignore[reportArgumentType]
    assert answer.is_success, answer.text
    return answer.json()


def given_customer(standin: StripeStandin) -> str:
    made: str = at_stripe(standin, "POST", "/v1/customers", name="given", email="given@example.com")["id"]
    method = at_stripe(standin, "POST", "/v1/payment_methods/pm_card_visa/attach", customer=made)["id"]
    at_stripe(standin, "POST", f"/v1/customers/{made}", **{"invoice_settings[default_payment_method]": method})
    return made


def customer(**fields: Any) -> Customer:
    return Customer(id="c", organization_id="default", created_at=0, name="C", **fields)


def charged(billing: Billing, invoice: InvoiceFixed, owner: Customer) -> Invoice:
    link = ensure_stripe_customer(billing, owner, None)
    stripe_customer_id = link.stripe_customer_id
    assert stripe_customer_id is not None
    return settle(billing, invoice, stripe_customer_id, lambda: billing.api.invoices_of(stripe_customer_id, None))


def test_a_given_customer_is_charged_where_customers_can_not_be_read(
    standin: StripeStandin, billing: Billing, invoice: InvoiceFixed
) -> None:
    given = given_customer(standin)
    standin.fault("error", "*", "/v1/customers*", times=0, status=404, message="Unrecognized request URL")
    before = len(standin.requests(path="/v1/customers*"))
    assert charged(billing, invoice, customer(stripe_customer_id=given)).state == "paid"
    assert len(standin.requests(path="/v1/customers*")) == before


def test_an_id_that_stripe_does_not_know_is_the_reason_until_it_is_corrected(
    standin: StripeStandin, billing: Billing, invoice: InvoiceFixed
) -> None:
    with pytest.raises(StripeRefused) as refused:
        charged(billing, invoice, customer(stripe_customer_id="cus_nope"))
    assert is_gone(refused.value)
    known = billing.invoice(invoice.invoice_id)
    assert (known.state, known.reason) == ("computed", "resource_missing: No such customer: 'cus_nope'")
    paid = charged(billing, invoice, customer(stripe_customer_id=given_customer(standin)))
    assert (paid.state, paid.reason) == ("paid", None)


def test_a_customer_that_was_deleted_at_stripe_is_made_again(
    standin: StripeStandin, billing: Billing, invoice: InvoiceFixed
) -> None:
    owner = customer(payment_method="pm_card_visa")
    first = ensure_stripe_customer(billing, owner, None).stripe_customer_id
    at_stripe(standin, "DELETE", f"/v1/customers/{first}")
    with pytest.raises(StripeRefused) as refused:
        charged(billing, invoice, owner)
    assert is_gone(refused.value)
    forget_stripe_customer(billing, owner, None, refused.value)
    assert charged(billing, invoice, owner).state == "paid"
    link = billing.log.state.link("default", "c", None, billing.api.owner)
    assert link is not None
    assert link.stripe_customer_id != first
