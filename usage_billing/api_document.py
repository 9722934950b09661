"""Settings → the OpenAPI document of the HTTP API, without a server and without Kafka."""

from __future__ import annotations

import json

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from schemas.settings import Settings


def api_document(settings: Settings) -> str:
    """The JSON text of docs/openapi.json: what `GET /openapi.json` answers, indented for a reader."""
    return json.dumps(Dashboard(settings, CatalogStore(settings)).app.openapi(), indent=2, ensure_ascii=False)
