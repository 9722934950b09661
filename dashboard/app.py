"""HTTP → control API, read API and pages, as one ASGI application."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from catalog.store import CatalogStore
from dashboard import control, events_document, read, schema_registry
from dashboard.billing_port import BillingPort
from dashboard.examples import EXAMPLES
from dashboard.live import LiveTotals
from dashboard.pages import install_pages
from dashboard.problems import ProblemDocument, install_problem_handlers, problem_responses
from dashboard.revenue_book import RevenueBook
from dashboard.services import Services
from dashboard.voiding import EventVoids
from dashboard.warehouse_access import WarehouseAccess
from dashboard.webhooks.worker import DeliveryLog, WebhookWorker
from runtime.health import Check
from runtime.kafka.acked_producer import AckedProducer
from schemas.settings import Settings

_DELIVERY_SECONDS = 5.0  # of the few records that a page or a webhook writes


class Dashboard:
    """The application and what it keeps running. start() and stop() belong to the process that serves it."""

    def __init__(self, settings: Settings, catalog: CatalogStore, billing: BillingPort | None = None) -> None:
        writer = AckedProducer(settings.kafka_properties, delivery_seconds=_DELIVERY_SECONDS, more={"linger.ms": 0})
        deliveries = DeliveryLog(settings, writer)
        self._webhooks = WebhookWorker(settings, catalog.view, deliveries)
        live = LiveTotals(settings)
        self.services = Services(
            settings,
            catalog,
            live,
            WarehouseAccess(settings),
            deliveries,
            EventVoids(settings, writer),
            RevenueBook(catalog.view, live.view),
            self._webhooks.check,
            billing,
        )
        self.app = create_app(self.services)

    @property
    def checks(self) -> dict[str, Check]:
        """For /readyz."""
        return {"live_totals": self.services.live.check, "webhooks": self._webhooks.check}

    def start(self) -> None:
        self.services.live.start()
        self._webhooks.start()

    async def stop(self) -> None:
        """Let open streams end, and stop reading."""
        self.services.stopping.set()
        await asyncio.gather(asyncio.to_thread(self._webhooks.stop), asyncio.to_thread(self.services.live.stop))
        self.services.warehouse.close()
        self.services.revenue.close()


def create_app(services: Services) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(
        title="Usage metering and billing",
        summary="Post usage, look at it, and have it invoiced.",
        version=version("usage-billing"),
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.services = services
    install_problem_handlers(app)
    # A customer's id may contain a slash: what is below a customer comes before the customer.
    for router in (*read.routers(), *control.routers()):
        app.include_router(router)
    app.include_router(schema_registry.router)
    install_pages(app, services)
    _describe_problems(app)
    return app


def _operation_id(route: APIRoute) -> str:
    """Generated clients name their methods by it: the handler's name, which a test keeps unique."""
    return route.name


def _summary(operation_id: str) -> str:
    """list_api_keys → List API keys"""
    return operation_id.replace("_", " ").capitalize().replace(" api ", " API ").replace("csv", "CSV")


def _describe_problems(app: FastAPI) -> None:
    """Put the one shape of every error, and the examples, into the OpenAPI document."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = describe()
            problem = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = document.setdefault("components", {}).setdefault("schemas", {})
            parts.update(problem.pop("$defs", {}))
            parts["ProblemDocument"] = problem
            for name, example in EXAMPLES.items():
                parts[name]["examples"] = [example]
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["summary"] = _summary(operation["operationId"])
                    if "requestBody" in operation:
                        answers = {str(status): answer for status, answer in problem_responses(413, 415).items()}
                        operation["responses"] |= answers
            for path, operations in events_document.PATHS.items():
                document["paths"].setdefault(path, {}).update(operations)
            document["paths"] = dict(sorted(document["paths"].items()))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
