"""`usage-billing billing`: closes due cycles and polls Stripe for payments whose webhooks were missed."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import structlog
from confluent_kafka import KafkaException
from prometheus_client import REGISTRY

from billing_job.close import close_cycles
from billing_job.collect.poller import Poller
from billing_job.collect.steps import system_clock
from billing_job.context import BillingContext, open_billing
from billing_job.metrics import InvoicesByState
from billing_job.worker_group import WorkerGroup
from ledger.store import LedgerUnavailable
from runtime.health import Check, HealthServer
from runtime.kafka.admin import check_partitions
from runtime.kafka.client_watch import TopicWatch
from runtime.one_by_one import reason_of
from runtime.signals import stop_on_signals
from schemas.settings import Settings
from warehouse.client import WarehouseUnavailable

log = structlog.get_logger(__name__)

_ROUNDS_MISSED_MAX = 10
_LOOK_SECONDS = 0.5


def run(settings: Settings) -> int:
    """Work until SIGTERM or SIGINT; an invoice that is being charged is brought to its next step. The exit code."""
    stopping = stop_on_signals()
    check_partitions(settings)
    with ExitStack() as stack:
        stack.enter_context(TopicWatch(settings))
        group = stack.enter_context(WorkerGroup(settings, is_worker=True))
        context = stack.enter_context(open_billing(settings, group))
        collector = InvoicesByState(lambda: context.log.state)
        REGISTRY.register(collector)
        stack.callback(REGISTRY.unregister, collector)
        worker = Worker(context, group)
        stack.enter_context(HealthServer(settings.metrics_host, settings.billing_metrics_port, worker.checks))
        log.info("billing_started", every_seconds=settings.billing_seconds)
        while not stopping.is_set():
            worker.round(stopping)
            worker.rest(stopping)
    log.info("billing_stopped")
    return 0


class Worker:
    """One round after the other; each is complete in itself, so that the next repairs what one left.

    Several workers share the customers.
    """

    def __init__(self, context: BillingContext, group: WorkerGroup) -> None:
        self._context = context
        self._group = group
        self._poller = Poller(context.billing(scheduled=True), context.settings.sweep_seconds, group.is_mine)
        self._alive_at = time.monotonic()
        self._failure: str | None = None
        self.checks: dict[str, Check] = {
            "catalog": lambda: None if context.catalog.ready else "not following the log",
            "ledger": context.log.check,
            "round": self._check,
            "share": group.check,
        }

    def round(self, stopping: threading.Event) -> None:
        """Close the cycles that are due, then poll Stripe. A part that does not answer is reported and retried."""
        try:
            report = close_cycles(
                self._context,
                system_clock(),
                scheduled=True,
                stopping=stopping,
                progress=self._progress,
                only=lambda due: self._group.is_mine(due.organization_id, due.customer_id),
            )
            self._failure = report.waiting
            if report.fixed or report.problems or report.waiting:
                log.info(
                    "closed",
                    fixed=report.fixed,
                    states=report.by_state,
                    problems=len(report.problems),
                    waiting=report.waiting,
                    seconds={part: round(seconds, 3) for part, seconds in report.seconds.items()},
                )
            self._poller.run(stopping)
        except (LedgerUnavailable, WarehouseUnavailable, KafkaException) as error:
            self._failure = str(error)
            log.warning("round_failed", error=str(error))
        except Exception as error:  # what no loop could lay on one invoice; the next round may do better
            self._failure = reason_of(error)
            log.exception("round_failed")
        self._alive_at = time.monotonic()

    def rest(self, stopping: threading.Event) -> None:
        """Until the next round: at once where other customers came to this worker."""
        before, deadline = self._group.partitions, time.monotonic() + self._context.settings.billing_seconds
        while not stopping.is_set() and time.monotonic() < deadline and self._group.partitions <= before:
            stopping.wait(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))

    def _progress(self, part: str, done: int, total: int) -> None:
        del part, done, total
        self._alive_at = time.monotonic()

    def _check(self) -> str | None:
        if self._failure is not None:
            return self._failure
        allowed = _ROUNDS_MISSED_MAX * self._context.settings.billing_seconds + 60
        late = time.monotonic() - self._alive_at
        return f"no progress for {late:.0f} s" if late > allowed else None
