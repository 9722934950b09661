"""The dashboard: server-rendered pages. Each route reads the visitor's session and shows that organization alone."""

from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request, Response

from dashboard.conservation import Conservations
from dashboard.pages import (
    alerts,
    api_keys,
    billing_run,
    customers,
    docs,
    duplicates,
    export,
    home,
    invoice_changes,
    invoices,
    meters,
    orders,
    products,
    settings,
    sign,
    subscriptions,
    usage,
    void,
)
from dashboard.pages.rendering import STATIC, render
from dashboard.pages.session import Sessions, SignInLimit, SignInNeeded
from dashboard.pages.static import CachedStatic
from dashboard.problems import HANDLED, answered_problem, problem_response
from dashboard.services import Services


def routers() -> list[APIRouter]:
    """All pages."""
    return [
        module.router
        for module in (
            home,
            sign,
            docs,
            void,
            duplicates,
            usage,
            billing_run,  # before `/invoices/{id}`
            invoice_changes,  # before `…/{what}`
            invoices,
            orders,
            alerts,
            customers,
            subscriptions,
            products,
            meters,
            export,
            api_keys,
            settings,
        )
    ]


def install_pages(app: FastAPI, services: Services) -> None:
    """Add the pages, their static files and sessions to the application."""
    app.state.sessions = Sessions(services.settings, services.catalog.view)
    app.state.conservations = Conservations()
    app.state.sign_in_limit = SignInLimit()
    for router in routers():
        app.include_router(router)
    app.mount("/static", CachedStatic(directory=STATIC))
    app.add_exception_handler(SignInNeeded, _to_sign_in)
    for kind in HANDLED:
        app.add_exception_handler(kind, _problem_or_page)


async def _problem_or_page(request: Request, error: Exception) -> Response:
    """A problem for programs, a page that says the same for people."""
    problem = answered_problem(request, error)
    outside = request.url.path.startswith(("/api/", "/schema-registry", "/openapi.json", "/webhooks"))
    if outside or "text/html" not in request.headers.get("accept", ""):
        return problem_response(problem)
    title = HTTPStatus(problem.status).phrase
    return render(request, "error.html", None, status=problem.status, problem=problem, title=title)


async def _to_sign_in(request: Request, _: Exception) -> Response:
    return await sign.signed_out(request)
