"""Alert rules and the Grafana dashboard name metrics that exist, and Prometheus' own tool takes the rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "usage-billing.json"
# Words of PromQL that stand where a metric's name may.
_OF_PROMQL = re.compile(r"\b(up|vector|rate|increase|deriv|sum|max|min|by|le|and|or|offset|histogram_quantile)\b")


def samples() -> frozenset[str]:
    """Names of what Prometheus scrapes, made of the metrics that the reference has (another test compares it)."""
    listed = re.findall(
        r"^\| `(usage_\w+)` \| (counter|gauge|histogram) \|", (ROOT / "docs" / "reference.md").read_text(), re.M
    )
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    found = {name + end for name, kind in listed for end in ends[kind]}
    return frozenset(found | {"usage_invoices", "usage_held_invoices"})  # counted from the ledger when asked for


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def named(expression: str) -> set[str]:
    """Everything in an expression that could be a metric's name."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)", " ", expression)
    return set(re.findall(r"\b[a-z]\w*\b", _OF_PROMQL.sub(" ", bare))) - {"h", "m"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_names_metrics_that_exist_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert named(rule["expr"]) <= samples()
    assert named(rule["expr"]) or rule["expr"].startswith("up")
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(), re.M)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_runbook_lists_every_alert() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in runbook] == []


def test_what_may_need_somebody_has_an_alert() -> None:
    """As the runbook has it: tests/unit/test_docs.py."""
    needing = re.compile(r"_(lag|lost_total|lost|failures_total|dead_letters_total|problem_invoices|waiting_invoices)$")
    in_rules = set[str]().union(*(named(rule["expr"]) for rule in rules()))
    assert {name for name in samples() if needing.search(name)} - in_rules == set()


def test_the_dashboard_has_every_metric_and_is_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "usage_billing.grafana"], capture_output=True, text=True, check=True, env={}
    )
    assert DASHBOARD.read_text() == made.stdout, (
        "run: python -m usage_billing.grafana > deploy/grafana/usage-billing.json"
    )
    shown = set[str]()
    for panel in panels():
        for target in panel["targets"]:
            assert named(target["expr"]) <= samples(), panel["title"]
            shown |= named(target["expr"])
    assert {re.sub("_(count|sum)$", "_bucket", name) for name in samples()} - shown == set()


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("USAGE_TEST_PROMTOOL"),
    reason="promtool is not installed; it is in Debian's package prometheus",
)
def test_prometheus_own_tool_takes_the_rules_and_runs_their_tests() -> None:
    for words in (["check", "rules", RULES.name], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(["promtool", *words], cwd=RULES.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
