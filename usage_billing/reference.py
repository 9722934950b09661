"""settings, topics, tables, metrics, commands → docs/reference.md, so that the page can't be wrong.

`python -m usage_billing.reference` prints it; a test compares.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from importlib.resources import files

from prometheus_client import REGISTRY

from schemas.settings import Settings
from schemas.topics import topic_specs
from usage_billing.describe import describe_settings

METRIC_MODULES = (
    "runtime.one_by_one",
    "ingest_gateway.metrics",
    "stream_processors.metrics",
    "billing_job.metrics",
    "dashboard.metrics",
)
_HEAD = """# Reference

Made by `python -m usage_billing.reference` from the code.
"""


def reference() -> str:
    """The page as Markdown."""
    return "\n".join((_HEAD, *_settings(), *_topics(), *_tables(), *_metrics(), *_commands()))


def _table(*header: str) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield from _table("name", "default", "meaning")
    for name, _, default, meaning in describe_settings(Settings.model_construct()):
        yield f"| `{name}` | {default} | {meaning} |"
    yield ""


def _topics() -> Iterator[str]:
    yield "## Topics\n"
    yield from _table("topic", "partitions", "settings")
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    for spec in topic_specs(Settings.model_construct(**defaults)):
        config = " ".join(f"{name}={value}" for name, value in sorted(spec.config.items()))
        yield f"| `{spec.name}` | {spec.partitions} | {config} |"
    yield ""


def _tables() -> Iterator[str]:
    yield "## ClickHouse\n"
    yield from _table("object", "kind")
    made = re.compile(r"CREATE (?:OR REPLACE )?(TABLE|VIEW|MATERIALIZED VIEW) (?:IF NOT EXISTS )?(\w+)")
    shown: set[str] = set()  # a view that a later migration replaces is one
    migrations = sorted(
        (file for file in (files("schemas") / "clickhouse").iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    for file in migrations:
        for kind, name in made.findall(file.read_text()):
            if name not in shown:
                yield f"| `{name}` | {kind.lower()} |"
            shown.add(name)
    yield ""


def _metrics() -> Iterator[str]:
    yield "## Metrics\n"
    for module in METRIC_MODULES:
        importlib.import_module(module)
    yield from _table("metric", "type", "meaning")
    for family in sorted(REGISTRY.collect(), key=lambda family: family.name):
        if family.name.startswith("usage_"):
            yield f"| `{family.name}` | {family.type} | {family.documentation} |"
    yield ""


def _commands() -> Iterator[str]:
    from usage_billing.cli import app

    yield "## Commands\n"
    yield from _table("command", "does")
    for words, command in _leaves(app, ()):
        summary = (str(getattr(command, "help", "") or "")).strip().split("\n\n")[0].replace("\n", " ")
        yield f"| `usage-billing {' '.join(words)}` | {summary} |"
    yield "\nExit codes: 0 done, 1 it failed, 2 wrong usage. `--help` describes each."


def _leaves(app: object, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    from cyclopts import App

    assert isinstance(app, App)
    for name in sorted(name for name in app if not name.startswith("-")):
        below = app[name]
        if any(not inner.startswith("-") for inner in below):
            if below.default_command is not None:
                yield (*words, name), below
            yield from _leaves(below, (*words, name))
        else:
            yield (*words, name), below


if __name__ == "__main__":
    print(reference())
