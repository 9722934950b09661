"""Requests, valid and broken: the corpus, what every route takes, and how they are mutated."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, quote, urlencode

import zstandard

from tests.fuzz.world import FuzzWorld

CORPUS = Path(__file__).parent / "corpus"
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Input:
    """A request. path: decoded. headers: names in lower case. cut: the client goes away within the body."""

    method: str
    path: str
    query: str = ""
    headers: Headers = ()
    body: bytes = b""
    cut: bool = False

    def line(self) -> str:
        """As a line of the corpus."""
        fields: dict[str, Any] = {"method": self.method, "path": self.path}
        fields |= {"query": self.query} if self.query else {}
        fields |= {"headers": dict(self.headers)} if self.headers else {}
        if self.body:
            try:
                fields["body"] = self.body.decode()
            except UnicodeDecodeError:
                fields["body_base64"] = base64.b64encode(self.body).decode()
        return json.dumps(fields | ({"cut": True} if self.cut else {}))


def read_line(line: str) -> Input:
    """Input.line, backwards."""
    fields = json.loads(line)
    body = base64.b64decode(fields["body_base64"]) if "body_base64" in fields else fields.get("body", "").encode()
    headers = tuple(fields.get("headers", {}).items())
    return Input(fields["method"], fields["path"], fields.get("query", ""), headers, body, fields.get("cut", False))


def corpus() -> list[Input]:
    """Every file of the corpus. KEY, COOKIE and CSRF stand for the admin key and for what a signed-in visitor has."""
    lines = [line for file in sorted(CORPUS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [read_line(line) for line in lines if line.strip()]


# -- what every route takes --------------------------------------------------------------------------------------------


def of_every_route(world: FuzzWorld) -> Iterator[Input]:
    """A request for each route: with its parameters, and the example of the body that the API's document has."""
    for method, template in world.routes():
        path = re.sub(r"\{[^}]+\}", "cus_1", template)
        if template.startswith("/api/"):
            operation = world.openapi["paths"].get(template, {}).get(method.lower(), {})
            names = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
            body = _example(world, operation) if method in ("POST", "PATCH", "PUT") else b""
            yield Input(method, path, urlencode(dict.fromkeys(names, "1")), JSON_HEADERS, body)
        elif method == "POST":
            yield Input(method, path, "", FORM_HEADERS, urlencode({"csrf_token": "CSRF", "name": "x"}).encode())
        else:
            yield Input(method, path, "customer_id=cus_1&from_date=2026-03-01&cursor=", FORM_HEADERS)


JSON_HEADERS: Headers = (("authorization", "Bearer KEY"), ("content-type", "application/json"))
FORM_HEADERS: Headers = (
    ("cookie", "COOKIE"),
    ("content-type", "application/x-www-form-urlencoded"),
    ("accept", "text/html"),
)


def _example(world: FuzzWorld, operation: dict[str, Any]) -> bytes:
    try:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
    except KeyError:
        return b"{}"
    name = schema.get("$ref", "").rpartition("/")[2]
    examples = world.openapi["components"]["schemas"].get(name, {}).get("examples") or [{}]
    return json.dumps(examples[0]).encode()


# -- mutation ----------------------------------------------------------------------------------------------------------

