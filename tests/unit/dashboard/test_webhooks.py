"""Deliveries without a network: where nothing is sent to, when it is sent again, and what a worker takes over."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs
from pydantic import TypeAdapter, ValidationError

from dashboard.webhooks.attempts import attempted, begun, given_up, retried, wait_seconds
from dashboard.webhooks.send import Sender
from dashboard.webhooks.shelf import Shelf
from dashboard.webhooks.targets import RefusedTarget, check_address, resolve
from schemas.alert import Alert
from schemas.alert_rule import AlertKind
from schemas.settings import Settings
from schemas.webhook_delivery import (
    ATTEMPTS_KEPT,
    Attempt,
    DeliveryState,
    RetryRequest,
    UnreadableDelivery,
    WebhookDelivery,
    decode,
    encode,
)
from schemas.webhook_endpoint import WebhookEndpoint, WebhookUrl, new_signing_secret

HOUR_US = 3_600_000_000
ALERT = Alert(
    "alrt_1", "org", "rule_1", "cus_<b>", "mtr_1", AlertKind.AMOUNT, "80", "90.00", 0, HOUR_US, 5_000_000, "eur"
)
ENDPOINT = WebhookEndpoint(
    id="whe_1", organization_id="org", url="https://example.com/h", secret=new_signing_secret(), created_at=0
)


def pending(**changes: object) -> WebhookDelivery:
    return structs.replace(begun(ENDPOINT, ALERT, 1000), **changes)


def attempt(at: int = 0, status: int | None = 500) -> Attempt:
    return Attempt(at, status, None if status and status < 300 else "no", 3)


# -- addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/h",
        "https://localhost/h",
        "https://LOCALHOST./h",
        "https://a.localhost/h",
        "https://printer.local/h",
        "https://metadata.google.internal/h",
        "https://127.0.0.1/h",
        "https://10.0.0.1/h",
        "https://172.16.9.9/h",
        "https://192.168.1.1:8443/h",
        "https://169.254.169.254/latest",
        "https://100.64.0.1/h",
        "https://0.0.0.0/h",
        "https://224.0.0.1/h",
        "https://[::1]/h",
        "https://[::]/h",
        "https://[fd00::1]/h",
        "https://[fe80::1]/h",
        "https://[::ffff:127.0.0.1]/h",
        "https://[::ffff:10.0.0.1]/h",
        "https://[64:ff9b::7f00:1]/h",
        "https://[2002:7f00:1::]/h",
        "https://[ff02::1]/h",
    ],
)
def test_nothing_is_sent_into_our_own_network(url: str) -> None:
    with pytest.raises(RefusedTarget):
        check_address(url, private=False)
    check_address(url, private=True)


@pytest.mark.parametrize("url", ["https://example.com/h", "https://1.1.1.1/h", "https://[2606:4700::1111]/h"])
def test_public_addresses_are_taken(url: str) -> None:
    check_address(url, private=False)


@pytest.mark.parametrize("url", ["https://0x7f000001/h", "https://2130706433/h", "https://127.1/h"])
def test_a_name_that_leads_to_a_private_address_is_refused(url: str) -> None:
    """The resolver reads more spellings of an address than a parser does: what it says is what counts."""
    with pytest.raises((RefusedTarget, OSError)):
        asyncio.run(resolve(url, private=False))


def test_the_address_that_was_checked_is_the_one_that_is_called() -> None:
    target = asyncio.run(resolve("http://127.0.0.1:8080/a?b=c", private=True))
    assert (target.url, target.host_header, target.server_name) == (
        "http://127.0.0.1:8080/a?b=c", "127.0.0.1:8080", "127.0.0.1",
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "ftp://example.com", "https://", "https:///h", "https://user:word@example.com/", "javascript:x",
        "https://example.com/#part", "https://example.com:99999/", "https://example.com/a b", "https://exa\nmple.com/",
        "https://example.com/\n", "https://example.com\n", "https://exämple.com/", "https://example.com/ä", "https://a.b/\x7f",
        "https://example.com\\@other.com/",
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(WebhookUrl).validate_python(url)


# -- attempts -----------------------------------------------------------------------------------------------------------


def test_waits_grow_fourfold_up_to_four_hours() -> None:
    assert [wait_seconds(n, 5.0) for n in range(1, 9)] == [5, 20, 80, 320, 1280, 5120, 14400, 14400]


def test_it_is_sent_again_for_24_hours_and_then_given_up() -> None:
    delivery, at = pending(), 1000
    times: list[int] = []
    while delivery.state is DeliveryState.PENDING:
        at = delivery.next_attempt_at or 0
        times.append(at)
        delivery = attempted(delivery, attempt(at), 5.0, 1.0)
    assert delivery.state is DeliveryState.FAILED
    assert delivery.next_attempt_at is None
    assert 20 * HOUR_US < times[-1] - times[0] <= 24 * HOUR_US
    assert delivery.attempts_made == len(times) == delivery.revision == 12


def test_an_answer_of_2xx_ends_it() -> None:
    failed = attempted(pending(), attempt(), 5.0, 1.0)
    done = attempted(failed, attempt(9, 204), 5.0, 1.0)
    assert (done.state, done.next_attempt_at, done.attempts_made) == (DeliveryState.DELIVERED, None, 2)
    assert attempted(pending(), attempt(9, 302), 5.0, 1.0).state is DeliveryState.PENDING


def test_only_the_last_attempts_are_kept() -> None:
    delivery = pending(retry_until=10**18)
    for _ in range(ATTEMPTS_KEPT + 5):
        delivery = attempted(delivery, attempt(), 0.001, 1.0)
    assert (len(delivery.attempts), delivery.attempts_made) == (ATTEMPTS_KEPT, ATTEMPTS_KEPT + 5)


def test_the_payload_is_the_alert_as_the_api_has_it() -> None:
    payload = json.loads(pending().payload)
    assert payload["type"] == "alert.fired"
    assert payload["timestamp"] == "1970-01-01T00:00:05Z"
    assert payload["data"] == {
        "id": "alrt_1", "rule_id": "rule_1", "customer_id": "cus_<b>", "meter_id": "mtr_1", "kind": "amount",
        "threshold": "80", "quantity": "90.00", "currency": "eur", "not_sent": None, "cycle_start": "1970-01-01T00:00:00Z",
        "cycle_end": "1970-01-01T01:00:00Z", "fired_at": "1970-01-01T00:00:05Z",
    }  # fmt: skip


def test_records_come_back_as_they_were() -> None:
    delivery = attempted(pending(), attempt(), 5.0, 1.0)
    assert decode(delivery.key, encode(delivery)) == delivery
    request = RetryRequest(delivery.id, 7)
    assert request.key != delivery.key  # compaction must not replace a state by a request
    assert decode(request.key, encode(request)) == request
    with pytest.raises(UnreadableDelivery):
        decode(b"dlv_1", b"{}")


# -- what a worker takes over -------------------------------------------------------------------------------------------


def test_the_greatest_revision_is_in_force() -> None:
    shelf, first = Shelf(), pending()
    delivered = attempted(first, attempt(5, 200), 5.0, 1.0)
    shelf.put(first)
    shelf.put(delivered)
    shelf.put(first)  # of a worker that was frozen
    assert shelf.get(first.id) == delivered
    assert list(shelf.due(HOUR_US)) == []


def test_an_alert_that_is_published_again_makes_no_second_delivery() -> None:
    shelf = Shelf()
    (delivery,) = shelf.new_deliveries(ALERT, [ENDPOINT], 1)
    shelf.put(delivery)
    assert shelf.new_deliveries(ALERT, [ENDPOINT], 2) == []
    assert len(shelf.new_deliveries(ALERT, [ENDPOINT.model_copy(update={"id": "whe_2"})], 2)) == 1


def test_due_is_what_waits_no_longer_and_is_not_being_sent() -> None:
    shelf, delivery = Shelf(), pending(next_attempt_at=50)
    shelf.put(delivery)
    assert list(shelf.due(49)) == []
    assert list(shelf.due(50)) == [delivery]
    shelf.in_flight.add(delivery.id)
    assert list(shelf.due(50)) == []


def test_a_request_is_followed_once_and_after_what_is_under_way() -> None:
    shelf, failed = Shelf(), given_up(pending(), 5, "gone")
    shelf.put(failed)
    shelf.ask(RetryRequest(failed.id, 100))
    shelf.in_flight.add(failed.id)
    assert shelf.followed_requests(101) == []
    shelf.in_flight.clear()
    (again,) = shelf.followed_requests(102)
    assert (again.state, again.next_attempt_at, again.retried_at) == (DeliveryState.PENDING, 102, 100)
    shelf.put(again)
    # A worker that starts reads the request again, behind the state that followed it or before it.
    shelf.ask(RetryRequest(failed.id, 100))
    assert shelf.followed_requests(103) == []
    assert retried(attempted(again, attempt(5, 200), 5.0, 1.0), RetryRequest(failed.id, 200), 201) is None


def test_signatures_are_those_of_the_standard() -> None:
    from standardwebhooks import Webhook

    hook, now = Webhook(ENDPOINT.secret), datetime.now(UTC)
    body = pending().payload
    headers = {
        "webhook-id": "alrt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": hook.sign("alrt_1", now, body),
    }
    assert hook.verify(body, headers)["type"] == "alert.fired"
    stale = {**headers, "webhook-timestamp": str(int((now - timedelta(hours=1)).timestamp()))}
    with pytest.raises(Exception, match="too old"):
        hook.verify(body, stale)


def test_a_delivery_that_can_not_be_signed_fails_alone() -> None:
    async def send() -> Attempt:
        sender = Sender(Settings(webhook_private_targets=True))  # pyright: ignore[reportCallIssue]
        try:
            endpoint = ENDPOINT.model_copy(update={"url": "http://127.0.0.1:9/h", "secret": "whsec_a"})
            return await sender.send(endpoint, pending())
        finally:
            await sender.close()

    made = asyncio.run(send())
    assert made.status is None
    assert (made.error or "").startswith("Error: ")
