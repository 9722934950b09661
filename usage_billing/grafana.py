"""metrics → deploy/grafana/usage-billing.json: a Grafana dashboard with a panel for each.

`python -m usage_billing.grafana` prints it; a test compares.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from usage_billing.reference import METRIC_MODULES

_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SELECTOR = 'job=~"$job"'
_RATE = "$__rate_interval"
_ROWS = {
    "gateway": "Ingest",
    "aggregator": "Live totals and alerts",
    "sink": "Storage",
    "projections": "Storage",
    "log": "Storage",
    "reconcile": "Storage",
    "billing": "Billing",
    "invoices": "Billing",
    "held": "Billing",
    "stripe": "Billing",
    "dashboard": "Dashboard",
    "webhook": "Webhooks",
    "loop": "Failures",
}
# Counted from the ledger when asked for, so that no module has them: see billing_job.metrics.InvoicesByState.
_OF_LEDGER = (
    ("usage_invoices", "Invoices by state", ("state",)),
    ("usage_held_invoices", "Invoices held, by reason", ("state", "reason")),
)
# Each worker says the same of the whole system: the greatest is it, and not their sum.
_OF_ALL = ("usage_invoices", "usage_held_invoices", "usage_log_ends_lost", "usage_projections_lag")
Metric = Counter | Gauge | Histogram
Target = tuple[str, str]
"""PromQL and legend."""


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    found = sorted(_panels(), key=lambda panel: (list(_ROWS.values()).index(panel[0]), panel[1]))
    panels: list[dict[str, Any]] = []
    top = 0
    for row, of_row in groupby(found, key=lambda panel: panel[0]):
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": _place(0, top, 24, 1), "panels": []})
        top += 1
        for index, (_, name, title, unit, targets) in enumerate(members := list(of_row)):
            at = _place(index % _COLUMNS * _WIDTH, top + index // _COLUMNS * _HEIGHT, _WIDTH, _HEIGHT)
            panels.append(_panel(name, title, unit, targets, at))
        top += -(-len(members) // _COLUMNS) * _HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "Usage billing",
        "uid": "usage-billing",
        "tags": ["usage-billing"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "job",
                    "type": "query",
                    "label": "Job",
                    "datasource": _DATASOURCE,
                    "query": "label_values(up, job)",
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def _metrics() -> Iterator[tuple[Metric, str, str, Sequence[str]]]:
    """Metric, name without a counter's `_total`, help, labels."""
    for module in map(importlib.import_module, METRIC_MODULES):
        for metric in vars(module).values():
            # A child of a labelled metric is of the same class, and has the name of none of its labels.
            if isinstance(metric, Counter | Gauge | Histogram) and not metric._labelvalues:  # pyright: ignore[reportPrivateUsage]
                yield metric, metric._name, metric._documentation, metric._labelnames  # pyright: ignore[reportPrivateUsage]


def _panels() -> Iterator[tuple[str, str, str, str, list[Target]]]:
    """Row, metric, title, unit and targets of each panel."""
    for metric, name, text, labels in _metrics():
        shown = [label for label in labels if label != "partition"]
        seconds = name.endswith("_seconds")
        match metric:
            case Counter():
                yield (
                    _row(name),
                    name,
                    text,
                    "ops",
                    [(_sum(f"rate({name}_total{{{_SELECTOR}}}[{_RATE}])", shown), _legend(shown))],
                )
            case Histogram():
                by = ", ".join(("le", *shown))
                rate = f"sum by ({by}) (rate({name}_bucket{{{_SELECTOR}}}[{_RATE}]))"
                targets = [
                    (f"histogram_quantile({quantile}, {rate})", f"p{quantile[2:]:0<2} {_legend(shown)}".strip())
                    for quantile in ("0.5", "0.99")
                ]
                yield _row(name), name, text, "s", targets
            case Gauge():
                yield _row(name), name, text, "s" if seconds else "short", [_gauge(name, shown)]
    for name, text, labels in _OF_LEDGER:
        yield _row(name), name, text, "short", [_gauge(name, labels)]


def _gauge(name: str, labels: Sequence[str]) -> Target:
    how = "max" if name.startswith(_OF_ALL) else "min" if name.endswith("_seconds") else "sum"
    return _sum(f"{name}{{{_SELECTOR}}}", labels, how), _legend(labels)


def _sum(of: str, labels: Sequence[str], how: str = "sum") -> str:
    return f"{how} by ({', '.join(labels)}) ({of})" if labels else f"{how}({of})"


def _legend(labels: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _row(name: str) -> str:
    return _ROWS[name.split("_")[1]]


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(name: str, text: str, unit: str, targets: Sequence[Target], at: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": name.removeprefix("usage_").replace("_", " "),
        "description": text,
        "datasource": _DATASOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": expr,
                "legendFormat": legend or "__auto",
                "datasource": _DATASOURCE,
            }
            for index, (expr, legend) in enumerate(targets)
        ],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
