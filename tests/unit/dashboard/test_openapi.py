"""The OpenAPI document, without a server: valid, and every body and answer has an example that it describes."""

from typing import Any

import jsonschema_rs
import pytest

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from dashboard.examples import EXAMPLES
from schemas.settings import Settings


def document() -> dict[str, Any]:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    return Dashboard(settings, CatalogStore(settings)).app.openapi()


DOCUMENT = document()


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_is_what_its_schema_says(name: str) -> None:
    parts = DOCUMENT["components"]["schemas"]
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": parts}}
    jsonschema_rs.validate(schema, EXAMPLES[name])
    allowed = set(parts[name]["properties"])
    assert parts[name].get("additionalProperties") is True or set(EXAMPLES[name]) <= allowed


def test_every_body_and_answer_has_an_example() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            contents = [
                *operation.get("requestBody", {}).get("content", {}).values(),
                *(
                    media
                    for status, answer in operation["responses"].items()
                    if status.startswith("2")
                    for kind, media in answer.get("content", {}).items()
                    if kind == "application/json"
                ),
            ]
            for content in contents:
                schema = content.get("schema", {})
                refs = [each.get("$ref", "").rsplit("/", 1)[-1] for each in (schema, *schema.get("anyOf", ()))]
                assert "example" in content or any(name in EXAMPLES for name in refs), (method, path)
