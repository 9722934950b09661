"""POST /webhooks/stripe: what is signed, re-read and applied; and what is not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import stripe
from starlette.applications import Starlette

from billing_job.collect.webhooks import PATH, StripeWebhooks
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from tests.flow.billing import BillingWorld

pytestmark = pytest.mark.timeout(300)

SECRET = "whsec_of_this_test"
ROLLED = "whsec_of_the_other_endpoint"


@pytest.fixture(scope="module")
def world(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BillingWorld]:
    directory = tmp_path_factory.mktemp("billing")
    both = f"{SECRET}, {ROLLED}"
    with BillingWorld(kafka, clickhouse, directory, stripe_webhook_secret=both) as world:
        yield world


class Client:
    """Requests to the application, without a server between."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def request(self, method: str, payload: str = "", **headers: str) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, PATH, content=payload, headers=headers)

        return asyncio.run(send())


@pytest.fixture(scope="module")
def client(world: BillingWorld) -> Iterator[Client]:
    webhooks = StripeWebhooks(world.settings)
    webhooks.start()
    assert {name: check() for name, check in webhooks.checks.items()} == {"ledger": None}
    yield Client(webhooks.app)
    asyncio.run(webhooks.stop())


def signature(payload: str, *, secret: str = SECRET, at: float | None = None) -> str:
    """The header as Stripe makes it: HMAC-SHA256 of time and payload."""
    moment = int(time.time() if at is None else at)
    signed = stripe.WebhookSignature._compute_signature(f"{moment}.{payload}", secret)  # pyright: ignore
    return f"t={moment},v1={signed}"


def post(client: Client, event: dict[str, Any]) -> httpx.Response:
    payload = json.dumps(event)
    return client.request("POST", payload, **{"Stripe-Signature": signature(payload)})


def event(kind: str, thing: dict[str, Any]) -> dict[str, Any]:
    return {"id": "evt_1", "object": "event", "type": kind, "data": {"object": thing}}


def declined(world: BillingWorld, name: str) -> dict[str, Any]:
    """An invoice of 135.00 whose payment failed, as Stripe has it."""
    world.subscribe(name, payment_method="pm_card_chargeCustomerFail")
    world.use(name, "150000")
    assert world.close().ok
    (invoice,) = world.invoices(name)
    assert invoice.state == "payment_failed"
    return world.stripe_invoices(name)[0]


def test_a_payment_that_came_later_is_applied_once(world: BillingWorld, client: Client) -> None:
    at_stripe = declined(world, "later")
    paid = world.at_stripe("POST", f"/v1/invoices/{at_stripe['id']}/pay", paid_out_of_band="true")
    answer = post(client, event("invoice.paid", paid))
    assert (answer.status_code, answer.json()) == (200, {"outcome": "applied"})
    (invoice,) = world.invoices("later")
    assert invoice.state == "paid"
    assert invoice.order is not None
    assert invoice.order.amount_paid == "135.00"
    reads = len(world.stripe.requests("GET", f"/v1/invoices/{at_stripe['id']}"))
    for _ in range(2):
        assert post(client, event("invoice.paid", paid)).json() == {"outcome": "known"}
    assert len(world.stripe.requests("GET", f"/v1/invoices/{at_stripe['id']}")) == reads


def test_what_the_event_says_is_not_believed(world: BillingWorld, client: Client) -> None:
    at_stripe = declined(world, "hint")
    answer = post(client, event("invoice.paid", {**at_stripe, "status": "paid", "amount_paid": 1}))
    assert answer.json() == {"outcome": "applied"}
    (invoice,) = world.invoices("hint")
    assert (invoice.state, invoice.order) == ("payment_failed", None)


def test_voided_and_uncollectible_are_states(world: BillingWorld, client: Client) -> None:
    for name, action, state in (("voided", "void", "void"), ("lost", "mark_uncollectible", "uncollectible")):
        at_stripe = declined(world, name)
        after = world.at_stripe("POST", f"/v1/invoices/{at_stripe['id']}/{action}")
        kind = {"void": "invoice.voided", "uncollectible": "invoice.marked_uncollectible"}[state]
        assert post(client, event(kind, after)).json() == {"outcome": "applied"}
        (invoice,) = world.invoices(name)
        assert invoice.state == state
        changes = world.changes()
        assert world.close().ok
        assert world.changes() == changes


def test_a_stripe_that_does_not_answer_is_asked_again(world: BillingWorld, client: Client) -> None:
    at_stripe = declined(world, "unread")
    paid = world.at_stripe("POST", f"/v1/invoices/{at_stripe['id']}/pay", paid_out_of_band="true")
    world.stripe.fault("500_before", "GET", f"/v1/invoices/{at_stripe['id']}", times=0)
    answer = post(client, event("invoice.paid", paid))
    world.stripe.control("DELETE", "faults")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert post(client, event("invoice.paid", paid)).json() == {"outcome": "applied"}


