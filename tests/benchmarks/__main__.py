"""`make bench`: every benchmark, one after the other, into docs/benchmarks.md."""

import importlib
import os
import platform
import sys
import time
from pathlib import Path

from tests.benchmarks.figures import Figure

MODULES = ("bench_gateway", "bench_sink", "bench_aggregator", "bench_audit", "bench_close", "bench_restart")
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
COMPARED = "## Compared with the code before\n"

# Measured on a machine of this kind (two cores, broker on the same one), mid 2026; see each project's own repository.
PEERS = (
    (
        "OpenMeter's ingest, batches of 1,000, request validation on, 204 before delivery",
        41_000,
        "gateway, batches of 1,000",
    ),
    ("OpenMeter's ingest, one event a request, 256 connections, validation on", 11_000, "gateway, one event a request"),
    ("OpenMeter's sink, batches of 50,000, no ClickHouse behind it", 37_000, "sink, from a filled topic"),
    ("Quix Streams, stateful sum, 1,000 keys", 96_000, "aggregator, 1,000 customers × 3 event names"),
    ("Quix Streams, stateful sum, 100,000 keys", 68_000, "aggregator, 100,000 customers × 3 event names"),
)


def page(figures: list[Figure]) -> str:
    best: dict[str, Figure] = {}
    for figure in figures:
        if figure.name not in best or figure.value > best[figure.name].value:
            best[figure.name] = figure
    lines = [
        "# Benchmarks",
        "",
        f"Made by `make bench` on {time.strftime('%Y-%m-%d', time.gmtime())}: {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}. Broker, engine and load share the machine; one process for the stage.",
        "",
        "Pace: how fast one core was just after the figure was taken, beside the machine that the floors were set on "
        "(`tests/benchmarks/pace.py`); the last ratio is the figure at that machine's pace, roughly.",
        "",
        "| what | figure | floor | ratio | pace | at pace | how |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {each.name} | {each.value:,.0f} {each.unit} | {each.floor:,.0f} | {each.ratio:.2f} | {each.pace:.2f} "
        f"| {each.ratio_at_pace:.2f} | {each.note} |"
        for each in figures
    ]
    lines += ["", "## Beside peers", "", "| peer | figure | ours | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {peer} | {value:,} | {best[name].value:,.0f} | {best[name].value / value:.1f} |"
        for peer, value, name in PEERS
        if name in best
    ]
    return "\n".join(lines) + "\n"


def kept(text: str) -> str:
    """The part of the page that is written by hand, which stays: all from its heading on."""
    _, heading, rest = text.partition(COMPARED)
    return f"\n{heading}{rest}" if heading else ""


def main() -> int:
    figures: list[Figure] = []
    for module in MODULES:
        for figure in importlib.import_module(f"tests.benchmarks.{module}").run():
            print(figure, flush=True)
            figures.append(figure)
    PAGE.write_text(page(figures) + kept(PAGE.read_text()))
    print(f"written to {PAGE.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
