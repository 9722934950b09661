"""the event loop → billing: calls in threads, its refusals as problems."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dashboard.billing_port import BillingConflict, BillingPort, BillingRefused, BillingUnavailable
from dashboard.problems import field_problem, unavailable_problem
from dashboard.services import Services
from runtime.problem import Problem

T = TypeVar("T")


def billing_of(services: Services) -> BillingPort:
    """Raises Problem 503 in a process without a ledger."""
    if services.billing is None:
        raise unavailable_problem("this process has no access to billing's ledger")
    return services.billing


async def answered(question: Callable[[], T]) -> T:
    """Billing's answer, from a thread. Raises Problem 409, 422 and 503."""
    try:
        return await asyncio.to_thread(question)
    except BillingRefused as refused:
        raise field_problem(refused.field, refused.code, str(refused)) from None
    except BillingConflict as conflict:
        raise Problem(409, conflict.code, str(conflict)) from None
    except BillingUnavailable as error:
        raise unavailable_problem(str(error)) from None
