"""billing_job → Stripe, through the official SDK: bounded in time and rate, every failure either certain or unknown.

The SDK's own retries are off: it makes no difference between what certainly did not happen and what may have. Here a
call is repeated with the same idempotency key while that can help, and what it raises says what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit

import stamina
import stripe
import structlog

from billing_job import metrics
from billing_job.stripe.errors import (
    StripeFailure,
    StripeRefused,
    StripeReplayed,
    StripeUnknown,
    classify,
)
from billing_job.stripe.http import PooledClient
from billing_job.stripe.objects import API_VERSION, PAYMENTS
from billing_job.stripe.rate import Pace, calls_per_second, is_live
from schemas.settings import Settings
from schemas.stripe_ids import is_account_id

log = structlog.get_logger(__name__)

Json = Mapping[str, Any]
T = TypeVar("T")

PAGE = 100


class _Again(Exception):
    """Asking again, with the same key, can help."""

    def __init__(self, failure: StripeFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def path_of(pattern: str, *ids: str) -> str:
    """`/v1/invoices/{}/pay` and an id → the path of a call. Whatever an id holds, it stays one part of the path.

    Raises StripeRefused for what HTTP clients take out of a path: "", "." and "..".
    """
    for each in ids:
        if each in ("", ".", ".."):
            raise StripeRefused(f"No such object: {each!r}", status=404, code="resource_missing")
    return pattern.format(*(quote(each, safe="") for each in ids))


class StripeApi:
    """Billing's calls to Stripe. Thread-safe, a context manager. Objects come as dicts. Every call raises
    StripeFailure.

    share: this process's part of the rate, where there is a limit.
    account: the `Stripe-Account` to act for, None is the owner of the key.
    """

    def __init__(self, settings: Settings, share: Callable[[], Fraction] = lambda: Fraction(1)) -> None:
        self._http = PooledClient(
            settings.stripe_api_base,
            timeout_seconds=settings.stripe_timeout_seconds,
            connections_max=settings.billing_concurrency,
        )
        self._client = stripe.StripeClient(
            settings.stripe_api_key.get_secret_value(),
            stripe_version=API_VERSION,
            base_addresses={"api": settings.stripe_api_base.rstrip("/")},  # pyright: ignore[reportArgumentType]
            max_network_retries=0,
            http_client=self._http,
        )
        self._retry_seconds = settings.stripe_retry_seconds
        self._host = urlsplit(settings.stripe_api_base).netloc
        self._mode = "live" if is_live(settings) else "test"
        rate = calls_per_second(settings)
        self._pace = None if rate is None else Pace(rate, share)

    def __enter__(self) -> StripeApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @cached_property
    def owner(self) -> str:
        """Which Stripe this is: account and mode of the key, `acct_1AbC:test`. Its ids mean nothing to any other.

        Where the key may not ask, the address stands for the account. Raises StripeFailure without an answer.
        """
        try:
            account = str(self._read("GET", "/v1/account", None)["id"])
        except StripeRefused as refused:
            if refused.status == 401:
                raise
            account = self._host
        return f"{account}:{self._mode}"

    # -- reading -------------------------------------------------------------------------------------------------------

    def invoice(self, invoice_id: str, account: str | None) -> Json:
        """An invoice, and how its payments stand."""
        return self._read("GET", path_of("/v1/invoices/{}", invoice_id), account, expand=[PAYMENTS])

    def invoices_of(self, customer_id: str, account: str | None) -> list[Json]:
        """All invoices of a customer, oldest first. Listed, never searched: the search index lags."""
        return self._all("/v1/invoices", account, customer=customer_id)

    def items_of(self, invoice_id: str, account: str | None) -> list[Json]:
        """All items of an invoice, oldest first."""
        return self._all("/v1/invoiceitems", account, invoice=invoice_id)

    def customer(self, customer_id: str, account: str | None) -> Json:
        """One that was deleted is answered with `deleted`."""
        return self._read("GET", path_of("/v1/customers/{}", customer_id), account)

    def account(self, account: str | None) -> Json:
        """The account that calls act for. Raises StripeRefused for one that the key has no access to."""
        return self._read("GET", "/v1/account", account)

    def tax_rate(self, tax_rate_id: str, account: str | None) -> Json:
        return self._read("GET", path_of("/v1/tax_rates/{}", tax_rate_id), account)

    def customers_since(self, created_seconds: int, account: str | None) -> list[Json]:
        """Customers made since then (seconds since 1970, Stripe's clock), oldest first."""
        return self._all("/v1/customers", account, created={"gte": created_seconds})

    def credit_note(self, credit_note_id: str, account: str | None) -> Json:
        return self._read("GET", path_of("/v1/credit_notes/{}", credit_note_id), account)

    def credit_notes_of(self, invoice_id: str, account: str | None) -> list[Json]:
        """All credit notes of an invoice, oldest first."""
        return self._all("/v1/credit_notes", account, invoice=invoice_id)

    def refund(self, refund_id: str, account: str | None) -> Json:
        return self._read("GET", path_of("/v1/refunds/{}", refund_id), account)

    def charge(self, charge_id: str, account: str | None) -> Json:
        return self._read("GET", path_of("/v1/charges/{}", charge_id), account)

    def dispute(self, dispute_id: str, account: str | None) -> Json:
        return self._read("GET", path_of("/v1/disputes/{}", dispute_id), account)

    def payments_of(self, payment_intent_id: str, account: str | None) -> list[Json]:
        """The invoices' payments that a payment intent made: each names its invoice."""
        payment = {"type": "payment_intent", "payment_intent": payment_intent_id}
        return self._all("/v1/invoice_payments", account, payment=payment)

    def events_since(self, created_seconds: int, types: Sequence[str], account: str | None) -> list[Json]:
        """Events of up to 20 types since then (Stripe keeps them for 30 days), oldest first."""
        return self._all("/v1/events", account, types=list(types), created={"gte": created_seconds})

    def payment_method(self, method_id: str, account: str | None) -> Json:
        return self._read("GET", path_of("/v1/payment_methods/{}", method_id), account)

    def tax_ids_of(self, customer_id: str, account: str | None) -> list[Json]:
        """All tax ids of a customer, oldest first."""
        return self._all(path_of("/v1/customers/{}/tax_ids", customer_id), account)

    # -- writing -------------------------------------------------------------------------------------------------------
    # may_have_run: an earlier call with this key was made, and what came of it is not known.

    def create_customer(self, params: Json, account: str | None, key: str, *, may_have_run: bool) -> Json:
        return self._write("POST", "/v1/customers", account, key, params, may_have_run=may_have_run)

    def update_customer(self, customer_id: str, params: Json, account: str | None, key: str) -> Json:
        return self._write("POST", path_of("/v1/customers/{}", customer_id), account, key, params, may_have_run=True)

    def create_tax_id(self, customer_id: str, params: Json, account: str | None, key: str) -> Json:
        return self._write(
            "POST", path_of("/v1/customers/{}/tax_ids", customer_id), account, key, params, may_have_run=True
        )

    def delete_tax_id(self, customer_id: str, tax_id: str, account: str | None) -> None:
        self._delete(path_of("/v1/customers/{}/tax_ids/{}", customer_id, tax_id), account)

    def create_payment_method(self, params: Json, account: str | None, key: str) -> Json:
        return self._write("POST", "/v1/payment_methods", account, key, params, may_have_run=True)

    def attach_payment_method(self, method_id: str, customer_id: str, account: str | None, key: str) -> Json:
        path = path_of("/v1/payment_methods/{}/attach", method_id)
        return self._write("POST", path, account, key, {"customer": customer_id}, may_have_run=True)

    def detach_payment_method(self, method_id: str, account: str | None, key: str) -> Json:
        path = path_of("/v1/payment_methods/{}/detach", method_id)
        return self._write("POST", path, account, key, {}, may_have_run=True)

    def create_invoice(self, params: Json, account: str | None, key: str, *, may_have_run: bool) -> Json:
        return self._write("POST", "/v1/invoices", account, key, params, may_have_run=may_have_run)

    def create_item(self, params: Json, account: str | None, key: str, *, may_have_run: bool) -> Json:
        return self._write("POST", "/v1/invoiceitems", account, key, params, may_have_run=may_have_run)

    def finalize(self, invoice_id: str, account: str | None, key: str, *, may_have_run: bool) -> Json:
        """auto_advance is true from here on: without it Stripe never tries a failed payment again."""
        path = path_of("/v1/invoices/{}/finalize", invoice_id)
        return self._write("POST", path, account, key, {"auto_advance": True}, may_have_run=may_have_run)

    def pay(self, invoice_id: str, account: str | None, key: str, *, may_have_run: bool) -> Json:
        return self._write(
            "POST", path_of("/v1/invoices/{}/pay", invoice_id), account, key, {}, may_have_run=may_have_run
        )

    def void(self, invoice_id: str, account: str | None, key: str, *, may_have_run: bool) -> Json:
        return self._write(
            "POST", path_of("/v1/invoices/{}/void", invoice_id), account, key, {}, may_have_run=may_have_run
        )

    def create_credit_note(self, params: Json, account: str | None, key: str, *, may_have_run: bool) -> Json:
        return self._write("POST", "/v1/credit_notes", account, key, params, may_have_run=may_have_run)

    def delete_invoice(self, invoice_id: str, account: str | None) -> None:
        """Only a draft can be deleted. A missing one is not an error."""
        self._delete(path_of("/v1/invoices/{}", invoice_id), account)

    def delete_item(self, item_id: str, account: str | None) -> None:
        self._delete(path_of("/v1/invoiceitems/{}", item_id), account)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _read(self, method: str, path: str, account: str | None, **params: Any) -> Json:
        return self._repeated(lambda: self._request(method, path, account, None, params), may_have_run=False)

    def _write(
        self, method: str, path: str, account: str | None, key: str, params: Json, *, may_have_run: bool
    ) -> Json:
        return self._repeated(lambda: self._request(method, path, account, key, params), may_have_run=may_have_run)

    def _delete(self, path: str, account: str | None) -> None:
        try:
            self._repeated(lambda: self._request("DELETE", path, account, None, {}), may_have_run=True)
        except StripeRefused as refused:
            if refused.status != 404:
                raise

    def _all(self, path: str, account: str | None, **params: Any) -> list[Json]:
        return list(reversed(list(self._newest_first(path, account, params))))

    def _newest_first(self, path: str, account: str | None, params: Json) -> Iterator[Json]:
        after: dict[str, str] = {}
        while True:
            page = self._read("GET", path, account, **params, **after, limit=PAGE)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}

    def _request(self, method: str, path: str, account: str | None, key: str | None, params: Json) -> Json:
        """One call. Raises stripe.StripeError, and StripeRefused for what can't be sent."""
        if account is not None and not is_account_id(account):
            raise StripeRefused(f"{account!r} is no id of a Stripe account", status=403, code="account_invalid")
        if self._pace is not None:
            self._pace.wait()
        options = {name: value for name, value in (("stripe_account", account), ("idempotency_key", key)) if value}
        outcome = "failed"
        try:
            with metrics.STRIPE_SECONDS.labels(method).time():
                response = self._client.raw_request(method.lower(), path, **params, **options)
            outcome = "done"
        except stripe.StripeError as error:
            outcome = str(error.http_status or "no_answer")
            raise
        except UnicodeError as error:
            raise StripeRefused(f"text that can't be sent: {error}", status=400, code="invalid_text") from error
        finally:
            metrics.STRIPE_CALLS.labels(method, outcome).inc()
        return cast("Json", response.data)

    def _repeated(self, call: Callable[[], T], *, may_have_run: bool) -> T:
        """Call until it succeeds, is certain, or the time is over."""
        may_run = may_have_run

        def once() -> T:
            nonlocal may_run
            try:
                return call()
            except stripe.StripeError as error:
                failure = classify(error)
                if isinstance(failure, StripeReplayed):
                    raise failure from error
                if isinstance(failure, StripeUnknown):
                    may_run = True
                    raise _Again(failure) from error
                if failure.status == 429:
                    raise _Again(failure) from error
                raise failure from error

        try:
            for attempt in stamina.retry_context(
                on=_Again, attempts=None, timeout=self._retry_seconds, wait_initial=0.1, wait_max=5.0, wait_jitter=0.5
            ):
                with attempt:
                    return once()
        except _Again as again:
            failure = again.failure
        except StripeRefused as refused:
            failure = refused
        else:
            raise AssertionError("unreachable")
        # A refusal before Stripe reads the key says nothing about an earlier call with it.
        if may_run and isinstance(failure, StripeRefused) and failure.status in (401, 403, 429):
            raise StripeUnknown(
                str(failure), status=failure.status, code=failure.code, request_id=failure.request_id
            ) from failure
        raise failure
