"""Billing's loops over customers and invoices: which exceptions concern one invoice, and which all of them."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import KafkaException

from billing_job.stripe.errors import StripeFailure, StripeRefused
from catalog.store import CatalogUnavailable
from ledger.store import LedgerUnavailable
from runtime.one_by_one import OneByOne
from warehouse.client import TooMuch, WarehouseUnavailable

_AWAY = (LedgerUnavailable, CatalogUnavailable, WarehouseUnavailable, KafkaException)


def concerns_all(error: Exception) -> bool:
    """Whether a part does not answer that every invoice needs. A count too large for ClickHouse concerns one."""
    return isinstance(error, _AWAY) and not isinstance(error, TooMuch)


def stripe_is_away(error: Exception) -> bool:
    """`concerns_all`, and Stripe not answering; what it refuses is one invoice's."""
    return concerns_all(error) or (isinstance(error, StripeFailure) and not isinstance(error, StripeRefused))


def invoice_by_invoice(name: str, on_failure: Callable[[str, str], object] | None = None) -> OneByOne:
    """A loop whose keys are ids of invoices. name, on_failure: see OneByOne."""
    return OneByOne(name, concerns_all, on_failure)
