"""the event loop → billing's desk: questions in threads, what it refuses as problems."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dashboard.invoice_desk import DeskConflict, DeskRefused, DeskUnavailable, InvoiceDesk
from dashboard.problems import field_problem, unavailable_problem
from dashboard.services import Services
from runtime.problem import Problem

T = TypeVar("T")


def desk_of(services: Services) -> InvoiceDesk:
    """Raises Problem 503 in a process without a ledger."""
    if services.desk is None:
        raise unavailable_problem("this process has no access to billing's ledger")
    return services.desk


async def answered(question: Callable[[], T]) -> T:
    """The desk's answer, from a thread. Raises Problem 409, 422 and 503."""
    try:
        return await asyncio.to_thread(question)
    except DeskRefused as refused:
        raise field_problem(refused.field, refused.code, str(refused)) from None
    except DeskConflict as conflict:
        raise Problem(409, conflict.code, str(conflict)) from None
    except DeskUnavailable as error:
        raise unavailable_problem(str(error)) from None
