"""billing's errors and answers → those of the dashboard's port."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaException

from billing_job.collect.customer_changes import StripeDoesNotTake
from billing_job.collect.steps import InvoiceStopped
from billing_job.collect.void_credit import NotPossible
from billing_job.invoice.explain import NoSuchLine
from billing_job.invoice.simulate import NotSimulable
from billing_job.service import NotFixed, UnknownInvoice
from billing_job.stripe.errors import IdempotencyMisuse, StripeDeclined, StripeRefused, StripeUnknown
from dashboard.billing_port import BillingConflict, BillingRefused, BillingUnavailable, Verified
from ledger.store import LedgerUnavailable
from schemas.settings import Settings
from usage_billing.billing_adapter import BillingAdapter
from warehouse.client import WarehouseUnavailable

AWAY = [LedgerUnavailable("ledger"), WarehouseUnavailable("ClickHouse"), KafkaException("Kafka")]


def adapter(**service: Any) -> BillingAdapter:
    """One whose service is a fake; nothing is connected to."""
    made = BillingAdapter(Settings(), Mock(), Mock())
    made._service = Mock(**service)
    return made


def raising(error: Exception) -> Mock:
    return Mock(side_effect=error)


@pytest.mark.parametrize("error", AWAY)
def test_a_part_that_does_not_answer_is_unavailable(error: Exception) -> None:
    with pytest.raises(BillingUnavailable):
        adapter(accrue=raising(error)).accrue("org", 1)


def test_an_invoice_that_the_ledger_has_not_reached_is_unavailable() -> None:
    with pytest.raises(BillingUnavailable, match="inv_1"):
        adapter(explain=raising(UnknownInvoice("there is no invoice 'inv_1'"))).explain("inv_1")


def test_an_invoice_without_a_snapshot_can_not_be_verified() -> None:
    answer = adapter(verify=raising(NotFixed("inv_1"))).verify("inv_1")
    assert answer == Verified("", ("the invoice is not fixed yet",))


@pytest.mark.parametrize(
    ("error",         "field"),
    [
        (NotFixed("x"),   "id"),
        (NoSuchLine("x"), "line"),
    ],
)  # fmt: skip
def test_events_of_what_is_not_there_are_refused(error: Exception, field: str) -> None:
    with pytest.raises(BillingRefused) as refused:
        adapter(line_events=raising(error)).events("inv_1", 3)
    assert refused.value.field == field


def test_an_error_in_the_first_block_is_raised_before_the_answer_begins() -> None:
    def blocks() -> Iterator[str]:
        yield "head\n"
        raise WarehouseUnavailable("ClickHouse")

    with pytest.raises(BillingUnavailable):
        adapter(line_events=Mock(return_value=blocks())).events("inv_1", None)
    whole = adapter(line_events=Mock(return_value=iter(["head\n", "a\n", "b\n"]))).events("inv_1", None)
    assert "".join(whole) == "head\na\nb\n"


def test_a_simulation_is_refused_by_its_field() -> None:
    with pytest.raises(BillingRefused) as refused:
        adapter(simulate=raising(NotSimulable("product_id", "no"))).simulate("org", "c", "p", Mock())
    assert refused.value.field == "product_id"


def failure(kind: type[Any], status: int | None) -> Any:
    return kind("no", status=status, code=None)


@pytest.mark.parametrize(
    ("error",                                        "kind",             "code"),
    [
        (NotPossible("invalid_amount", "x"),             BillingRefused,     "invalid_amount"),
        (NotPossible("request_reused", "x"),             BillingRefused,     "idempotency_key_reused"),
        (NotPossible("paid", "x"),                       BillingConflict,    "invoice_paid"),
        (NotPossible("not_fixed", "x"),                  BillingConflict,    "invoice_not_computed"),
        (InvoiceStopped("x"),                            BillingConflict,    "invoice_busy"),
        (failure(IdempotencyMisuse, 400),                BillingConflict,    "stripe_idempotency_error"),
        (failure(StripeRefused, 400),                    BillingRefused,     "stripe_refused"),
        (failure(StripeDeclined, 402),                   BillingRefused,     "stripe_refused"),
        (failure(StripeRefused, 403),                    BillingUnavailable, None),
        (failure(StripeUnknown, None),                   BillingUnavailable, None),
    ],
)  # fmt: skip
def test_why_a_change_was_not_made(error: Exception, kind: type[Exception], code: str | None) -> None:
    with pytest.raises(kind) as raised:
        adapter(invoice=raising(error)).void("inv_1", reason="wrong", reissue=False, by="key")
    assert getattr(raised.value, "code", None) == code


def test_what_stripe_does_not_take_is_refused_by_its_field() -> None:
    with pytest.raises(BillingRefused) as refused:
        adapter(check_customer=raising(StripeDoesNotTake("payment_method", "refused", "no"))).check_customer(
            None, Mock()
        )
    assert (refused.value.field, refused.value.code) == ("payment_method", "refused")
    with pytest.raises(BillingUnavailable, match="nothing is changed"):
        adapter(check_settings=raising(failure(StripeUnknown, None))).check_settings(Mock(), Mock())
