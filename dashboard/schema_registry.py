"""schemas/usage_batch.avsc → Confluent's Schema Registry API, read-only: any Kafka tool can read usage.events.

The addresses, media type and error codes are those of Confluent's registry, so that its clients understand them.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from dashboard.services import services_of
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import SCHEMA_ID, SCHEMA_JSON

router = APIRouter(prefix="/schema-registry", include_in_schema=False)
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
VERSION = 1
SCHEMA_TEXT = json.dumps(SCHEMA_JSON)
_MISSING = {40401: "Subject not found.", 40402: "Version not found.", 40403: "Schema not found"}


def _answer(content: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, media_type=MEDIA_TYPE)


def _missing(code: int) -> JSONResponse:
    return _answer({"error_code": code, "message": _MISSING[code]}, 404)


def _subject(request: Request) -> str:
    """The topic's name strategy: its values."""
    return f"{topic_name(services_of(request).settings, USAGE_EVENTS)}-value"


@router.get("/")
async def root() -> JSONResponse:
    return _answer({})


@router.get("/config")
async def config() -> JSONResponse:
    return _answer({"compatibilityLevel": "BACKWARD"})


@router.get("/mode")
async def mode() -> JSONResponse:
    return _answer({"mode": "READONLY"})


@router.get("/schemas/types")
async def types() -> JSONResponse:
    return _answer(["AVRO"])


@router.get("/schemas/ids/{id}")
async def schema(id: str) -> JSONResponse:
    return _answer({"schema": SCHEMA_TEXT}) if id == str(SCHEMA_ID) else _missing(40403)


@router.get("/schemas/ids/{id}/versions")
async def schema_versions(request: Request, id: str) -> JSONResponse:
    if id != str(SCHEMA_ID):
        return _missing(40403)
    return _answer([{"subject": _subject(request), "version": VERSION}])


@router.get("/subjects")
async def subjects(request: Request) -> JSONResponse:
    return _answer([_subject(request)])


@router.get("/subjects/{subject}/versions")
async def versions(request: Request, subject: str) -> JSONResponse:
    return _answer([VERSION]) if subject == _subject(request) else _missing(40401)


@router.get("/subjects/{subject}/versions/{version}")
async def version(request: Request, subject: str, version: str) -> JSONResponse:
    if subject != _subject(request):
        return _missing(40401)
    if version not in (str(VERSION), "latest", "-1"):
        return _missing(40402)
    return _answer({"subject": subject, "version": VERSION, "id": SCHEMA_ID, "schema": SCHEMA_TEXT})
