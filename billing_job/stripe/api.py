"""billing_job → Stripe, through the official SDK: bounded in time and rate, every failure either certain or unknown.

The SDK's own retries are off: it makes no difference between what certainly did not happen and what may have. Here a
call is repeated with the same idempotency key while that can help, and what it raises says what is known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit

import stamina
import stripe
import structlog

from billing_job import metrics
from billing_job.stripe.http import PooledClient
from billing_job.stripe.objects import API_VERSION, PAYMENTS
from ledger.records import IDEMPOTENCY_ERROR
from schemas.settings import Settings
from schemas.stripe_ids import is_account_id

log = structlog.get_logger(__name__)

Json = Mapping[str, Any]
T = TypeVar("T")

PAGE = 100
_STRIPE_HOST = "api.stripe.com"
# Source: Stripe, "Rate limits": 100 operations a second in live mode, 25 in test mode. A quarter is left to others.
_NO_SHARE_SECONDS = 0.2
_LIVE_CALLS_PER_SECOND = 75
_TEST_CALLS_PER_SECOND = 25


class StripeFailure(Exception):
    """A call failed. status: HTTP's, None without an answer. code: Stripe's, or ours. param: the parameter at fault."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None,
        code: str | None,
        request_id: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.request_id = request_id

    @property
    def reason(self) -> str:
        """For the invoice: the code and what Stripe says."""
        return f"{self.code}: {self}" if self.code else str(self)


class StripeRefused(StripeFailure):
    """Certain: nothing was done (400, 401, 403, 404, 429)."""


class StripeDeclined(StripeFailure):
    """402: done, and the bank said no. Stripe tries again by its own schedule, we don't."""


class IdempotencyMisuse(StripeRefused):
    """The key was used with other parameters: a fault of ours, the invoice stops."""


class StripeUnknown(StripeFailure):
    """No answer, 409 or 5xx for as long as we asked: it may have been done. The key stays the same."""


class StripeReplayed(StripeUnknown):
    """A 5xx that Stripe kept under the key: it will answer no better. Only a look at the objects tells."""


class _Again(Exception):
    """Asking again, with the same key, can help."""

    def __init__(self, failure: StripeFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def classified(error: stripe.StripeError) -> StripeFailure:
    """What is known after an error of the SDK."""
    status, code = error.http_status, error.code
    kind: type[StripeFailure]
    if isinstance(error, stripe.IdempotencyError) and status in (400, 404):
        kind, code = IdempotencyMisuse, IDEMPOTENCY_ERROR
    elif status == 402:
        kind, code = StripeDeclined, (error.error.decline_code if error.error is not None else None) or code
    elif status == 429:
        kind, code = StripeRefused, code or "rate_limit"
    elif status is not None and 400 <= status < 500 and status != 409:
        kind = StripeRefused
    elif status is not None and status >= 500 and (error.headers or {}).get("Idempotent-Replayed") == "true":
        kind = StripeReplayed
    else:  # no answer, a conflict, a server's error, or an answer that can't be read
        kind = StripeUnknown
    param = getattr(error, "param", None)
    return kind(error.user_message or str(error), status=status, code=code, request_id=error.request_id, param=param)


def path_of(pattern: str, *ids: str) -> str:
    """`/v1/invoices/{}/pay` and an id → the path of a call. Whatever an id holds, it stays one part of the path.

    Raises StripeRefused for what HTTP clients take out of a path: "", "." and "..".
    """
    for each in ids:
        if each in ("", ".", ".."):
            raise StripeRefused(f"No such object: {each!r}", status=404, code="resource_missing")
    return pattern.format(*(quote(each, safe="") for each in ids))


def calls_per_second(settings: Settings) -> int | None:
    """The limit to keep; None: none."""
    if settings.stripe_calls_per_second is not None:
        return settings.stripe_calls_per_second
    if urlsplit(settings.stripe_api_base).hostname != _STRIPE_HOST:
        return None
    return _LIVE_CALLS_PER_SECOND if is_live(settings) else _TEST_CALLS_PER_SECOND


def is_live(settings: Settings) -> bool:
    """Whether the key moves money."""
    return "_live_" in settings.stripe_api_key.get_secret_value()


class _Pace:
    """Calls a second, for all threads, evenly: a part of the limit that may change while it is used."""

    def __init__(self, rate: int, share: Callable[[], Fraction]) -> None:
        self._rate, self._share = rate, share
        self._lock = threading.Lock()
        self._next_at = 0.0

    def wait(self) -> None:
        """Until a call may be made."""
        while not (allowed := self._rate * self._share()):
            time.sleep(_NO_SHARE_SECONDS)
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next_at)
            self._next_at = at + float(1 / allowed)
        time.sleep(at - now)


class StripeApi:
    """What billing asks of Stripe. Thread-safe, a context manager. Objects come as dicts. Every call raises
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
        self._pace = None if rate is None else _Pace(rate, share)

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
        """Only a draft can be deleted. One that is gone already is no error."""
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
                failure = classified(error)
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
        # What is refused before Stripe looks at the key says nothing about an earlier call with it.
        if may_run and isinstance(failure, StripeRefused) and failure.status in (401, 403, 429):
            raise StripeUnknown(
                str(failure), status=failure.status, code=failure.code, request_id=failure.request_id
            ) from failure
        raise failure
