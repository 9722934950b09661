"""A command → a child process with a log file and, where none is given, a free port: what tests start and stop."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HOST = "127.0.0.1"
# Below the range of ports that systems give to outgoing connections: one of those could be taken while its server
# starts or restarts.
_PORTS = range(10_000, 16_000)
_LOG_BYTES_MAX = 16_384
_POLL_SECONDS = 0.02
_STOP_SECONDS_MAX = 15.0


class StartFailed(RuntimeError):
    """A process ended, or was not ready in time; the message has the end of its log."""


def free_port() -> int:
    """A port of the loopback address that nothing is bound to now."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
        return port
    raise StartFailed(f"no free port is left of {_PORTS}")


class Child:
    """One child process. Not thread-safe; start and stop may alternate any number of times."""

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], ready: Callable[[], bool], seconds_max: float) -> None:
        """Start the command, its output appended to the log, and wait until it is ready. Raises StartFailed."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._popen = process = subprocess.Popen(
                _tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the test alone, which stops its children in order
            )
        deadline = time.monotonic() + seconds_max
        while not ready():
            if process.poll() is not None:
                raise StartFailed(f"{self.name} ended with code {process.returncode} while starting; {self._log()}")
            if time.monotonic() > deadline:
                self.kill()
                raise StartFailed(f"{self.name} was not ready after {seconds_max:g} s; {self._log()}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it; wait."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and its children, and wait."""
        if self._popen is not None and self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def _log(self) -> str:
        end = self.log_path.read_bytes()[-_LOG_BYTES_MAX:].decode(errors="replace")
        return f"{self.log_path}:\n{end}"


def _tethered(command: Sequence[str]) -> list[str]:
    """The command, ended by SIGTERM when its parent dies, even by SIGKILL (Linux; elsewhere the command itself).

    The kernel watches the thread that started it, so only the main thread, which lives as long as the process, may.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return list(command)
    return [setpriv, "--pdeathsig", "TERM", "--", *command]
