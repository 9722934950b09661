"""docs/openapi.json is what the API answers, and its operations have names that a client may use."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from schemas.settings import Settings
from usage_billing.api_document import api_document

ROOT = Path(__file__).parents[3]
DOCUMENT: dict[str, Any] = json.loads(api_document(Settings(kafka_bootstrap_servers="127.0.0.1:1")))  # pyright: ignore[reportCallIssue]


def test_the_committed_document_is_the_current_one() -> None:
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert committed == DOCUMENT, "run `make openapi`"


def test_every_operation_has_a_name_of_its_own_that_a_person_would_give_it() -> None:
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+){1,3}", name)] == []