LEAVES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1.5, 1e308, float("nan"), float("inf"), float("-inf"), "", "0",
    "-1", "1e999", "nan", "NaN", "Infinity", "sNaN", "1e-999999", "0.0000000000001", "9" * 400, "\ud800", "a\ud800b", "\0",
    "\x7f", "é", "中", "x" * 300, "x" * 5000, "'", '"', "=1+1", "../..", "%00", "${7*7}", "{{7*7}}", "2026-03-30T12:00:00Z",
    "2026-03-31T23:59:59.9999999Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:60-23:59", "2026-02-30", "1969-12-31",
    "9999-12-31", "0001-01-01", "cus_1", "mtr_1", "eur", "xxx", "month", "America/New_York", "Nowhere/Land", [], {}, [[]],
    [None], [{}], {"": None}, {"model": "per_unit"}, {"up_to": None}, [1] * 300, {"a": {"b": {"c": {}}}},
)  # fmt: skip
TEXTS = tuple(leaf for leaf in LEAVES if isinstance(leaf, str) and "\ud800" not in leaf)
HEADERS: Sequence[tuple[str, Sequence[str]]] = (
    ("content-type", ("application/json", "application/json; charset=x", "text/csv", "", "application/x-www-form-urlencoded",
                      "multipart/form-data; boundary=x", "application/merge-patch+json", "é")),
    ("content-encoding", ("gzip", "zstd", "identity", "br", "gzip, zstd", "")),
    ("content-length", ("0", "-1", "99999999999999999999", "x", "1", "²")),
    ("transfer-encoding", ("chunked",)),
    ("authorization", ("", "Bearer", "Bearer ", "Bearer KEY", "Basic eA==", "Bearer \xff", "bearer KEY ", "Bearer " + "x" * 9000)),
    ("idempotency-key", ("", "k", "x" * 256, "x" * 257, "é", "\x00")),
    ("if-match", ("*", '"1"', "1", '"x"', 'W/"1"', '"99999999999999999999999"', "²")),
    ("cookie", ("COOKIE", "usage_session=", "usage_session=a.b.c", "usage_session=" + "x" * 5000, "theme=dark", "\xff=\xff", ";;=")),
    ("accept", ("text/html", "*/*", "", "application/json", "\xff")),
    ("accept-language", ("de", "\xff")),
    ("sec-fetch-site", ("cross-site", "none", "\xff")),
    ("stripe-signature", ("t=1,v1=x", "t=x", "", "t=99999999999999999999,v1=\xff", ",,,=")),
    ("x-forwarded-proto", ("https", "x")),
    ("x-forwarded-for", ("1.2.3.4", "x", "")),
    ("host", ("", "[::1", "a b", "x:99999", "\xff")),
    ("if-none-match", ("*", "\xff")),
    ("if-modified-since", ("Thu, 01 Jan 1970 00:00:00 GMT", "x")),
    ("range", ("bytes=0-1", "bytes=x", "bytes=5-1,2-")),
    ("last-event-id", ("1", "x")),
    ("expect", ("100-continue",)),
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "X")


def mutated(chance: random.Random, seed: Input, names: Sequence[str]) -> Input:
    """The request with one to four changes. names: of fields, to be put where they don't belong."""
    for _ in range(chance.choice((1, 1, 2, 2, 3, 4))):
        seed = chance.choice(MUTATIONS)(chance, seed, names)
    return seed


def _method(chance: random.Random, it: Input, _names: Sequence[str]) -> Input:
    return replace(it, method=chance.choice(METHODS)) if chance.random() < 0.2 else it


def _path(chance: random.Random, it: Input, _names: Sequence[str]) -> Input:
    parts = it.path.split("/")
    if len(parts) < 3 or chance.random() < 0.5:
        return it
    parts[chance.randrange(2, len(parts))] = chance.choice(TEXTS)
    return replace(it, path="/".join(parts))


def _query(chance: random.Random, it: Input, names: Sequence[str]) -> Input:
    pairs = parse_qsl(it.query, keep_blank_values=True)
    value = chance.choice(TEXTS) if chance.random() < 0.8 else _cursor(chance)
    if pairs and chance.random() < 0.7:
        at = chance.randrange(len(pairs))
        pairs[at] = (pairs[at][0], value)
    else:
        pairs.append((chance.choice(names), value))
    query = urlencode(pairs)
    return replace(
        it, query=query if chance.random() < 0.95 else query + chance.choice(("%", "&&=", "%ff=%ed%a0%80", ";", "="))
    )


def _cursor(chance: random.Random) -> str:
    place = [chance.choice(LEAVES) for _ in range(chance.randrange(6))]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _header(chance: random.Random, it: Input, _names: Sequence[str]) -> Input:
    name, values = chance.choice(HEADERS)
    others = tuple(header for header in it.headers if header[0] != name)
    return replace(it, headers=others if chance.random() < 0.2 else (*others, (name, chance.choice(values))))


def _bytes(chance: random.Random, it: Input, _names: Sequence[str]) -> Input:
    body = bytearray(it.body)
    at = chance.randrange(len(body) + 1)
    match chance.randrange(5):
        case 0:
            del body[at:]
        case 1:
            body[at:at] = chance.randbytes(chance.randrange(1, 9))
        case 2:
            del body[at : at + chance.randrange(1, 20)]
        case 3:
            body[at:at] = chance.choice(
                (b"[" * 5000, b'{"a":' * 2000, b"\xff", b"\\ud800", b"1e999", b"NaN", b",", b"\0")
            )
        case _:
            body += body[at:]
    return replace(it, body=bytes(body))


