"""A process that reads a source exactly once by the Python client, until a file appears; run by its path.

python_client_producer.py ADDRESS KEY SPOOL STOP: the source's n-th item is usage of n by `source`, and has no id.
"""

import sys
from pathlib import Path

from usage_billing_client import Event, UsageClient

CHUNK = 50


def main(address: str, key: str, spool: str, stop: str) -> None:
    with UsageClient(address, key, spool=spool, exit_seconds=60) as usage:
        position = int(usage.position or 0)
        while not Path(stop).exists():
            chunk = range(position, position + CHUNK)
            usage.track_all([Event("source", "calls", number) for number in chunk], position=str(chunk.stop))
            position = chunk.stop
            while usage.waiting > 20 * CHUNK:  # so that kills find events in the spool, and not millions of them
                usage.flush(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
