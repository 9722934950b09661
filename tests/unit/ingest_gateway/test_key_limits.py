"""A key that keeps posting what fails is answered 429, before its body is read."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from catalog.record import CatalogRecord
from catalog.store import CatalogStore
from catalog.view import CatalogView
from ingest_gateway.app import PATH, Gateway
from schemas.organization import ApiKey, Scope, secret_digest
from schemas.settings import Settings


def test_failures_of_a_key_are_limited() -> None:
    view = CatalogView()
    key = ApiKey(
        id="key_1", organization_id="default", scopes=(Scope.INGEST,), sha256=secret_digest("s"), hint="", created_at=0
    )
    assert view.apply(CatalogRecord(key, 0, 0)) is None
    settings = Settings(key_failures_per_minute=2)  # pyright: ignore[reportCallIssue]
    gateway = Gateway(settings, cast(CatalogStore, SimpleNamespace(view=view)))
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    async def run() -> None:
        for _ in range(3):
            headers = [(b"authorization", b"Bearer s"), (b"content-length", b"1")]
            scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "client": ("10.0.0.1", 1)}
            await gateway(scope, receive, send)

    asyncio.run(run())
    started = [each for each in answers if each["type"] == "http.response.start"]
    assert [each["status"] for each in started] == [400, 400, 429]
    assert b"retry-after" in dict(started[-1]["headers"])
