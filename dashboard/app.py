"""HTTP → control API, read API and pages, as one ASGI application."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from catalog.store import CatalogStore
from dashboard import control
from dashboard.problems import ProblemDocument, install_problem_handlers
from dashboard.services import Services
from schemas.settings import Settings


def create_app(settings: Settings, catalog: CatalogStore) -> FastAPI:
    """The application. catalog: started by the caller, who also stops it."""
    app = FastAPI(
        title="Usage metering and billing",
        summary="Post usage, look at it, and have it invoiced.",
        version=version("usage-billing"),
        docs_url=None,
        redoc_url=None,
        max_body_size=settings.body_bytes_max,
    )
    app.state.services = Services(settings, catalog)
    install_problem_handlers(app)
    for router in control.routers():
        app.include_router(router)
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
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
