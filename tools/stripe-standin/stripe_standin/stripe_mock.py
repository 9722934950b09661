"""Go → stripe-mock, Stripe's own server of examples: it validates requests against Stripe's OpenAPI, without state."""

import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import httpx
import pytest

from stripe_standin.child import HOST, Child, StartFailed, free_port

VERSION = "v0.203.0"
"""Its OpenAPI is of 2026-08-26.dahlia, the major version before the one that the SDK pins."""
_MODULE = f"github.com/stripe/stripe-mock@{VERSION}"
_BUILD_SECONDS_MAX = 300.0
_START_SECONDS_MAX = 20.0
_IDS = re.compile(r"/[a-z]+_(?=[a-z]*[A-Z0-9])\w+")
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def build() -> Path:
    """The program, built once for a user. Skips the test where there is no Go; on CI that is a failure."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stripe-standin"
    program = directory / f"stripe-mock-{VERSION}"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        if os.environ.get("CI"):
            pytest.fail("Go is needed to build stripe-mock, and CI must not go without it")
        pytest.skip("Go is not installed; it builds stripe-mock")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=directory) as work:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            done = subprocess.run(
                [go, "install", _MODULE],
                env=os.environ | {"GOBIN": work, "GOFLAGS": "-mod=mod"},
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS_MAX,
                check=False,
            )
            if done.returncode != 0:
                raise StartFailed(f"go install {_MODULE} failed:\n{(done.stdout + done.stderr)[-4000:]}")
            Path(work, "stripe-mock").rename(program)
    return program


@contextmanager
def serving(log_path: Path) -> Generator[str]:
    """stripe-mock on a free port; yields its address."""
    port = free_port()
    command = [str(build()), "-http-addr", f"{HOST}:{port}", "-https-addr", f"{HOST}:{free_port()}"]
    process = Child("stripe-mock", log_path)
    process.start(command, lambda: _answers(port), _START_SECONDS_MAX)
    try:
        yield f"http://{HOST}:{port}"
    finally:
        process.stop()


def _answers(port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((HOST, port), timeout=0.5):
            return True
    except OSError:
        return False


def refused(requests: Iterable[Mapping[str, Any]], address: str) -> list[str]:
    """What stripe-mock says of those calls that Stripe's OpenAPI does not allow: one of each shape is made of it.

    requests: as the stand-in logs them; those that met a fault of its own, or that it refused itself, are left out.
    """
    shapes: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for each in requests:
        if each["status"] == 200:
            names = sorted(name for name, _ in flat(each["params"] or {}))
            shapes.setdefault((each["method"], _IDS.sub("/ID", each["path"]), *names), each)
    found: list[str] = []
    with httpx.Client(base_url=address, auth=("sk_test_123", ""), trust_env=False, timeout=30) as client:
        for each in shapes.values():
            fields = flat(each["params"] or {})
            answer = (
                client.get(f"{each['path']}?{urlencode(fields)}")
                if each["method"] == "GET"
                else client.request(each["method"], each["path"], content=urlencode(fields), headers=_FORM)
            )
            if not answer.is_success:
                found.append(f"{each['method']} {each['path']} {fields}: {answer.text}")
    assert shapes
    return found


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A decoded form as it is sent: metadata[a], lines[0][amount]."""
    if isinstance(value, Mapping):
        parts = cast("Mapping[str, Any]", value).items()
        return [pair for key, inner in parts for pair in flat(inner, f"{name}[{key}]" if name else key)]
    if isinstance(value, list):
        of = enumerate(cast("list[Any]", value))
        return [pair for index, inner in of for pair in flat(inner, f"{name}[{index}]")]
    return [(name, "" if value is None else str(value))]
