"""Go → stripe-mock, Stripe's own server of examples: it validates requests against Stripe's OpenAPI, and forgets them."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local.process import HOST, ManagedProcess, StartFailed, answers, free_ports

VERSION = "v0.203.0"
"""Its OpenAPI is of 2026-08-26.dahlia, the major version before the one that the SDK pins."""
_MODULE = f"github.com/stripe/stripe-mock@{VERSION}"
_BUILD_SECONDS_MAX = 300.0
_START_SECONDS_MAX = 20.0


def build() -> Path:
    """The program, built once a checkout. Skips the test where there is no Go; on CI that is a failure."""
    directory = Path(os.environ.get("USAGE_LOCAL_DIR", ".local")).absolute() / "bin"
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
    port, https_port = free_ports(2)
    process = ManagedProcess("stripe-mock", log_path)
    process.spawn([str(build()), "-http-addr", f"{HOST}:{port}", "-https-addr", f"{HOST}:{https_port}"])
    process.wait_until(lambda: answers(port), _START_SECONDS_MAX)
    yield f"http://{HOST}:{port}"
    process.stop()
