"""`make chaos`: a stack under load and faults by seed, then an independent count; 1 when anything is lost or doubled."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first run; at random when it is not given")
    parser.add_argument("--seconds", type=float, default=300.0, help="of load and faults in each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs, one after the other, each with the next seed")
    parser.add_argument("--keep", type=Path, help="directory that keeps data and logs of failed runs")
    parser.add_argument(
        "--only", action="append", default=[], help="a fault's name; others are left out (may be repeated)"
    )
    parser.add_argument("--shards", type=int, default=1, help="ClickHouse servers that share usage")
    arguments = parser.parse_args()
    first = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    failed: list[int] = []
    for seed in range(first, first + arguments.seeds):
        print(f"seed {seed}", flush=True)
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        say = partial(print, flush=True)
        report = run(seed, arguments.seconds, directory, say, frozenset(arguments.only), arguments.shards)
        print("\n".join(report.lines()), flush=True)
        if not report.ok:
            failed.append(seed)
            if arguments.keep is not None:
                shutil.move(directory, arguments.keep / directory.name)
                print(f"  its logs are in {arguments.keep / directory.name}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{arguments.seeds - len(failed)} of {arguments.seeds} seeds ok" + (f", failed: {failed}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