def paid_with_adjustments(world: BillingWorld, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A paid invoice at Stripe, refunded, disputed and credited there; and every event of it, oldest first."""
    world.subscribe(name)
    world.use(name, "150000")
    assert world.close().ok
    (at_stripe,) = world.stripe_invoices(name)
    (payment,) = world.at_stripe("GET", "/v1/invoice_payments", invoice=at_stripe["id"])["data"]
    intent = payment["payment"]["payment_intent"]
    world.at_stripe("POST", "/v1/refunds", payment_intent=intent, amount="300")
    charge = world.at_stripe("GET", f"/v1/payment_intents/{intent}")["latest_charge"]
    world.stripe.control("POST", "disputes", {"charge": charge})
    world.at_stripe("POST", "/v1/credit_notes", invoice=at_stripe["id"], amount="100", credit_amount="100")
    events = world.at_stripe("GET", "/v1/events", limit="100")["data"]
    mine = {at_stripe["id"], at_stripe["customer"], intent, charge}
    of_it = [e for e in events if mine & {e["data"]["object"].get(n) for n in ("id", "invoice", "charge", "customer")}]
    return at_stripe, list(reversed(of_it))


ADJUSTED = [("credit_note", "1.00", "issued"), ("dispute", "135.00", "needs_response"), ("refund", "3.00", "succeeded")]


def shown(world: BillingWorld, name: str) -> list[tuple[str, str, str]]:
    (invoice,) = world.invoices(name)
    return sorted((each["type"], each["amount"], each["status"]) for each in invoice.document()["adjustments"])


def test_events_in_any_order_and_number_come_to_the_same(world: BillingWorld, client: Client) -> None:
    at_stripe, events = paid_with_adjustments(world, "shuffled")
    assert {e["type"] for e in events} >= {
        "invoice.paid",
        "refund.created",
        "charge.dispute.created",
        "credit_note.created",
    }
    for each in [*reversed(events), *events]:
        assert post(client, each).status_code == 200
    assert shown(world, "shuffled") == ADJUSTED
    (invoice,) = world.invoices("shuffled")
    assert (invoice.state, invoice.stripe_invoice_id) == ("paid", at_stripe["id"])
    assert len([order for order in world.context.log.state.orders if order.customer_id == "shuffled"]) == 1
    size = world.ledger_size()
    for each in events:  # delayed: some tell of the invoice as it was before, and it is looked at once more
        assert post(client, each).json()["outcome"] in ("known", "ignored", "applied")
    assert world.ledger_size() == size
    adjusting = [each for each in events if each["type"] not in ("invoice.paid", "invoice.payment_failed")]
    reads = len(world.stripe.requests("GET"))
    assert {post(client, each).json()["outcome"] for each in adjusting} == {"known", "ignored"}
    assert len(world.stripe.requests("GET")) == reads


def test_what_an_event_says_of_money_is_not_believed(world: BillingWorld, client: Client) -> None:
    _, events = paid_with_adjustments(world, "forged")
    refund = next(e["data"]["object"] for e in events if e["type"] == "refund.created")
    forged = {**refund, "amount": 13500, "status": "failed"}
    assert post(client, event("refund.failed", forged)).json() == {"outcome": "applied"}
    assert shown(world, "forged") == ADJUSTED[2:]
    made_up = {**refund, "id": "re_of_nobody"}
    assert post(client, event("refund.created", made_up)).json() == {"outcome": "ignored"}
    elsewhere = {**refund, "id": "cn_1", "object": "credit_note", "invoice": "in_of_nobody"}
    assert post(client, event("credit_note.created", elsewhere)).json() == {"outcome": "ignored"}


def test_an_event_of_another_account_is_not_ours(world: BillingWorld, client: Client) -> None:
    at_stripe = declined(world, "elsewhere")
    paid = world.at_stripe("POST", f"/v1/invoices/{at_stripe['id']}/pay", paid_out_of_band="true")
    other = {**event("invoice.paid", paid), "account": "acct_another"}
    assert post(client, other).json() == {"outcome": "ignored"}
    (invoice,) = world.invoices("elsewhere")
    assert invoice.state == "payment_failed"
    assert post(client, event("invoice.paid", paid)).json() == {"outcome": "applied"}


@pytest.mark.parametrize(
    "ignored",
    [
        {"type": "customer.created", "data": {"object": {"id": "cus_1"}}},
        {"type": "invoice.of_a_later_version", "data": {"object": {"id": "in_1"}}},
        {"type": "invoice.paid", "data": {"object": {"id": "in_of_nobody"}}},
        {"type": "invoice.paid", "data": {"object": {}}},
        {"type": "invoice.paid", "data": None},
        {"type": 7},
        {},
    ],
)
def test_what_is_not_ours_is_answered_and_left_alone(client: Client, ignored: dict[str, Any]) -> None:
    answer = post(client, ignored)
    assert (answer.status_code, answer.json()) == (200, {"outcome": "ignored"})


PAYLOAD = json.dumps({"type": "invoice.paid", "data": {"object": {"id": "in_1"}}})


def test_each_endpoint_at_stripe_has_a_secret(client: Client) -> None:
    for secret in (SECRET, ROLLED):
        headers = {"Stripe-Signature": signature(PAYLOAD, secret=secret)}
        assert client.request("POST", PAYLOAD, **headers).status_code == 200


@pytest.mark.parametrize(
    ("payload", "header"),
    [
        (PAYLOAD, ""),
        (PAYLOAD, "t=1,v1=0"),
        (PAYLOAD, "nonsense"),
        (PAYLOAD, signature(PAYLOAD, secret="whsec_of_another")),
        (PAYLOAD + " ", signature(PAYLOAD)),
        (PAYLOAD, signature(PAYLOAD, at=time.time() - 3600)),
        ("[]", signature("[]")),
        ("{", signature("{")),
        ("x" * 1_100_000, "t=1,v1=0"),
    ],
    ids=[
        "unsigned",
        "wrong",
        "not a signature",
        "another's",
        "changed",
        "old",
        "not an object",
        "not JSON",
        "too long",
    ],
)
def test_what_stripe_did_not_sign_is_refused(client: Client, payload: str, header: str) -> None:
    answer = client.request("POST", payload, **{"Stripe-Signature": header})
    assert answer.status_code == 400
    assert answer.json()["code"] == "webhook_refused"
    assert client.request("GET").status_code == 405
