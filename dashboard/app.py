"""HTTP → control API, read API and pages, as one ASGI application."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from catalog.store import CatalogStore
from dashboard import control, events_document, read, schema_registry
from dashboard.live import LiveTotals
from dashboard.pages import install_pages
from dashboard.problems import ProblemDocument, install_problem_handlers
from dashboard.services import Services
from dashboard.warehouse_access import WarehouseAccess
from runtime.health import Check
from schemas.settings import Settings


class Dashboard:
    """The application and what it keeps running. start() and stop() belong to the process that serves it."""

    def __init__(self, settings: Settings, catalog: CatalogStore) -> None:
        self.services = Services(settings, catalog, LiveTotals(settings), WarehouseAccess(settings))
        self.app = create_app(self.services)

    @property
    def checks(self) -> dict[str, Check]:
        """For /readyz."""
        return {"live_totals": self.services.live.check}

    def start(self) -> None:
        self.services.live.start()

    async def stop(self) -> None:
        """Let open streams end, and stop reading."""
        self.services.stopping.set()
        await asyncio.to_thread(self.services.live.stop)
        self.services.warehouse.close()


def create_app(services: Services) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(
        title="Usage metering and billing",
        summary="Post usage, look at it, and have it invoiced.",
        version=version("usage-billing"),
        docs_url=None,
        redoc_url=None,
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


def _describe_problems(app: FastAPI) -> None:
    """Put the one shape of every error into the OpenAPI document."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = describe()
            problem = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = document.setdefault("components", {}).setdefault("schemas", {})
            parts.update(problem.pop("$defs", {}))
            parts["ProblemDocument"] = problem
            for path, operations in events_document.PATHS.items():
                document["paths"].setdefault(path, {}).update(operations)
            document["paths"] = dict(sorted(document["paths"].items()))
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
