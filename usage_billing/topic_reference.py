"""schemas of records → docs/topics.md: the key and every field of what lies in each topic.

`python -m usage_billing.topic_reference` prints it; a test compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from catalog.record import MODELS
from ledger.records import InvoiceAdjusted, InvoiceFixed, InvoiceStep, OrderRecorded, StripeCustomer
from schemas import topics, usage_batch, usage_void
from schemas.alert import Alert
from schemas.dead_letter import DeadLetter
from schemas.repair import UsageRepair
from schemas.totals import Closed, Partial, Progress, UsageTotal
from schemas.webhook_delivery import RetryRequest, WebhookDelivery

_HEAD = """# Topics and their records

Made by `python -m usage_billing.topic_reference` from the code. The [reference](reference.md#topics) has each topic's
partitions and settings, [Read topics with Kafka's tools](how-to/kafka.md) commands that read them.

`usage.events` is Avro in Confluent's framing: a zero byte, the schema's ID (four bytes, big-endian), the datum.
`/schema-registry` of the dashboard's port answers as Confluent's Schema Registry. Every other topic is JSON. Instants
are integers, µs since 1970 (UTC); amounts and quantities are decimal strings. A field with a default may be absent.
The customer's key is `organization_id`, a NUL byte, `customer_id`; its xxh3_64 hash modulo the number of partitions is
the partition.
"""
_TEMPLATE = "#/$defs/{name}"


@dataclass(frozen=True, slots=True)
class Records:
    """What lies in a topic. key: of the message. written_by, read_by: services. types: of the value."""

    topic: str
    key: str
    written_by: str
    read_by: str
    types: Sequence[type[msgspec.Struct]] = ()


TOPICS = (
    Records(topics.USAGE_EVENTS, "none; the partition is the customer's", "gateway", "aggregator, sink"),
    Records(
        topics.USAGE_TOTALS,
        "organization_id, customer_id, event_name, cycle_start, cycle_end, with NUL between; of the aggregator's own "
        "records, a key that begins with NUL",
        "aggregator",
        "dashboard, sink (reconcile), aggregator at its start",
        (UsageTotal, Progress, Closed, Partial),
    ),
    Records(topics.USAGE_REPAIRS, "the total's", "sink (reconcile), `reconcile`", "aggregator", (UsageRepair,)),
    Records(topics.USAGE_ALERTS, "the customer's key", "aggregator", "dashboard, webhooks, sink", (Alert,)),
    Records(
        topics.USAGE_WEBHOOK_DELIVERIES,
        "the delivery's ID; of a request to retry, with NUL and `retry` behind it",
        "dashboard",
        "dashboard",
        (WebhookDelivery, RetryRequest),
    ),
    Records(
        topics.USAGE_DEAD_LETTERS,
        "EPOCH/PARTITION/OFFSET of the message",
        "sink",
        "sink, `dead-letters`",
        (DeadLetter,),
    ),
    Records(topics.CATALOG, "none", "dashboard, commands", "every service"),
    Records(
        topics.BILLING_LEDGER,
        "the customer's key",
        "billing, dashboard, commands",
        "billing, dashboard, sink",
        (InvoiceFixed, InvoiceStep, OrderRecorded, StripeCustomer, InvoiceAdjusted),
    ),
)


def topic_reference() -> str:
    """The page as Markdown."""
    return "\n".join((_HEAD, *(line for records in TOPICS for line in _topic(records))))


def _topic(records: Records) -> Iterator[str]:
    yield f"## `{records.topic}`\n"
    yield f"Key: {records.key}. Written by {records.written_by}; read by {records.read_by}.\n"
    if records.topic == topics.USAGE_EVENTS:
        for number, schema in (
            (usage_batch.SCHEMA_ID, usage_batch.SCHEMA_JSON),
            (usage_void.SCHEMA_ID, usage_void.SCHEMA_JSON),
        ):
            yield from _avro(number, schema)
    elif records.topic == topics.CATALOG:
        yield from _catalog()
    else:
        tops, components = msgspec.json.schema_components(records.types, ref_template=_TEMPLATE)
        names = [str(top["$ref"]).rpartition("/")[2] for top in tops]
        yield from _parts(names, components)


def _catalog() -> Iterator[str]:
    yield from _table(
        ("kind", "string", "", "what the object is: " + ", ".join(f"`{kind}`" for kind in MODELS)),
        ("expected_version", "integer", "", "version that the writer saw, 0: none; else ignored"),
        ("written_at", "integer", "", "µs, the writer's clock"),
        ("by", "string or null", "null", "who asked for it"),
        ("rules", "integer", "1", "which checks the record is held to"),
        ("state", "object", "", "the whole new state, by kind as below"),
    )  # fmt: skip
    models: list[type[BaseModel]] = list(dict.fromkeys(MODELS.values()))
    _, document = models_json_schema([(model, "serialization") for model in models], ref_template="#/$defs/{model}")
    excluded = {(m.__name__, name) for m in models for name, field in m.model_fields.items() if field.exclude}
    yield from _parts([model.__name__ for model in models], document["$defs"], excluded)


def _avro(number: int, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {schema['name']}, schema ID {number}\n"
    yield f"{schema['doc']}\n"
    yield from _table(*((f["name"], _avro_type(f["type"]), "", f.get("doc", "")) for f in schema["fields"]))


def _avro_type(kind: Any) -> str:
    if isinstance(kind, list):
        return " or ".join(_avro_type(each) for each in kind)
    if not isinstance(kind, dict):
        return str(kind)
    match kind:
        case {"type": "array", "items": items}:
            return f"array of {_avro_type(items)}"
        case {"type": "map", "values": values}:
            return f"map of {_avro_type(values)}"
        case {"logicalType": "decimal", "precision": precision, "scale": scale}:
            return f"decimal({precision}, {scale}) in bytes"
        case {"logicalType": logical, "type": base}:
            return f"{base} ({logical})"
        case {"type": "fixed", "size": size}:
            return f"{size} bytes"
        case _:
            return str(kind["type"])


def _parts(
    first: Sequence[str], components: Mapping[str, Any], excluded: Iterable[tuple[str, str]] = ()
) -> Iterator[str]:
    """The records, then what they are made of; enumerations are written where they are used."""
    left_out = set(excluded)
    others = [name for name, each in components.items() if name not in first and "properties" in each]
    for name in (*first, *others):
        schema = components[name]
        yield f"### {name}\n"
        if text := " ".join(str(schema.get("description", "")).split()):
            yield f"{_prose(text)}\n"
        required = schema.get("required", ())
        rows = [
            (field, _json_type(each, components), "" if field in required else _default(each), "")
            for field, each in schema["properties"].items()
            if (name, field) not in left_out
        ]
        yield from _table(*rows)


def _prose(text: str) -> str:
    """Docstrings name code bare; what Markdown would take for markup is escaped."""
    return re.sub(r"([<>*\[\]])", r"\\\1", text)


def _json_type(schema: Mapping[str, Any], components: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        target = components[name]
        return name if "properties" in target else _json_type(target, components)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " · ".join(f"`{each}`" if each is not None else "null" for each in schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_json_type(each, components) for each in schema[union]))
    match schema.get("type"):
        case "array" if schema.get("items"):
            return f"list of {_json_type(schema['items'], components)}"
        case "array" if "prefixItems" in schema:
            return "[" + ", ".join(_json_type(each, components) for each in schema["prefixItems"]) + "]"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_json_type(schema['additionalProperties'], components)}"
        case str() as kind:
            return kind
        case _:
            return "any"


def _default(schema: Mapping[str, Any]) -> str:
    return msgspec.json.encode(schema.get("default")).decode()


def _table(*rows: tuple[str, str, str, str]) -> Iterator[str]:
    """Columns that no row fills are left out."""
    head = ("field", "type", "default", "meaning")
    kept = [index for index in range(len(head)) if index < 2 or any(row[index] for row in rows)]
    yield "| " + " | ".join(head[index] for index in kept) + " |"
    yield "|" + "---|" * len(kept)
    for name, *rest in rows:
        cells = [f"`{name}`", *(text.replace("|", "\\|") for text in rest)]
        yield "| " + " | ".join(cells[index] for index in kept) + " |"
    yield ""


if __name__ == "__main__":
    print(topic_reference())
