"""OpenAPI's description of the events endpoints, which the gateway serves beside the dashboard. Pure data.

The gateway decodes without models, for speed; this page of the contract is kept true by a test against the gateway.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from runtime.problem import MEDIA_TYPE
from schemas.event import EVENTS_PER_BATCH_MAX, PROPERTIES_MAX, TEXT_LENGTH_MAX

_TEXT = {"type": "string", "minLength": 1, "maxLength": TEXT_LENGTH_MAX}
_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["customer_id", "event_name", "timestamp"],
    "additionalProperties": False,
    "properties": {
        "customer_id": _TEXT,
        "event_name": _TEXT,
        "timestamp": {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339 with offset; from 1970 to 10 minutes ahead",
        },
        "value": {
            "anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}],
            "description": "at most 9 decimals, taken as it is spelled; needed where a sum or max meter reads it",
        },
        "event_id": {
            "anyOf": [_TEXT, {"type": "null"}],
            "description": "the same id of the same customer and event_name counts once, whatever its timestamp",
        },
        "properties": {
            "anyOf": [
                {"type": "object", "maxProperties": PROPERTIES_MAX, "additionalProperties": {"type": "string"}},
                {"type": "null"},
            ]
        },
    },
}
_EXAMPLE = {
    "events": [
        {
            "customer_id": "cus_1",
            "event_name": "api_request",
            "timestamp": "2026-03-30T12:00:00Z",
            "value": 1,
            "event_id": "5f0c9b1e",
            "properties": {"region": "eu"},
        }
    ]
}
_RANGES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in ("partition", "first_offset", "last_offset", "events")},
    },
}
_NAMES = {"type": "array", "items": {"type": "string"}}
_RECEIPT = {
    "type": "object",
    "required": ["accepted", "unmatched", "receipt"],
    "properties": {
        "accepted": {"type": "integer"},
        "unmatched": {"type": "integer", "description": "of an event_name or customer that is not known (yet)"},
        "receipt": _RANGES,
        "unmatched_event_names": {**_NAMES, "description": "Up to 20 event names that no meter reads."},
        "unmatched_customers": {**_NAMES, "description": "Up to 20 unknown customer IDs."},
    },
}
_VOID: dict[str, Any] = {
    "type": "object",
    "required": ["customer_id", "event_name", "event_id", "reason"],
    "additionalProperties": False,
    "properties": {
        "customer_id": _TEXT,
        "event_name": _TEXT,
        "event_id": {**_TEXT, "description": "as the event's producer named it"},
        "reason": {**_TEXT, "description": "kept with the tombstone, for people"},
    },
}
_VOID_EXAMPLE = {
    "customer_id": "cus_1",
    "event_name": "api_request",
    "event_id": "5f0c9b1e",
    "reason": "sent by a load test",
}
_VOID_RECEIPT = {
    "type": "object",
    "required": ["accepted", "receipt"],
    "properties": {"accepted": {"type": "integer"}, "receipt": _RANGES},
}
_VOIDED: dict[str, Any] = {
    "accepted": 1,
    "receipt": [{"partition": 3, "first_offset": 1872, "last_offset": 1872, "events": 1}],
}
_ANSWER = {
    "accepted": 1,
    "unmatched": 0,
    "receipt": [{"partition": 3, "first_offset": 1871, "last_offset": 1871, "events": 1}],
}


_CLOUD_EVENT_EXAMPLE: dict[str, Any] = {
    "specversion": "1.0",
    "type": "api_request",
    "id": "5f0c9b1e",
    "source": "checkout",
    "subject": "cus_1",
    "time": "2026-03-30T12:00:00Z",
    "data": {"value": 1, "region": "eu"},
}


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }


_CLOUD_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type", "subject"],
    "properties": {
        "specversion": {"type": "string", "enum": ["1.0"]},
        "id": {**_TEXT, "description": "With source, what makes it the same event."},
        "source": {**_TEXT, "description": "A URI reference."},
        "type": {**_TEXT, "description": "The event_name."},
        "subject": {**_TEXT, "description": "The customer ID."},
        "time": {
            "type": ["string", "null"],
            "format": "date-time",
            "description": "Absent or null: when the event was received.",
        },
        "data": {"type": ["object", "null"], "description": "value, and properties under any other name."},
    },
}
_CLOUD_EVENTS = {
    "application/cloudevents+json": {"schema": _CLOUD_EVENT, "example": _CLOUD_EVENT_EXAMPLE},
    "application/cloudevents-batch+json": {
        "schema": {"type": "array", "minItems": 1, "maxItems": EVENTS_PER_BATCH_MAX, "items": _CLOUD_EVENT},
        "example": [_CLOUD_EVENT_EXAMPLE],
    },
}


PATHS: dict[str, Any] = {
    "/api/v1/events": {
        "post": {
            "tags": ["Usage"],
            "summary": "Send CloudEvents",
            "description": (
                "CloudEvents 1.0 as OpenMeter's clients and collector send them; 204 once Kafka has stored them. "
                "/api/v1/usage/events takes them too and answers with a receipt. Scope ingest."
            ),
            "operationId": "post_cloud_events",
            "security": [{"API key": []}],
            "requestBody": {"required": True, "content": _CLOUD_EVENTS},
            "responses": {
                "204": {"description": "Accepted"},
                **{str(status): _problem(status) for status in (400, 401, 403, 413, 415, 422, 429, 503)},
            },
        }
    },
    "/api/v1/usage/events": {
        "post": {
            "tags": ["Usage"],
            "summary": "Send events",
            "description": (
                "1 to 1,000 events, all of them or none. Returns 202 with each event's log position once Kafka has "
                "stored them. "
                "After a 503 the outcome is unknown: only event_ids or the same Idempotency-Key make a retry safe. "
                "Scope ingest."
            ),
            "operationId": "post_events",
            "security": [{"API key": []}],
            "parameters": [
                {"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"}},
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["events"],
                            "properties": {
                                "events": {
                                    "type": "array",
                                    "minItems": 1,
                                    "maxItems": EVENTS_PER_BATCH_MAX,
                                    "items": _EVENT,
                                }
                            },
                        },
                        "example": _EXAMPLE,
                    }
                },
            },
            "responses": {
                "202": {
                    "description": "Accepted",
                    "content": {"application/json": {"schema": _RECEIPT, "example": _ANSWER}},
                },
                **{str(status): _problem(status) for status in (400, 401, 403, 413, 415, 422, 429, 503)},
            },
        }
    },
    "/api/v1/usage/events/void": {
        "post": {
            "tags": ["Usage"],
            "summary": "Void an event",
            "description": (
                "Remove an event from totals, previews and future invoices. If it was already invoiced, the next "
                "invoice includes a credit. Returns 202 once Kafka has stored the void. Idempotent. Later events with "
                "this event_id are ignored. Scope admin."
            ),
            "operationId": "void_event",
            "security": [{"API key": []}],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _VOID, "example": _VOID_EXAMPLE}},
            },
            "responses": {
                "202": {
                    "description": "Accepted",
                    "content": {"application/json": {"schema": _VOID_RECEIPT, "example": _VOIDED}},
                },
                **{str(status): _problem(status) for status in (400, 401, 403, 413, 415, 422, 503)},
            },
        }
    },
}
