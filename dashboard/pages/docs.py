"""/docs: the OpenAPI document as a page, without anything from another address."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from dashboard.pages.rendering import render

router = APIRouter(include_in_schema=False)
_DEPTH_MAX = 6
_ORDER = (
    "Usage", "Meters", "Products", "Customers", "Subscriptions", "Alerts", "Webhooks", "Invoices", "API keys",
    "Organization",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """One way to use an address. body, answer: examples as JSON; None: there is none."""

    anchor: str
    method: str
    path: str
    summary: str
    description: str
    parameters: list[tuple[str, str, bool, str]]
    body: str | None
    answer: str | None
    statuses: list[str]


def example_of(schema: Mapping[str, Any], parts: Mapping[str, Any], depth: int = 0) -> Any:
    """A value that the schema would take, from its examples where it has any."""
    if "$ref" in schema:
        schema = parts[schema["$ref"].rsplit("/", 1)[-1]]
    if schema.get("examples"):
        return schema["examples"][0]
    for key in ("example", "default", "const"):
        if key in schema and schema[key] is not None:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example_of(schema[key][0], parts, depth)
    if depth > _DEPTH_MAX:
        return None
    match schema.get("type"):
        case "object":
            return {name: example_of(inner, parts, depth + 1) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [example_of(schema.get("items") or schema.get("prefixItems", [{}])[0], parts, depth + 1)]
        case "string":
            return "2026-03-30T12:00:00Z" if schema.get("format") == "date-time" else "string"
        case "integer" | "number":
            return 0
        case "boolean":
            return False
        case _:
            return None


def _json(content: Mapping[str, Any] | None, parts: Mapping[str, Any]) -> str | None:
    media = (content or {}).get("application/json")
    if media is None:
        return None
    value = media["example"] if "example" in media else example_of(media.get("schema", {}), parts)
    return json.dumps(value, indent=2, ensure_ascii=False)


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, Operation]]:
    """Every operation with its tag."""
    parts = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            good = next((code for code in operation["responses"] if code.startswith("2")), None)
            yield (
                operation.get("tags", ["Other"])[0],
                Operation(
                    anchor=operation["operationId"],
                    method=method.upper(),
                    path=path,
                    summary=operation["summary"],
                    description=operation.get("description", ""),
                    parameters=[
                        (each["name"], each["in"], each.get("required", False), each.get("description", ""))
                        for each in operation.get("parameters", [])
                        if each["name"] != "authorization"
                    ],
                    body=_json(operation.get("requestBody", {}).get("content"), parts),
                    answer=_json(operation["responses"][good].get("content"), parts) if good else None,
                    statuses=sorted(operation["responses"]),
                ),
            )


@lru_cache(maxsize=1)
def _sections(app: FastAPI) -> list[tuple[str, list[Operation]]]:
    sections: dict[str, list[Operation]] = {}
    for tag, operation in operations(app.openapi()):
        sections.setdefault(tag, []).append(operation)
    rank = {tag: place for place, tag in enumerate(_ORDER)}
    return sorted(sections.items(), key=lambda item: rank.get(item[0], len(rank)))


@router.get("/docs")
async def docs(request: Request) -> Response:
    return render(
        request,
        "docs.html",
        None,
        sections=_sections(request.app),
        base_url=str(request.base_url).rstrip("/"),
    )