def _packed(chance: random.Random, it: Input, _names: Sequence[str]) -> Input:
    pack = chance.choice((gzip.compress, zstandard.ZstdCompressor().compress))
    body = bytearray(pack(it.body))
    if chance.random() < 0.3:
        body += pack(b"{}")
    for _ in range(chance.choice((0, 0, 1, 3))):
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.2:
        del body[chance.randrange(len(body)) :]
    encoding = "gzip" if pack is gzip.compress else "zstd"
    others = tuple(header for header in it.headers if header[0] != "content-encoding")
    return replace(it, body=bytes(body), headers=(*others, ("content-encoding", encoding)))


def _cut(chance: random.Random, it: Input, _names: Sequence[str]) -> Input:
    return replace(it, cut=chance.random() < 0.1)


def _content(chance: random.Random, it: Input, names: Sequence[str]) -> Input:
    """A change within the JSON document or the form."""
    try:
        document = json.loads(it.body)
    except (ValueError, RecursionError):
        return _form(chance, it, names)
    document = _changed(chance, document, names)
    return replace(it, body=json.dumps(document, ensure_ascii=chance.random() < 0.7).encode(errors="surrogatepass"))


def _changed(chance: random.Random, node: Any, names: Sequence[str]) -> Any:
    if isinstance(node, dict) and node and chance.random() < 0.85:
        fields = dict(cast(dict[str, Any], node))
        name = chance.choice(list(fields))
        match chance.randrange(6):
            case 0:
                del fields[name]
            case 1:
                fields[chance.choice((*names, "\ud800", "", "x" * 300))] = chance.choice(LEAVES)
            case _:
                fields[name] = _changed(chance, fields[name], names)
        return fields
    if isinstance(node, list) and node and chance.random() < 0.85:
        items = list(cast(list[Any], node))
        at = chance.randrange(len(items))
        match chance.randrange(6):
            case 0:
                del items[at]
            case 1:
                items *= chance.choice((2, 30, 1001 // len(items) + 1))
            case _:
                items[at] = _changed(chance, items[at], names)
        return items
    return chance.choice(LEAVES)


def _form(chance: random.Random, it: Input, names: Sequence[str]) -> Input:
    if "x-www-form-urlencoded" not in dict(it.headers).get("content-type", ""):
        return it
    pairs = parse_qsl(it.body.decode(errors="replace"), keep_blank_values=True)
    for _ in range(chance.randrange(1, 5)):
        if pairs and chance.random() < 0.5:
            at = chance.randrange(len(pairs))
            if pairs[at][0] != "csrf_token" or chance.random() < 0.05:
                pairs[at] = (pairs[at][0], chance.choice(TEXTS))
        else:
            name = chance.choice(names)
            for _depth in range(chance.choice((0, 0, 0, 1, 2, 3, 12))):
                name += "." + chance.choice((*names[:40], "0", "1", "0", "9999", "", "²"))
            pairs.append((name, chance.choice(TEXTS)))
    return replace(it, body=urlencode(pairs).encode())


Mutation = Callable[[random.Random, Input, Sequence[str]], Input]
MUTATIONS: Sequence[Mutation] = (
    _method, _path, _query, _query, _header, _header, _bytes, _packed, _cut, _content, _content, _content, _content,
)  # fmt: skip


def field_names(world: FuzzWorld, seeds: Sequence[Input]) -> list[str]:
    """Names of fields and parameters that the service has, the ones that pages use too."""
    found: set[str] = set()
    for schema in world.openapi["components"]["schemas"].values():
        found |= set(schema.get("properties", ()))
    for seed in seeds:
        for text in (seed.query, seed.body.decode(errors="replace")):
            found |= {name for name, _ in parse_qsl(text) if len(name) < 40}
    found |= {"prices", "tiers", "model", "do", "quantity", "units", "window", "cursor", "next", "key", "as_of", "at"}
    return sorted(found)


def quoted(path: str) -> bytes:
    return quote(path, safe="/").encode()
