"""schemas/*.avsc → Confluent's Schema Registry API, read-only: any Kafka tool can read usage.events.

The addresses, media type and error codes are those of Confluent's registry, so that its clients understand them. The
topic holds two kinds of records. Events have the subject that tools look for under a topic's name; tombstones have
that of the topic and the record (Confluent's TopicRecordNameStrategy). A message names its schema by id in any case.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from dashboard.services import services_of
from schemas import usage_batch, usage_void
from schemas.topics import USAGE_EVENTS, topic_name

router = APIRouter(prefix="/schema-registry", include_in_schema=False)
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
VERSION = 1
_MISSING = {40401: "Subject not found.", 40402: "Version not found.", 40403: "Schema not found"}


@dataclass(frozen=True, slots=True)
class _Registered:
    """A schema, and what its subject's name ends with behind that of the topic."""

    id: int
    suffix: str
    text: str


_ALL = (
    _Registered(usage_batch.SCHEMA_ID, "value", json.dumps(usage_batch.SCHEMA_JSON)),
    _Registered(usage_void.SCHEMA_ID, "usage.UsageVoid", json.dumps(usage_void.SCHEMA_JSON)),
)


def _answer(content: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, media_type=MEDIA_TYPE)


def _missing(code: int) -> JSONResponse:
    return _answer({"error_code": code, "message": _MISSING[code]}, 404)


def _subjects(request: Request) -> dict[str, _Registered]:
    topic = topic_name(services_of(request).settings, USAGE_EVENTS)
    return {f"{topic}-{each.suffix}": each for each in _ALL}


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
    found = next((each for each in _ALL if str(each.id) == id), None)
    return _answer({"schema": found.text}) if found else _missing(40403)


@router.get("/schemas/ids/{id}/versions")
async def schema_versions(request: Request, id: str) -> JSONResponse:
    found = [subject for subject, each in _subjects(request).items() if str(each.id) == id]
    return _answer([{"subject": subject, "version": VERSION} for subject in found]) if found else _missing(40403)


@router.get("/subjects")
async def subjects(request: Request) -> JSONResponse:
    return _answer(list(_subjects(request)))


@router.get("/subjects/{subject}/versions")
async def versions(request: Request, subject: str) -> JSONResponse:
    return _answer([VERSION]) if subject in _subjects(request) else _missing(40401)


@router.get("/subjects/{subject}/versions/{version}")
async def version(request: Request, subject: str, version: str) -> JSONResponse:
    found = _subjects(request).get(subject)
    if found is None:
        return _missing(40401)
    if version not in (str(VERSION), "latest", "-1"):
        return _missing(40402)
    return _answer({"subject": subject, "version": VERSION, "id": found.id, "schema": found.text})
